"""Fuzz every parser of bytes that somebody else may have written: `nox -s fuzz`.

`targets` lists the parsers.  Each target is a name, samples of what it reads, a function, and the
exceptions that it documents.  `mutations` makes inputs from the samples, `strategies` makes others with
hypothesis, and `harness` measures each input.  `corpus/` has an input for each fault that was found.
"""
