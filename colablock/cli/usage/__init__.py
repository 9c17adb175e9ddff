"""How the command line explains itself: usage errors, help with examples, completion in a shell."""

from __future__ import annotations
