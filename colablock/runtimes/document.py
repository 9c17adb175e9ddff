"""The recorded runtime and its JSON document (schema 1).

The document is written to be read in a diff: sorted, one distribution a line.
``docs/how-to/record-a-runtime.md`` describes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

from colablock._common.limits import SHOWN
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name, is_normalized_name
from colablock.environment.direct_url import from_freeze
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.notebook_host import Host
from colablock.environment.snapshot import Installed, is_version
from colablock.errors import Fault, InvalidInput, fault_lines

__all__ = [
    "PLATFORM",
    "RecordedDistribution",
    "RecordedRuntime",
    "Recording",
    "check_name",
    "is_date",
    "read_document",
    "recording_of",
    "write_document",
]

SCHEMA = 1
#: Ubuntu 22.04, which all the images have been built on, has glibc 2.35.
PLATFORM = "manylinux_2_35_x86_64"

_HOSTS = tuple(host.value for host in Host)
_FLAVOURS = ("cpu", "gpu")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEAD = {
    "name": str,
    "host": str,
    "flavour": str,
    "label": str,
    "date": str,
    "python": str,
    "platform": str,
    "driver": str,
    "cuda_toolkit": str,
    "source": str,
    "commit": str,
}
_NEEDED = ("name", "host", "flavour", "date", "python")
_LINE = {
    "name": str,
    "version": str,
    "url": str,
    "requires": list,
    "requires_python": str,
    "extras": list,
    "import_names": list,
    "size": int,
    "requires_of": str,
}
_WORDS = {str: "text", list: "a list of texts", int: "a number"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRuntime:
    """One recorded image.  *unknown* counts the distributions whose requirements are not recorded."""

    name: str  # colab-2026.08-gpu
    flavour: str  # cpu or gpu
    python_version: str
    date: str  # date of the image: YYYY-MM-DD
    distributions: int
    unknown: int
    host: Host = Host.COLAB
    label: str = ""  # 2026.08, as in the host's version menu
    commit: str = ""  # commit of googlecolab/backend-info
    source: str = ""  # origin of the recording, as text
    file: str | None = None  # None: shipped
    platform: str = PLATFORM
    torch: str | None = None
    cuda_toolkit: str | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDistribution:
    """One line of an image's freeze, with its metadata if known.

    *requires_of* names the release whose requirements stand in for those of a
    build with a local label, CUDA libraries left out.
    """

    spelled: str  # the name as in the freeze
    url: str | None
    installed: Installed
    is_known: bool
    requires_of: str | None = None

    @property
    def line(self) -> str:
        """The line of ``pip freeze``."""
        version = self.installed.version
        equals = "==" if is_version(version) else "==="
        return f"{self.spelled} @ {self.url}" if self.url else f"{self.spelled}{equals}{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A whole recording: *distributions* by name; *shared* are the groups that own the same files."""

    about: RecordedRuntime
    distributions: tuple[RecordedDistribution, ...]
    shared: tuple[frozenset[NormalizedName], ...] = ()


def recording_of(
    about: RecordedRuntime,
    distributions: tuple[RecordedDistribution, ...],
    shared: tuple[frozenset[NormalizedName], ...] = (),
) -> Recording:
    """Return the recording of *distributions*, which *about* then counts."""
    ordered = tuple(sorted(distributions, key=lambda item: item.installed.name))
    versions = {item.installed.name: item.installed.version for item in ordered}
    about = replace(
        about,
        distributions=len(ordered),
        unknown=sum(not item.is_known for item in ordered),
        torch=versions.get(canonicalize_name("torch")),
    )
    together = (group & versions.keys() for group in shared)
    return Recording(
        about=about,
        distributions=ordered,
        shared=tuple(sorted((frozenset(group) for group in together if len(group) > 1), key=sorted)),
    )


def check_name(name: str) -> None:
    """Raise InvalidInput if *name* cannot be a runtime's, which is also its file name."""
    if not _NAME.fullmatch(name):
        message = f"`{name}` is not a valid name for a runtime"
        raise InvalidInput(message, hint="use letters, digits, `.`, `_` and `-`, as in `kaggle-2026.10-gpu`")


