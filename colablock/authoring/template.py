"""The text of a new matrix: every section explained at its place, and what is optional as an example."""

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
A matrix: what a stack asks for, and why. Each `why` says what speaks for just these versions; plans and \
`colablock why` quote it. A line that begins with `#` and no space is an example: it counts without its `#`.\
"""
_UNNAMED = """\
No package names this index yet, so nothing is looked up there. Decide which projects come from it, and from \
nowhere else: `index = "{}"` in their entries.\
"""

# One for each key at the top, in TOML.  Uncommented, all of them together are a valid matrix.
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
why = "the major series that reads Llama 3 rope scaling"
[packages.torch]
version = ">=2.11,<3"
index = "pytorch-cpu" # the only one that is asked for it
marker = "sys_platform == 'linux'"
why = "from the series of the summer images on"
[packages.from-an-archive]
url = "https://example.org/from-an-archive-1.0.tar.gz"
version = "1.0" # where the archive does not say so itself
source-root = "src" # where a plain build would hold no module
requires-dist = ["numpy>=2"] # replaces what it says it requires
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
summary = "on the CUDA build of torch that is there"
system-requirements = { accelerator = "cuda", driver = ">=525", compute-capability = ">=7.5" }
[variants.cpu]
summary = "without a card: tests, proofs"
system-requirements = { accelerator = "none" }
[variants.cpu.packages.torch]
version = ">=2.11,<3"
prefer-local = "cpu" # tried before other builds of the same version
why = "any build runs without a card; a +cpu wheel at hand spares gigabytes\"""",
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
    """What a new matrix begins with.  *has_schema_file*: the JSON schema stands beside it."""

    name: str
    summary: str | None = None
    extends: str | None = None
    requires_python: str | None = None
    parts: MatrixParts = field(default_factory=MatrixParts)
    has_schema_file: bool = False


def matrix_text(start: Start) -> str:
    """Return the file, in the order of the schema: values first, then tables, as TOML wants it."""
    values = {
        "schema": SCHEMA_VERSION,
        "name": start.name,
        "summary": start.summary,
        "extends": start.extends,
        "requires-python": start.requires_python,
    }
    given = {
        **{key: [_line(key, value)] for key, value in values.items() if value is not None},
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
    """Return a value in TOML: a string with double quotes in it as a literal one, where it can be one."""
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
            yield "default = true # in place of the default index"


def _entries(section: str, entries: Sequence[PackageEntry]) -> Iterator[str]:
    """Yield the tables of *section*: one for each entry, in arrays where a name has several."""
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
        yield '#why = ""'  # for the author to fill: an empty one is a fault, none is a gap


def _specifier(specifiers: SpecifierSet) -> str:
    """Return the clauses as people write them: the lower bound first."""
    order = ["===", "==", "~=", ">", ">=", "<", "<=", "!="]

    def place(one: Specifier) -> tuple[int, str]:
        return order.index(one.operator), str(one)

    return ",".join(map(str, sorted(specifiers, key=place)))
