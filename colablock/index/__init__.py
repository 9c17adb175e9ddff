"""Where candidates come from: package indexes, find-links folders, archives and builds.

In: a project name.  Out: a `Candidate` or a `Rejection` per file, and the metadata of a candidate.
"""
