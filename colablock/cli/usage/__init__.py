"""How the command line explains itself: usage errors, help with examples, completion in a shell.

In: the parsers of the commands, and what was typed.  Out: text, and the nearest words.
"""

from __future__ import annotations
