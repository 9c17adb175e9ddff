"""Limits on what is read from files and servers that somebody else may have written.

Each limit is several times what real indexes, wheels, locks and runs have; the comment says what that is.
Sizes are bytes.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ADVISORIES",
    "ADVISORY_PAGE",
    "ARCHIVE",
    "ARCHIVE_DEPTH",
    "ARCHIVE_MEMBER",
    "ARCHIVE_PATH",
    "ARCHIVE_RATIO",
    "ARCHIVE_RATIO_FROM",
    "ARCHIVE_UNPACKED",
    "ARGUMENT",
    "BUNDLE_MANIFEST",
    "CONFIG_FILE",
    "CONFIG_VALUES",
    "CRASH_LINE",
    "CRASH_TEXT",
    "CRASH_WORD",
    "DEPTH",
    "DIGITS",
    "DIRECTORY",
    "FIELD",
    "FILES",
    "FILE_NAME",
    "HTML_PAGE",
    "INCLUDE_DEPTH",
    "INTERPRETER_FILE",
    "LARGEST_FILE",
    "MARKER_DEPTH",
    "MEMBER",
    "MEMBERS",
    "METADATA",
    "METRICS_FILE",
    "METRICS_LINE",
    "PAGE",
    "RECORD_FILE",
    "REQUIREMENT",
    "REQUIREMENTS",
    "REQUIREMENT_LINE",
    "REQUIREMENT_LINES",
    "RUN_FILE",
    "SETTINGS_FILE",
    "SHOWN",
    "SIZE",
    "SLOWEST",
    "TAGS",
    "TEXT_FILE",
    "UNPACKED_MANIFEST",
    "URL",
    "VERSION",
    "WORKER_ANSWER",
]

DEPTH: Final = 64
"""Nested arrays and objects in a JSON value of unknown form (a config, a report).  Real ones have 12."""

RECORD_FILE: Final = 64 << 20
"""A file of our own state: a journal of 30,000 moves has 9 MB."""

RUN_FILE: Final = 16 << 20
"""A file of a run, a checkpoint, an isolated environment or a matrix's evidence.  The largest has 1 MB."""

METRICS_FILE: Final = 64 << 20
"""The end of ``metrics.jsonl`` that is read: a run of 100,000 steps has 35 MB."""

METRICS_LINE: Final = 64 << 10
"""One event of a run has 300 bytes."""

ARGUMENT: Final = 64 << 10
"""The list of folders in an argument of a child.  Linux takes 128 kB; a change of an image has 15 kB."""

UNPACKED_MANIFEST: Final = 64 << 20
"""The files of an unpacked wheel: 11,000 of torch have 2 MB."""

WORKER_ANSWER: Final = 64 << 20
"""The answer of a process that colablock starts: the distributions of an image have 2 MB."""

SHOWN: Final = 200
"""Characters of foreign text in a message."""

# Versions and requirements

VERSION: Final = 200
"""Characters of a version.  The longest in the recorded indexes has 45."""

DIGITS: Final = 1000
"""Digits in a row, in a specifier or a requirement.  Python converts at most 4300 to a number."""

REQUIREMENT: Final = 10_000
"""Characters of a requirement, a specifier or a marker.  The longest in the recorded indexes has 600."""

REQUIREMENT_LINE: Final = 256 << 10
"""Characters of a line of a requirements file, with its hashes.  500 hashes have 36,000."""

REQUIREMENT_LINES: Final = 10_000
"""Lines of a requirements file and the files it includes.  The freeze of an image has 700."""

INCLUDE_DEPTH: Final = 20
"""Requirements files that include each other in a row.  Real ones have 3."""

MARKER_DEPTH: Final = 50
"""Nested parentheses of a marker.  Real ones have 3, and the parser is recursive."""

# Indexes

PAGE: Final = 64 << 20
"""The page of an index, decompressed.  The largest of the default index has 30 MB as JSON."""

HTML_PAGE: Final = 32 << 20
"""The page of an index as HTML, which takes longer to read.  The largest of the index of torch has 5 MB."""

