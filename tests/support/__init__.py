"""Shared helpers of the tests: real wheels, a local index, stand-ins of recorded runtimes."""
