"""Copies of the projects we may not require: the environment we change has its own versions of them."""