FILES: Final = 100_000
"""Files on one page.  The largest of the default index has 30,000."""

FILE_NAME: Final = 255
"""Characters of a file name: file systems take no more bytes.  The longest recorded has 130."""

URL: Final = 8192
"""Characters of the URL of a file.  Signed ones have 1,500."""

FIELD: Final = 1000
"""Characters of another field of a page: why a file is yanked, which Python it needs.  Real ones have 300."""

SIZE: Final = 1 << 40
"""The size of a file, in bytes.  The largest wheel has 4 GB."""

TAGS: Final = 1000
"""Tags of one wheel, all combinations of its tag sets.  Real ones have 80."""

# Downloads

SLOWEST: Final = 1024
"""Bytes per second of a body, on average over two timeouts.  A slow mobile connection has 10,000."""

LARGEST_FILE: Final = 16 << 30
"""A file whose size no index tells.  The largest wheel has 4 GB."""

# Archives

MEMBERS: Final = 100_000
"""Files in a wheel or an archive.  torch has 12,000, and the largest repositories have 60,000."""

DIRECTORY: Final = 16 << 20
"""The directory of a zip archive.  That of torch has 2 MB."""

MEMBER: Final = 128 << 20
"""A file of a source archive, unpacked; it is read into memory.  Test data has some of 50 MB."""

ARCHIVE: Final = 2 << 30
"""All files of a source archive, unpacked.  The largest have 500 MB."""

INTERPRETER_FILE: Final = 512 << 20
"""A file of a packed Python; it is read into memory.  The library of a standalone build has 30 MB."""

ARCHIVE_UNPACKED: Final = 64 << 30
"""All members, unpacked.  A wheel of torch has 4 GB, a checkpoint of a large model 50 GB."""

ARCHIVE_MEMBER: Final = 16 << 30
"""One member, unpacked.  The largest libraries of CUDA have 2 GB, a shard of a checkpoint 5 GB."""

ARCHIVE_PATH: Final = 1024
"""Characters of the path of a member.  The longest in an image of Colab has 220."""

ARCHIVE_DEPTH: Final = 64
"""Folders in the path of a member.  The deepest in an image of Colab has 16."""

ARCHIVE_RATIO: Final = 200
"""Unpacked by packed bytes.  Wheels of generated code reach 20, and single sparse files 100."""

ARCHIVE_RATIO_FROM: Final = 128 << 20
"""Unpacked bytes below which the ratio does not count: less does no harm."""

BUNDLE_MANIFEST: Final = 8 << 20
"""The manifest of a bundle: 300 files have 60 kB."""

# Metadata and other files

METADATA: Final = 16 << 20
"""A METADATA file with its description.  The largest have 2 MB."""

REQUIREMENTS: Final = 512 << 10
"""Characters of all requirements of a distribution.  The most are 70,000, of 700 requirements."""

TEXT_FILE: Final = 8 << 20
"""A lock, a matrix, a requirements file or a recorded runtime.  The largest shipped lock has 180 kB."""

SETTINGS_FILE: Final = 1 << 20
"""A settings file of another tool: pip.conf, netrc.  Real ones have a few lines."""

ADVISORY_PAGE: Final = 16 << 20
"""The JSON page of one release, with its advisories: tensorflow 2.4.0 has 0.5 MB."""

ADVISORIES: Final = 5_000
"""Advisories of one release: tensorflow 2.4.0 has 400."""

CONFIG_FILE: Final = 128 << 10
"""A training config, which the reader of YAML takes a second for.  One with every key has 4 kB."""

CONFIG_VALUES: Final = 10_000
"""Values in a training config: one with every key has 60."""

CRASH_TEXT: Final = 512 << 10
"""The end of a log in which the cause of a failure is searched: a traceback of four ranks has 100 kB."""

CRASH_LINE: Final = 4_000
"""Characters of a line in which a cause is searched: the longest messages of transformers have 2,000."""

CRASH_WORD: Final = 160
"""Characters of a word or dotted name in which a cause is searched: mangled names of torch have 120."""
