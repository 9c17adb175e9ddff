"""One module per verb, called by the Python API and by the command line.

In: `ApplyOptions` and a session.  Out: a plan, a report, a lock; each verb joins the packages below.
"""
