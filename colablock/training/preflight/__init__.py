"""Checks before a run starts: model, data, memory, disk, precision, and the versions of the stack.

In: a `TrainConfig` and facts about machine and stack.  Out: findings, each an error, a warning or a note.
"""
