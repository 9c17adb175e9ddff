"""Recorded runtimes: what public notebook images had installed, as snapshots."""

from __future__ import annotations

import difflib
import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.accelerator import Accelerator, cuda_of_driver
from colablock.environment import environment_for
from colablock.errors import NotFound
from colablock.requirements import parse_requirement
from colablock.snapshot import Host, Installed, Snapshot, protected_names

__all__ = [
    "RecordedDistribution",
    "RecordedRuntime",
    "load_runtime",
    "recorded_distributions",
    "runtime_names",
    "runtime_of",
    "runtimes",
]

#: Ubuntu 22.04, which all the images have been built on, has glibc 2.35.
_PLATFORM = "manylinux_2_35_x86_64"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRuntime:
    """One recorded image.  *unknown* counts the distributions whose requirements are not recorded."""

    name: str  # colab-2026.08-gpu
    label: str  # 2026.08, as the host's own version menu has it
    flavour: str  # cpu or gpu
    python_version: str
    date: str  # of the commit
    commit: str  # of googlecolab/backend-info
    distributions: int
    unknown: int
    torch: str | None = None
    cuda_toolkit: str | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDistribution:
    """One line of an image's freeze, with its metadata where that is known."""

    spelled: str  # the name as the freeze has it
    url: str | None
    installed: Installed
    is_known: bool


def runtime_names() -> list[str]:
    """Return the names of the recorded runtimes, oldest first."""
    return [_name(entry) for entry in _data()["runtimes"]]


def runtimes() -> tuple[RecordedRuntime, ...]:
    """Return the recorded runtimes, oldest first."""
    return tuple(_describe(entry, recorded_distributions(_name(entry))) for entry in _data()["runtimes"])


def load_runtime(name: str) -> Snapshot:
    """Return the snapshot of a recorded runtime.  Raises NotFound.

    It is the image before anything ran: no module is loaded, and of the
    accelerator only the driver is known.
    """
    entry = _entry(name)
    distributions = recorded_distributions(name)
    about = _describe(entry, distributions)
    installed = {item.installed.name: item.installed for item in distributions}
    environment = environment_for(about.python_version, _PLATFORM)
    accelerator = Accelerator()
    if about.flavour == "gpu":
        cuda = cuda_of_driver(about.driver) if about.driver else None
        accelerator = Accelerator(kind="cuda", driver=about.driver, cuda=cuda, source="recorded")
    return Snapshot(
        environment=environment,
        python="",
        prefix="/usr",
        site=f"/usr/local/lib/python{environment.short}/dist-packages",
        installed=installed,
        shared=_shared(installed),
        protected=protected_names(installed, environment, Host.COLAB),
        accelerator=accelerator,
        host=Host.COLAB,
        source=name,
        date=about.date,
        notes=(
            f"recorded from googlecolab/backend-info {about.commit[:7]} of {about.date}",
            f"requirements are known for {len(installed) - about.unknown} of {len(installed)} distributions",
        ),
    )


def runtime_of(snapshot: Snapshot) -> str | None:
    """Return the name of the recorded runtime that *snapshot* is, untouched; None where it is none.

    colablock and what was installed for it may stand there beside the image's
    own.  Of two images with the same distributions the accelerator decides.
    """
    flavour = "gpu" if snapshot.accelerator.kind == "cuda" else "cpu"
    entries = sorted(_data()["runtimes"], key=lambda entry: bool(entry["flavour"] != flavour))
    return next((_name(entry) for entry in entries if _is_image(snapshot, entry)), None)


@lru_cache(maxsize=4)
def recorded_distributions(name: str) -> tuple[RecordedDistribution, ...]:
    """Return what the runtime *name* has installed, sorted by name.  Raises NotFound."""
    entry = _entry(name)
    bit = 1 << _data()["runtimes"].index(entry)
    found = [
        _distribution(line, version, entry["label"]) for line, version, mask in _data()["pins"] if mask & bit
    ]
    return tuple(sorted(found, key=lambda item: item.installed.name))


@lru_cache(maxsize=1)
def _data() -> Mapping[str, Any]:
    packed = (files("colablock") / "runtimes" / "runtimes.json.gz").read_bytes()
    data: Mapping[str, Any] = json.loads(gzip.decompress(packed))
    return data


