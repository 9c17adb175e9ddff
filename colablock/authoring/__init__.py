"""New matrices: a commented template, or one made from requirement files of other tools.

In: requirement files, freezes or a project file.  Out: a matrix file, and notes on what was left out.
"""
