"""Schema 1 of the matrix file as data: the reader, the reference page and the JSON schema go by it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

__all__ = [
    "ACCELERATORS",
    "CAPABILITIES",
    "PRERELEASES",
    "RUNNERS",
    "SCHEMA",
    "WORKAROUNDS",
    "Key",
    "keys_of",
]

ACCELERATORS = ("cuda", "none")
CAPABILITIES = ("nf4", "llama3-rope")
WORKAROUNDS = ("load-in-4bit-twice",)
RUNNERS = ("axolotl", "trl")
PRERELEASES = ("if-necessary-or-explicit", "if-necessary", "allow", "disallow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of the file.  *path* holds ``<name>`` for a free key and ``[]`` for an array of tables.

    *type* is worded for people and is what the reader converts by; *choices*
    are the values of a closed set.
    """

    path: str
    type: str
    description: str
    required: bool = False
    default: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The table that holds the key; ``""`` is the top of the file."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The key itself, such as ``requires-python``."""
        return self.path.rpartition(".")[2].removesuffix("[]")


_TOP = (
    Key(
        path="schema",
        type="integer",
        required=True,
        description="The version of this format: `1`.",
    ),
    Key(
        path="name",
        type="matrix name",
        required=True,
        description="What the matrix is called on the command line: lower-case letters and digits, with "
        "single `-` or `_` between them. The file is called `<name>.toml` where it is looked up by name.",
    ),
    Key(path="summary", type="text", description="One line for `colablock list`."),
    Key(
        path="extends",
        type="text",
        description="Another matrix, by name or by a path relative to this file. Entries merge by name; "
        "the ones of this file win.",
    ),
    Key(
        path="requires-python",
        type="specifier",
        default="any",
        description="The Pythons that the stack can be installed on (PEP 440).",
    ),
    Key(
        path="prerelease",
        type="choice",
        choices=PRERELEASES,
        default="if-necessary-or-explicit",
        description="Whether pre-releases are candidates: only where nothing else fits or where a specifier "
        "names one, only where nothing else fits, always, or never.",
    ),
    Key(
        path="exclude-newer",
        type="date-time",
        description="Files uploaded after this moment are ignored. With its offset: `2024-09-01T00:00:00Z`.",
    ),
    Key(path="index[]", type="array of tables", description="The indexes that packages may name."),
    Key(
        path="requirements",
        type="requirements",
        default="[]",
        description="Requirements as strings (PEP 508), beside or instead of `[packages]`.",
    ),
    Key(
        path="packages",
        type="table of entries",
        description="What the stack asks for, by project name: a specifier, a table, or an array of tables "
        "with a marker each.",
    ),
    Key(
        path="constraints",
        type="table of entries",
        description="Narrows versions of projects without asking for them.",
    ),
    Key(
        path="absent",
        type="table of entries",
        description="What must not be importable beside this stack, although no metadata says so. "
        "An empty specifier stands for any version.",
    ),
    Key(path="options", type="table", description="What may be built from source."),
    Key(
        path="variants",
        type="table of tables",
        description="What one accelerator changes, by name. Tried in file order unless one is named.",
    ),
    Key(path="verify", type="table", description="How an environment is proven."),
    Key(path="train", type="table", description="How training is started."),
)

_INDEX = (
    Key(
        path="index[].name",
        type="index name",
        required=True,
        description="What packages call the index.",
    ),
    Key(
        path="index[].url",
        type="URL",
        required=True,
        description="Its simple API (PEP 503), without a project's name.",
    ),
    Key(
        path="index[].default",
        type="boolean",
        default="false",
        description="Whether it replaces the default index. Otherwise only packages that name it are "
        "looked up there, and nowhere else.",
    ),
    Key(
        path="index[].exclude-newer",
        type="date-time or false",
        default="the matrix's own",
        description="Another moment for this index; `false` where it gives no upload times.",
    ),
)

