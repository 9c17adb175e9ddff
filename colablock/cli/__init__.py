"""The command line and the notebook magics: one module per command.

In: arguments.  Out: text or JSON on standard output, and a documented exit code.
"""
