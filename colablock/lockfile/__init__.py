"""Lock files (PEP 751): written, read, stored beside their matrix, and exported to other formats.

In: a `Resolution` or a lock file.  Out: a lock file, exact pins, or a requirements file with hashes.
"""
