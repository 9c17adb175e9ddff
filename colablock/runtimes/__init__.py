"""Recorded hosted runtimes: the images that a plan can be made for on another machine.

In: a runtime's name, or a freeze to import.  Out: a `RecordedRuntime` with its snapshot, or a diff of two.
"""
