"""What a notebook calls: the functions that `import colablock` offers.

In: plain arguments.  Out: values that display themselves in a notebook.
"""
