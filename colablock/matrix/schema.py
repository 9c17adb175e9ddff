"""Schema 1 of the matrix file as data: the reader, the reference page and the JSON schema go by it."""

from __future__ import annotations

from functools import cache

from colablock._records import dataclass

__all__ = [
    "ACCELERATORS",
    "CAPABILITIES",
    "PRERELEASES",
    "RUNNERS",
    "SCHEMA",
    "WORKAROUNDS",
    "Key",
    "keys_of",
    "tables_with",
]

ACCELERATORS = ("cuda", "none")
CAPABILITIES = ("nf4", "llama3-rope")
WORKAROUNDS = ("load-in-4bit-twice",)
RUNNERS = ("axolotl", "trl", "unsloth")
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
        description="The name of the matrix on the command line: lower-case letters and digits, with "
        "single `-` or `_` between them. To be found by name, the file must be called "
        "`<name>.toml`.",
    ),
    Key(path="summary", type="text", description="One line for `colablock list`."),
    Key(
        path="extends",
        type="text",
        description="Another matrix, by name or by a path relative to this file. Entries are merged by "
        "name, and those of this file win.",
    ),
    Key(
        path="requires-python",
        type="specifier",
        default="any",
        description="The Python versions that the stack supports (PEP 440).",
    ),
    Key(
        path="prerelease",
        type="choice",
        choices=PRERELEASES,
        default="if-necessary-or-explicit",
        description="When pre-releases are candidates: only if nothing else fits or a specifier names one,"
        " only if nothing else fits, always, or never.",
    ),
    Key(
        path="exclude-newer",
        type="date-time",
        description="Files uploaded later are ignored. The time needs an offset: `2024-09-01T00:00:00Z`.",
    ),
    Key(path="index[]", type="array of tables", description="The indexes that packages can name."),
    Key(
        path="requirements",
        type="requirements",
        default="[]",
        description="Requirements as strings (PEP 508), beside or instead of `[packages]`. A project may "
        "have several lines, which all have to hold.",
    ),
    Key(
        path="packages",
        type="table of entries",
        description="The requirements of the stack, by project name: a specifier, a table, or an array of "
        "tables with a marker each.",
    ),
    Key(
        path="constraints",
        type="table of entries",
        description="Restricts the versions of projects without requiring them.",
    ),
    Key(
        path="absent",
        type="table of entries",
        description="Projects that must not be importable beside this stack, although no metadata says so."
        " An empty specifier means any version.",
    ),
    Key(path="options", type="table", description="The projects that may be built from source."),
    Key(
        path="variants",
        type="table of tables",
        description="The changes for one accelerator, by name. Variants are tried in the order of the "
        "file, unless one is named. While an index that only a variant names cannot be reached, the next "
        "one that fits and takes nothing from that index replaces it in plans and applies.",
    ),
    Key(path="verify", type="table", description="The proofs of an environment."),
    Key(path="train", type="table", description="The settings for training."),
)

_INDEX = (
    Key(
        path="index[].name",
        type="index name",
        required=True,
        description="The name by which packages refer to the index.",
    ),
    Key(
        path="index[].url",
        type="URL",
        required=True,
        description="The URL of its simple API (PEP 503), without the name of a project.",
    ),
    Key(
        path="index[].default",
        type="boolean",
        default="false",
        description="Whether it replaces the default index. If not, only packages that name it are looked "
        "up there, and nowhere else.",
    ),
    Key(
        path="index[].exclude-newer",
        type="date-time or false",
        default="the matrix's own",
        description="Another cut-off for this index; `false` if it provides no upload times.",
    ),
    Key(
        path="index[].file-hosts",
        type="host names",
        default="[]",
        description="Other hosts on which the index keeps its files, such as `files.example.com`. A lock may "
        "name files on the host of the index and on these. Those of PyPI and of the PyTorch index are known.",
    ),
)

