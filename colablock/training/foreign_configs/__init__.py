"""Configs that were written for other trainers.

In: the keys of such a config, and a runner.  Out: a `Translation`, in colablock's keys.
"""