def is_date(text: str) -> bool:
    """Whether *text* is a date in the form YYYY-MM-DD, which sorts as text."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


# Writing


def write_document(recording: Recording) -> str:
    """Return the document of *recording*; equal recordings give equal bytes."""
    about = recording.about
    head = {
        "schema": SCHEMA,
        "name": about.name,
        "host": about.host.value,
        "flavour": about.flavour,
        "label": about.label,
        "date": about.date,
        "python": about.python_version,
        "platform": about.platform,
        "driver": about.driver,
        "cuda_toolkit": about.cuda_toolkit,
        "source": about.source,
        "commit": about.commit,
    }
    lines = [f'  "{key}": {_json(value)}' for key, value in head.items() if value]
    if recording.shared:
        lines.append(f'  "shared": {_json([sorted(group) for group in recording.shared])}')
    below = ",\n".join(f"    {_json(_line_of(item))}" for item in recording.distributions)
    lines.append(f'  "distributions": [\n{below}\n  ]' if below else '  "distributions": []')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line_of(item: RecordedDistribution) -> dict[str, object]:
    """Return one distribution; without ``requires`` its requirements are unknown, [] means it has none."""
    installed = item.installed
    found: dict[str, object] = {"name": item.spelled, "version": installed.version}
    found |= {"url": item.url} if item.url else {}
    if item.is_known:
        found["requires"] = list(installed.requires)
    more: dict[str, object] = {
        "requires_of": item.requires_of,
        "requires_python": installed.requires_python,
        "extras": list(installed.extras),
        "import_names": list(installed.import_names),
        "size": installed.size,
    }
    return found | {key: value for key, value in more.items() if value}


# Reading


def read_document(text: str, file: str | None) -> Recording:
    """Return the recording that *text*, the contents of *file*, holds.  Raises InvalidInput with all faults.

    *file* is None for a document that is shipped.
    """
    what = file or "a shipped runtime"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"`{what}` is not JSON: {str(error)[:SHOWN]}"
        raise InvalidInput(message) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        schema = data.get("schema") if isinstance(data, dict) else None
        message = f"`{what}` is not a recorded runtime of schema {SCHEMA}"
        hint = None if schema is None else f"it is one of schema {schema}, which this colablock does not read"
        raise InvalidInput(message, hint=hint)
    faults = list(_faults(data))
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [f"the recorded runtime `{what}` has {count}", *fault_lines(faults)]
        raise InvalidInput("\n".join(lines), hint="`colablock runtime import` and `record` write such files")
    return _recording(data, file)


def _recording(data: Mapping[str, Any], file: str | None) -> Recording:
    """Return the recording of a valid document."""
    about = RecordedRuntime(
        name=data["name"],
        flavour=data["flavour"],
        python_version=data["python"],
        date=data["date"],
        distributions=0,
        unknown=0,
        host=Host(data["host"]),
        label=data.get("label", ""),
        commit=data.get("commit", ""),
        source=data.get("source", ""),
        file=file,
        platform=data.get("platform", PLATFORM),
        cuda_toolkit=data.get("cuda_toolkit"),
        driver=data.get("driver"),
    )
    shared = (frozenset(map(canonicalize_name, group)) for group in data.get("shared", ()))
    return recording_of(about, tuple(map(_distribution, data["distributions"])), tuple(shared))


def _distribution(line: Mapping[str, Any]) -> RecordedDistribution:
    is_known = "requires" in line
    url = line.get("url")
    return RecordedDistribution(
        spelled=line["name"],
        url=url,
        is_known=is_known,
        requires_of=line.get("requires_of"),
        installed=Installed(
            name=canonicalize_name(line["name"]),
            version=line["version"],
            requires=tuple(line.get("requires", ())),
            requires_python=line.get("requires_python"),
            extras=tuple(line.get("extras", ())),
            import_names=tuple(line.get("import_names", ())),
            direct_url=from_freeze(url) if url else None,
            installer="pip",
            size=line.get("size"),
            is_known=is_known,
        ),
    )


def _faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the faults of a document, in the order of its parts."""
    head = {key: value for key, value in data.items() if key not in {"schema", "shared", "distributions"}}
    wrong = list(_key_faults(head, _HEAD, _NEEDED, ""))
    yield from wrong
    if not wrong:
        yield from _value_faults(head)
    shared = data.get("shared", [])
    if not isinstance(shared, list) or not all(_is_texts(group) for group in shared):
        yield Fault(path="shared", message="must be a list of lists of names")
    lines = data.get("distributions")
    if not isinstance(lines, list):
        yield Fault(path="distributions", message="must be a list")
        return
    first: dict[str, int] = {}
    for place, line in enumerate(lines):
        where = f"distributions[{place}]"
        if not isinstance(line, dict):
            yield Fault(path=where, message="must be an object")
            continue
        wrong = list(_key_faults(line, _LINE, ("name", "version"), f"{where}."))
        yield from wrong
        if wrong:
            continue
        name = canonicalize_name(line["name"])
        if not is_normalized_name(name):
            yield Fault(path=f"{where}.name", message=f"`{line['name']}` is not a valid project name")
        elif first.setdefault(name, place) != place:
            yield Fault(path=f"{where}.name", message=f"`{name}` is distributions[{first[name]}] already")


def _key_faults(
    found: Mapping[str, Any], known: Mapping[str, type], needed: tuple[str, ...], where: str
) -> Iterator[Fault]:
    for key in needed:
        if key not in found:
            yield Fault(path=f"{where}{key}", message="is missing")
    for key, value in found.items():
        kind = known.get(key)
        if kind is None:
            yield Fault(path=f"{where}{key}", message="is not a key of this schema")
        elif type(value) is not kind or (kind is list and not _is_texts(value)):
            yield Fault(path=f"{where}{key}", message=f"must be {_WORDS[kind]}")


def _value_faults(head: Mapping[str, str]) -> Iterator[Fault]:
    for key, allowed in (("host", _HOSTS), ("flavour", _FLAVOURS)):
        if head[key] not in allowed:
            yield Fault(path=key, message=f"`{head[key]}` is none of {', '.join(allowed)}")
    if not _NAME.fullmatch(head["name"]):
        yield Fault(path="name", message=f"`{head['name']}` is not a valid name for a runtime")
    if not is_date(head["date"]):
        yield Fault(path="date", message=f"`{head['date']}` is not a date", hint="write it as `2026-08-19`")
    if not is_version(head["python"]):
        yield Fault(path="python", message=f"`{head['python']}` is not a Python version")
        return
    yield from _target_faults("python", head["python"], PLATFORM)
    yield from _target_faults("platform", "3.12", head.get("platform", PLATFORM))


def _target_faults(key: str, python: str, platform: str) -> Iterator[Fault]:
    try:
        environment_for(python, platform)
    except InvalidInput as error:
        yield Fault(path=key, message=str(error), hint=error.hint)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
