"""Compatibility matrices: the TOML file, its schema, and where matrices are found.

In: a name or a path.  Out: a `Matrix`, checked as a whole, with every fault reported at once.
"""
