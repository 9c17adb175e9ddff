"""The change of an environment: staged, journaled, atomic, recoverable, and undone on request.

In: a `Plan` and the wheels for it.  Out: the environment in the new state or in the old one, never between.
"""
