"""What the undo of a change does beside moving files back: leftovers, requirements, companions.

In: a `Change`, the site and its snapshot.  Out: files that would be left, requirements that would be broken.
"""
