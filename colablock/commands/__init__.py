"""The commands, one module for each group of them: its arguments and what it does."""