def _name(entry: Mapping[str, Any]) -> str:
    return f"colab-{entry['label']}-{entry['flavour']}"


def _entry(name: str) -> Mapping[str, Any]:
    for entry in _data()["runtimes"]:
        if _name(entry) == name:
            found: Mapping[str, Any] = entry
            return found
    near = difflib.get_close_matches(name, runtime_names(), n=3)
    hint = f"did you mean {', '.join(f'`{item}`' for item in near)}" if near else None
    message = f"no runtime is recorded as `{name}`"
    raise NotFound(message, hint=hint or f"recorded ones are {', '.join(runtime_names())}")


def _is_image(snapshot: Snapshot, entry: Mapping[str, Any]) -> bool:
    if str(entry["python"]).rpartition(".")[0] != snapshot.environment.short:
        return False
    installed = {name: there.version for name, there in snapshot.installed.items()}
    found = recorded_distributions(_name(entry))
    image = {item.installed.name: item.installed.version for item in found}
    is_whole = all(installed.get(name) == version for name, version in image.items())
    more = installed.keys() - image.keys()
    return is_whole and more <= _needed_by(canonicalize_name("colablock"), snapshot)


def _needed_by(name: NormalizedName, snapshot: Snapshot) -> frozenset[NormalizedName]:
    """Return *name* and all that its requirements lead to, markers not asked."""
    found: set[NormalizedName] = set()
    pending = [name]
    while pending:
        one = pending.pop()
        if one not in found and one in snapshot.installed:
            found.add(one)
            parsed = map(parse_requirement, snapshot.installed[one].requires)
            pending += [canonicalize_name(requirement.name) for requirement in parsed if requirement]
    return frozenset(found)


def _describe(entry: Mapping[str, Any], distributions: tuple[RecordedDistribution, ...]) -> RecordedRuntime:
    return RecordedRuntime(
        name=_name(entry),
        label=entry["label"],
        flavour=entry["flavour"],
        python_version=entry["python"],
        date=entry["date"],
        commit=entry["commit"],
        distributions=len(distributions),
        unknown=sum(not item.is_known for item in distributions),
        torch=entry.get("torch"),
        cuda_toolkit=entry.get("cuda_toolkit"),
        driver=entry.get("driver"),
    )


def _distribution(line: str, version: str, label: str) -> RecordedDistribution:
    spelled, at, rest = line.partition(" @ ")
    if not at:
        spelled = line.partition("==")[0]
    name = canonicalize_name(spelled)
    known = _data()["records"].get(f"{name} @ {rest}" if at else f"{name}=={version}")
    record = known or {}
    record = {**record, **record.get("by_label", {}).get(label, {})}
    return RecordedDistribution(
        spelled=spelled,
        url=rest or None,
        is_known=known is not None,
        installed=Installed(
            name=name,
            version=version,
            requires=tuple(record.get("requires_dist", ())),
            requires_python=record.get("requires_python"),
            extras=tuple(record.get("provides_extra", ())),
            import_names=tuple(record.get("import_names", ())),
            direct_url=_direct_url(rest) if at else None,
            installer="pip",
            size=record.get("size"),
            is_known=known is not None,
        ),
    )


def _direct_url(url: str) -> dict[str, object]:
    """Return the origin (PEP 610) that ``pip freeze`` showed as *url*."""
    if url.startswith("git+"):
        repository, _, commit = url.removeprefix("git+").rpartition("@")
        return {"url": repository, "vcs_info": {"vcs": "git", "commit_id": commit}}
    base, _, fragment = url.partition("#")
    digest = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    return {"url": base, "archive_info": {"hashes": {"sha256": digest[1]}} if digest else {}}


def _shared(installed: Mapping[NormalizedName, Installed]) -> dict[NormalizedName, frozenset[NormalizedName]]:
    """Return who shares files with whom, as far as both are installed."""
    found = {}
    for group in _data()["shared"]:
        names = {canonicalize_name(name) for name in group} & installed.keys()
        if len(names) > 1:
            found.update({name: frozenset(names - {name}) for name in names})
    return found
