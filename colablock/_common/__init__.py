"""Helpers that every package may use: text, files, processes, URLs, the reporter protocol.

In: plain values.  Out: plain values.  Nothing here knows of distributions, matrices or plans.
"""
