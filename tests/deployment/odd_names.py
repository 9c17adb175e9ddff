"""Names of files and folders with a meaning to a shell, BuildKit, YAML, sbatch or pip."""

from __future__ import annotations

__all__ = ["HIDDEN", "ODD_NAMES"]

_WORDS = (
    "wheels",
    "my wheels",
    "#a",
    "a #b",
    "a#b",
    "-x",
    "--from=x",
    "!no",
    "^a",
    "a^b",
    "~",
    "~root",
    "a=b",
    "a:b",
)
_PATTERNS = ("a*b", "a?b", "[ab]", "a[b]", "a]b", "{a,b}", "**", "[!a]", "[^a]", "a-z", "[a-z]*/[b]")
_SHELL = (
    "$HOME",
    "${HOME}",
    "a${b",
    "$(id)",
    "`id`",
    "a;b",
    "a&b",
    "a|b",
    "a>b",
    "<<EOF",
    "a <<EOF",
    "REQUIREMENTS",
)
_QUOTES = ('a"b', "a'b", "'", '"', "a'\"b", "a\\b", "a\\", "\\[", "\\\\a", '["a", "b"]', "'''", '\\"')
_SPACES = (" a", "a ", "a  b", "a/ b /c")
_OF_TOOLS = ("%j", "%u-%%", "{0}", "{name}", "- a", "a: b", "yes", "null", "http://x", "git@x:y", "a,b", "@a")
_LETTERS = ("wörter", "日本", "😀", "é", "مرحبا")
ODD_NAMES = (*_WORDS, *_PATTERNS, *_SHELL, *_QUOTES, *_SPACES, *_OF_TOOLS, *_LETTERS)
#: They would end a line, or hide what comes after them.
HIDDEN = (
    "a\nRUN evil",
    "a\rb",
    "a\x85b",
    "a\u2028b",
    "a\x1b[2J",
    "a\u202eb",
    "\ufeffa",
    "a\tb",
    "a\udcffb",
    "a\x00b",
)
