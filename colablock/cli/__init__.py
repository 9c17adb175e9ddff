"""The command line: one module per command, and the notebook magics.

In: arguments.  Out: text or JSON on standard output, and a documented exit code.
"""
