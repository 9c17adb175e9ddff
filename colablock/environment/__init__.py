"""One Python environment as it stands: its distributions, markers, tags, accelerator and site folders.

In: an interpreter, this one or another.  Out: a `Snapshot`, which never changes afterwards.
"""
