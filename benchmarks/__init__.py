"""Benchmarks, and hard inputs that the tests use too."""
