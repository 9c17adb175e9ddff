"""The resolution: resolvelib over the candidates, with as few changes to the environment as possible.

In: a `Request` and a source of candidates.  Out: a `Resolution`, or `NoSolution` with the conflict report.
"""
