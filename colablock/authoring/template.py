"""Write the text of a new matrix, with every key explained, and optional keys as examples."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from colablock._vendor import tomli_w
from colablock._vendor.packaging.specifiers import Specifier, SpecifierSet
from colablock.authoring.from_requirements import MatrixParts
from colablock.matrix.json_schema import SCHEMA_FILE
from colablock.matrix.model import PackageEntry
from colablock.matrix.reader import SCHEMA_VERSION
from colablock.matrix.schema import Key, keys_of
from colablock.matrix.values import STRUCTURED

__all__ = ["Start", "matrix_text"]

_WIDTH = 100
_HEAD = """\
A matrix: the requirements of a stack, and the reasons for them. `why` gives the reason for the versions \
of a package; plans and `colablock why` quote it. A line that starts with `#` and no space is an example; \
without the `#` it takes effect.\
"""
_UNNAMED = """\
No package uses this index yet. Add `index = "{}"` to the packages that come from this index only.\
"""

# An example in TOML for each top-level key.  Uncommented, all of them together are a valid matrix.
_EXAMPLES: Mapping[str, str] = {
    "summary": 'summary = "QLoRA on the versions of this summer"',
    "extends": 'extends = "qlora-2026"',
    "requires-python": 'requires-python = ">=3.11,<3.14"',
    "prerelease": 'prerelease = "disallow"',
    "exclude-newer": "exclude-newer = 2026-09-01T00:00:00Z",
    "requirements": 'requirements = ["wandb>=0.17", "tomli; python_version < \'3.11\'"]',
    "index": """\
[[index]]
name = "pytorch-cpu"
url = "https://download.pytorch.org/whl/cpu"
exclude-newer = false # its pages give no upload times""",
    "packages": """\
[packages.transformers]
version = ">=5.13,<6"
extras = ["torch"]
why = "the major series that supports Llama 3 RoPE scaling"
[packages.torch]
version = ">=2.11,<3"
index = "pytorch-cpu" # the only index for it
marker = "sys_platform == 'linux'"
why = "the series of the summer images or later"
[packages.from-an-archive]
url = "https://example.org/from-an-archive-1.0.tar.gz"
version = "1.0" # if the archive does not state it
source-root = "src" # if a plain build would contain no modules
requires-dist = ["numpy>=2"] # replaces its own requirements
why = "never released to an index\"""",
    "constraints": """\
[constraints]
setuptools = { version = "<81", why = "an older part of the stack imports pkg_resources" }""",
    "absent": """\
[absent]
torchao = { version = "<0.16", why = "peft refuses to start when an older one is importable" }""",
    "options": """\
[options]
allow-build = ["from-an-archive"]
no-binary = []""",
    "variants": """\
[variants.cuda]
summary = "with the CUDA build of torch"
system-requirements = { accelerator = "cuda", driver = ">=525", compute-capability = ">=7.5" }
[variants.cpu]
summary = "without a card, for tests and proofs"
system-requirements = { accelerator = "none" }
[variants.cpu.packages.torch]
version = ">=2.11,<3"
prefer-local = "cpu" # tried before other builds of the same version
why = "any build runs without a card; a local +cpu wheel saves gigabytes\"""",
    "verify": """\
[verify]
imports = ["torch", "transformers:AutoModelForCausalLM"]
commands = [["accelerate", "launch", "--help"]]
capabilities = ["nf4"]""",
    "train": """\
[train]
runner = "trl\"""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The content of a new matrix.  *has_schema_file* is true if the JSON schema is beside it."""

    name: str
    summary: str | None = None
    extends: str | None = None
    requires_python: str | None = None
    parts: MatrixParts = field(default_factory=MatrixParts)
    has_schema_file: bool = False


def matrix_text(start: Start) -> str:
    """Return the text of the file, in the order of the schema, with values before tables (TOML)."""
    values: dict[str, object] = {
        "schema": SCHEMA_VERSION,
        "name": start.name,
        "summary": start.summary,
        "extends": start.extends,
        "requires-python": start.requires_python or start.parts.requires_python,
        "prerelease": start.parts.prerelease,
    }
    parts = start.parts
    if parts.exclude_newer is not None:
        values["exclude-newer"] = parts.exclude_newer
    given = {
        **{key: [_line(key, value)] for key, value in values.items() if value is not None},
        "options": ["[options]", _line("no-binary", list(parts.no_binary))] if parts.no_binary else [],
        "index": list(_indexes(start.parts)),
        "packages": list(_entries("packages", start.parts.packages)),
        "constraints": list(_entries("constraints", start.parts.constraints)),
    }
    keys = sorted(keys_of("").values(), key=lambda key: key.type in STRUCTURED)
    lines = [f"#:schema ./{SCHEMA_FILE}"] if start.has_schema_file else []
    lines += _comment(_HEAD)
    for key in keys:
        lines += ["", *_comment(key.description), *(given.get(key.name) or _example(key))]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _example(key: Key) -> Iterator[str]:
    yield from (f"#{line}" for line in _EXAMPLES[key.name].splitlines())


def _line(key: str, value: object) -> str:
    return f"{key} = {_toml(value)}"


def _toml(value: object) -> str:
    """Return a value in TOML.  A string with double quotes becomes a literal string if possible."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str) and '"' in value and value.isprintable() and "'" not in value:
        return f"'{value}'"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _indexes(parts: MatrixParts) -> Iterator[str]:
    named = {entry.index for entry in parts.packages}
    for place, index in enumerate(parts.indexes):
        yield from ("",) if place else ()
        if not index.default and index.name not in named:
            yield from _comment(_UNNAMED.format(index.name))
        yield from ("[[index]]", _line("name", index.name), _line("url", index.url))
        if index.default:
            yield "default = true # replaces the default index"


def _entries(section: str, entries: Sequence[PackageEntry]) -> Iterator[str]:
    """Yield the tables of *section*, one for each entry; several of one name form an array."""
    counts = Counter(entry.name for entry in entries)
    for place, entry in enumerate(entries):
        yield from ("",) if place else ()
        table = f"{section}.{entry.name}"
        yield f"[[{table}]]" if counts[entry.name] > 1 else f"[{table}]"
        keys: Mapping[str, object] = {
            "version": _specifier(entry.specifier),
            "extras": sorted(entry.extras),
            "marker": str(entry.marker or ""),
            "index": entry.index,
            "url": entry.url,
            "sha256": entry.sha256,
        }
        yield from (_line(key, value) for key, value in keys.items() if value)
        yield '#why = ""'  # for the author to fill in; an empty `why` would be a fault


def _specifier(specifiers: SpecifierSet) -> str:
    """Return the clauses in the usual order, the lower bound first."""
    order = ["===", "==", "~=", ">", ">=", "<", "<=", "!="]

    def place(one: Specifier) -> tuple[int, str]:
        return order.index(one.operator), str(one)

    return ",".join(map(str, sorted(specifiers, key=place)))
