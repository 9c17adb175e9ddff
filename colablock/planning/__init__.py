"""The plan: which target, and the ordered steps with a reason for each.

In: a `Resolution` and a `Snapshot`.  Out: a `Plan`; nothing is changed.
"""
