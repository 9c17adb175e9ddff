"""One module per verb: the functions that the Python API and the command line call.

In: `ApplyOptions` and a session.  Out: a plan, a report, a lock; each verb joins the packages below.
"""
