"""Values for people: text in a terminal, HTML in a notebook, progress in both.

In: a `Plan`, a `Report`, a receipt and others.  Out: what is shown.  Nothing is decided here.
"""
