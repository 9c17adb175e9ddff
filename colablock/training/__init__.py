"""The hand-off: from a proven environment to a training run.

It takes an environment that was applied, never the solver.  What runs in the
target's own interpreter (``_shim``, ``_prepare``, ``_trl``, ``_after``) is given
to it as a file and imports nothing of colablock.
"""
