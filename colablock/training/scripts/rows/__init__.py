"""Rows of data in the target: their sources, forms and conversations, and what of them is learnt.

In: the datasets of a job.  Out: rows, their conversations, and the tokens that are learnt.
"""
