"""Whether a matrix holds on every recorded runtime, and which imports it does not declare.

In: resolutions and the modules of wheels.  Out: outcomes and findings, kept in a results file.
"""
