"""The proofs: imports, versions, requirements and capabilities, checked in a fresh interpreter.

In: an interpreter and what it must hold.  Out: a `Report` of `Check` values.
"""