_PACKAGE = (
    Key(
        path="packages.<name>.version",
        type="specifier",
        default="any",
        description="The versions that fit (PEP 440). Beside `url` one exact version without operator: what "
        "the archive is, where it does not say so itself.",
    ),
    Key(path="packages.<name>.extras", type="names", default="[]", description="The extras asked for."),
    Key(
        path="packages.<name>.marker",
        type="marker",
        description="Where the entry applies (PEP 508). Required in an array of tables.",
    ),
    Key(
        path="packages.<name>.index",
        type="text",
        description="The only index that is asked for the project, by its name in `[[index]]`.",
    ),
    Key(
        path="packages.<name>.prefer-local",
        type="local version",
        description="A local version label that is tried before others of the same version, such as `cpu` "
        "for `2.11.0+cpu`.",
    ),
    Key(
        path="packages.<name>.url",
        type="URL",
        description="The wheel, sdist or archive to take instead of asking an index.",
    ),
    Key(path="packages.<name>.sha256", type="SHA-256", description="The hash of what `url` names."),
    Key(
        path="packages.<name>.source-root",
        type="relative path",
        description="The folder of the archive whose modules are taken, where a plain build would hold none.",
    ),
    Key(
        path="packages.<name>.requires-dist",
        type="requirements",
        description="Replaces what the distribution says it requires.",
    ),
    Key(
        path="packages.<name>.why",
        type="text",
        description="The reason; quoted by plans and `colablock why`.",
    ),
)

_NARROWING = (
    Key(
        path="constraints.<name>.version",
        type="specifier",
        required=True,
        description="The versions that fit (PEP 440).",
    ),
    Key(path="constraints.<name>.marker", type="marker", description="Where it applies (PEP 508)."),
    Key(path="constraints.<name>.why", type="text", description="The reason."),
    Key(
        path="absent.<name>.version",
        type="specifier",
        default="any",
        description="The versions that must not be there (PEP 440).",
    ),
    Key(path="absent.<name>.why", type="text", description="The reason."),
)

_OPTIONS = (
    Key(
        path="options.allow-build",
        type="build names",
        default="[]",
        description="Projects that may be built from an sdist; `:all:` for any.",
    ),
    Key(
        path="options.no-binary",
        type="build names",
        default="[]",
        description="Projects of which no wheel is taken; `:all:` for any.",
    ),
)

_VARIANT = (
    Key(path="variants.<name>.summary", type="text", description="One line about the variant."),
    Key(
        path="variants.<name>.system-requirements",
        type="table",
        description="The facts that make the variant fit; all of them must hold.",
    ),
    Key(
        path="variants.<name>.packages",
        type="table of entries",
        description="As `[packages]`; an entry replaces the whole entry of that name.",
    ),
    Key(
        path="variants.<name>.constraints",
        type="table of entries",
        description="As `[constraints]`; an entry replaces the one of that name.",
    ),
    Key(
        path="variants.<name>.absent",
        type="table of entries",
        description="As `[absent]`; an entry replaces the one of that name.",
    ),
    Key(
        path="variants.<name>.system-requirements.accelerator",
        type="choice",
        choices=ACCELERATORS,
        default="any",
        description="`cuda`: there is a CUDA device; `none`: there is none.",
    ),
    Key(
        path="variants.<name>.system-requirements.driver",
        type="specifier",
        default="any",
        description="Versions of the NVIDIA driver.",
    ),
    Key(
        path="variants.<name>.system-requirements.compute-capability",
        type="specifier",
        default="any",
        description="Compute capabilities; every device must fit.",
    ),
)

_PROOF = (
    Key(
        path="verify.imports",
        type="import names",
        default="[]",
        description="What is imported in a fresh interpreter: `module` or `module:attribute`.",
    ),
    Key(
        path="verify.commands",
        type="commands",
        default="[]",
        description="Commands that must end with exit code 0, each an array of strings.",
    ),
    Key(
        path="verify.capabilities",
        type="choices",
        choices=CAPABILITIES,
        default="[]",
        description="Claims that are proven by a check of their own.",
    ),
    Key(path="train.runner", type="choice", choices=RUNNERS, description="What runs the training."),
    Key(
        path="train.workarounds",
        type="choices",
        choices=WORKAROUNDS,
        default="[]",
        description="Named fixes for known conflicts between versions, applied when training starts.",
    ),
    Key(
        path="train.mends",
        type="choices",
        choices=WORKAROUNDS,
        default="[]",
        description="An older name of `workarounds`. A file gives one of the two.",
    ),
)

SCHEMA: tuple[Key, ...] = (*_TOP, *_INDEX, *_PACKAGE, *_NARROWING, *_OPTIONS, *_VARIANT, *_PROOF)


@cache
def keys_of(section: str) -> dict[str, Key]:
    """Return the keys of one table (``"packages.<name>"``; ``""`` is the top), by name, in schema order."""
    return {key.name: key for key in SCHEMA if key.section == section}