_PACKAGE = (
    Key(
        path="packages.<name>.version",
        type="specifier",
        default="any",
        description="The versions that fit (PEP 440). Beside `url`: the exact version of the archive, "
        "without an operator, if the archive does not state it.",
    ),
    Key(path="packages.<name>.extras", type="names", default="[]", description="The required extras."),
    Key(
        path="packages.<name>.marker",
        type="marker",
        description="The environments that the entry applies to (PEP 508). Required in an array of tables.",
    ),
    Key(
        path="packages.<name>.index",
        type="text",
        description="The only index that is asked for the project, by its name in `[[index]]`. Projects that "
        "only it requires come from there too, unless they have an entry of their own.",
    ),
    Key(
        path="packages.<name>.prefer-local",
        type="local version",
        description="A local version label that is preferred to others of the same version, such as `cpu` "
        "for `2.11.0+cpu`.",
    ),
    Key(
        path="packages.<name>.url",
        type="URL",
        description="The wheel, sdist or archive to use instead of an index.",
    ),
    Key(path="packages.<name>.sha256", type="SHA-256", description="The hash of the file at `url`."),
    Key(
        path="packages.<name>.source-root",
        type="relative path",
        description="The folder of the archive that contains the modules, if a plain build would contain "
        "none.",
    ),
    Key(
        path="packages.<name>.requires-dist",
        type="requirements",
        description="Replaces the requirements that the distribution declares.",
    ),
    Key(
        path="packages.<name>.why",
        type="text",
        description="The reason. Plans and `colablock why` quote it.",
    ),
)

_NARROWING = (
    Key(
        path="constraints.<name>.version",
        type="specifier",
        required=True,
        description="The versions that fit (PEP 440).",
    ),
    Key(
        path="constraints.<name>.marker",
        type="marker",
        description="The environments that it applies to (PEP 508).",
    ),
    Key(path="constraints.<name>.why", type="text", description="The reason."),
    Key(
        path="absent.<name>.version",
        type="specifier",
        default="any",
        description="The versions that must be absent (PEP 440).",
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
        description="Projects whose wheels are not used; `:all:` for any.",
    ),
)

_VARIANT = (
    Key(path="variants.<name>.summary", type="text", description="One line about the variant."),
    Key(
        path="variants.<name>.system-requirements",
        type="table",
        description="The conditions for the variant. All of them must hold.",
    ),
    Key(
        path="variants.<name>.packages",
        type="table of entries",
        description="As `[packages]`. An entry replaces the whole entry of that name.",
    ),
    Key(
        path="variants.<name>.constraints",
        type="table of entries",
        description="As `[constraints]`. An entry replaces the one of that name.",
    ),
    Key(
        path="variants.<name>.absent",
        type="table of entries",
        description="As `[absent]`. An entry replaces the one of that name.",
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
        description="Compute capabilities. Every device must fit.",
    ),
    Key(
        path="variants.<name>.system-requirements.why",
        type="text",
        description="The reason, and what to use instead. It is the hint where no variant fits.",
    ),
)

_PROOF = (
    Key(
        path="verify.imports",
        type="import names",
        default="[]",
        description="The modules to import in a fresh interpreter: `module` or `module:attribute`. One that "
        "raises `NotImplementedError` is skipped if torch sees no GPU.",
    ),
    Key(
        path="verify.commands",
        type="commands",
        default="[]",
        description="Commands that must exit with code 0, each an array of strings.",
    ),
    Key(
        path="verify.capabilities",
        type="choices",
        choices=CAPABILITIES,
        default="[]",
        description="Capabilities of the stack, each proven by its own check.",
    ),
    Key(path="train.runner", type="choice", choices=RUNNERS, description="The program that trains."),
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
        description="The older name of `workarounds`. A file may set only one of them.",
    ),
)

SCHEMA: tuple[Key, ...] = (*_TOP, *_INDEX, *_PACKAGE, *_NARROWING, *_OPTIONS, *_VARIANT, *_PROOF)


@cache
def keys_of(section: str) -> dict[str, Key]:
    """Return the keys of one table (``"packages.<name>"``; ``""`` is the top), by name, in schema order."""
    return {key.name: key for key in SCHEMA if key.section == section}


def tables_with(name: str) -> list[str]:
    """Return the tables with a fixed path that have the key *name* (``""`` is the top), in schema order."""
    return [key.section for key in SCHEMA if key.name == name and "<" not in key.path]
