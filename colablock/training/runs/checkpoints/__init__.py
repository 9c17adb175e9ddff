"""Checkpoints of a run: which is valid, and their mirror in a folder or on the hub.

In: a run folder and the address of a mirror.  Out: the checkpoint to resume from, archives, and notes.
"""
