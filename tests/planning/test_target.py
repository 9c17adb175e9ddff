"""Where a plan goes, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.notebook_host import Host
from colablock.environment.snapshot import Installed, Snapshot
from colablock.index.candidates import Candidate, CandidateOrigin, File
from colablock.matrix.model import PackageEntry
from colablock.planning.plan import Action, Breakage, Plan, Remedy, Step, Target
from colablock.planning.pythons import PythonCandidate, best_python
from colablock.planning.target import (
    build_note,
    fetch_size,
    has_preferred_builds,
    is_kernel,
    why_not_kernel,
)
from colablock.resolver.model import Pin, Request, Resolution
from tests.support.dict_source import PYTHON_312

MB = 1_000_000
TORCH = NormalizedName("torch")
ANYWHERE = "in find-links or an index"
PREFERRED = PackageEntry(name=TORCH, path="packages.torch", prefer_local="cpu")


def resolution(*pins: Pin) -> Resolution:
    return Resolution(
        request=Request(environment=PYTHON_312, roots=()),
        pins={pin.name: pin for pin in pins},
        released={},
    )


def pin(
    name: str, version: str, size: int | None, index: str | None = "https://index.example/simple/"
) -> Pin:
    file = File(filename=f"{name}-{version}-py3-none-any.whl", url="", size=size, index=index)
    candidate = Candidate(
        name=canonicalize_name(name), version=Version(version), origin=CandidateOrigin.INDEX, files=(file,)
    )
    return Pin(name=candidate.name, candidate=candidate)


def there(name: str, version: str) -> Pin:
    found = Installed(name=canonicalize_name(name), version=version)
    candidate = Candidate(
        name=found.name, version=Version(version), origin=CandidateOrigin.INSTALLED, installed=found
    )
    return Pin(name=found.name, candidate=candidate)


def candidate(python: str, size: int, *, running: bool = False, fetched: bool = False) -> PythonCandidate:
    return PythonCandidate(
        python="" if fetched else f"/usr/bin/python{python}",
        environment=environment_for(python, "manylinux_2_35_x86_64"),
        resolution=resolution(pin("torch", "2.8", size)),
        running=running,
    )


@pytest.mark.parametrize(
    ("candidates", "expected", "why"),
    [
        (
            [candidate("3.12.1", 900 * MB, running=True)],
            "3.12.1",
            "Python 3.12.1 is the one that runs here",
        ),
        (
            [candidate("3.12.1", 900 * MB), candidate("3.11.7", 900 * MB, running=True)],
            "3.11.7",
            "Python 3.11.7 is the one that runs here",
        ),
        (
            [candidate("3.10.2", 900 * MB), candidate("3.12.1", 950 * MB), candidate("3.11.7", 900 * MB)],
            "3.12.1",
            "Python 3.12.1 is the newest installed one that fits",
        ),
        (
            [
                candidate("3.12.1", 5200 * MB, running=True),
                candidate("3.11.7", 300 * MB),
                candidate("3.10.2", 4100 * MB),
            ],
            "3.11.7",
            "Python 3.11.7 needs the smallest files, 300 MB in all (others: 3.12 5.2 GB, 3.10 4.1 GB)",
        ),
        (
            [candidate("3.13.0", 900 * MB, fetched=True), candidate("3.11.7", 900 * MB)],
            "3.11.7",
            "Python 3.11.7 is the newest installed one that fits",
        ),
        (
            [candidate("3.12.1", 0), candidate("3.11.7", 0)],
            "3.12.1",
            "Python 3.12.1 is the newest installed one that fits",
        ),
    ],
    ids=["only", "running", "newest", "smallest", "at hand", "sizes unknown"],
)
def test_the_best_python_is_chosen_with_a_reason(
    candidates: Sequence[PythonCandidate], expected: str, why: str
) -> None:
    best, reason = best_python(candidates)
    assert str(best.version) == expected
    assert reason == why


def test_a_fetched_python_is_not_at_hand() -> None:
    assert (
        best_python([candidate("3.12.0", MB, fetched=True)])[1]
        == "Python 3.12.0 fits, and is downloaded first"
    )


def test_the_order_of_the_candidates_does_not_matter() -> None:
    candidates = [
        candidate("3.12.1", 900 * MB),
        candidate("3.11.7", 300 * MB),
        candidate("3.10.2", 310 * MB, running=True),
    ]
    assert best_python(candidates)[0] == best_python(candidates[::-1])[0] == candidates[2]


def test_the_fetch_size_sums_known_file_sizes() -> None:
    assert fetch_size(resolution(pin("a", "1", 10), pin("b", "1", None), there("c", "1"))) == 10


@pytest.mark.parametrize("host", Host)
def test_only_a_notebook_kernel_is_changed_by_default(host: Host) -> None:
    snapshot = Snapshot(environment=PYTHON_312, python="", prefix="", site="", installed={}, host=host)
    assert is_kernel(snapshot, named=True)
    assert is_kernel(snapshot, named=False) == (host is not Host.PLAIN)


def plan(
    restart: Mapping[str, tuple[str, ...]] | None = None, broken: Sequence[str] = (), **facts: Any
) -> Plan:
    return Plan(
        matrix="m",
        matrix_digest="0",
        variant=None,
        target=Target.KERNEL,
        why_target="",
        python="",
        python_version="3.12.11",
        restart={canonicalize_name(name): modules for name, modules in (restart or {}).items()},
        breakages=tuple(
            Breakage(
                name=canonicalize_name(name),
                version="1",
                requirement="x",
                direct=True,
                because=(),
                remedy=Remedy.LEAVE,
            )
            for name in broken
        ),
        **facts,
    )


REMOVAL = Step(action=Action.REMOVE, name=canonicalize_name("torchao"), reason="[absent]", previous="0.10")


@pytest.mark.parametrize(
    ("made", "harm"),
    [
        (plan(), None),
        (plan(steps=(REMOVAL,)), None),
        (plan({"numpy": ("numpy",)}), "numpy would change while loaded, which takes a restart"),
        (plan(broken=["b", "a"]), "a, b would break"),
        (plan(broken=list("dcba")), "4 distributions (a, b, c, ...) would break"),
        (
            plan({"numpy": (), "pandas": ()}, broken=["a"]),
            "numpy, pandas would change while loaded, which takes a restart",
        ),
    ],
)
def test_reasons_keep_a_plan_out_of_the_kernel(made: Plan, harm: str | None) -> None:
    assert why_not_kernel(made) == harm
    need = "torch 2 needs cuda-toolkit==13, and no version can replace it"
    assert why_not_kernel(made, (need,)) == (harm if made.restart else need)


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (
            pin("torch", "2.8.0+cpu", 180 * MB, "https://me:s3cret@a.example/whl/cpu"),
            "torch 2.8.0+cpu is a `+cpu` build from https://a.example/whl/cpu: 180 MB",
        ),
        (
            pin("torch", "2.8.0+cpu.1", 180 * MB, None),
            "torch 2.8.0+cpu.1 is a `+cpu` build from find-links: 180 MB",
        ),
        (
            pin("torch", "2.8.0", 880 * MB),
            (
                "no `+cpu` build of torch for Python 3.12 was found in find-links or an index:"
                " torch 2.8.0 is the build of https://index.example/simple/,"
                " and all files together have 1.8 GB"
            ),
        ),
        (there("torch", "2.8.0+cu128"), None),
    ],
)
def test_the_chosen_local_build_is_noted(found: Pin, note: str | None) -> None:
    whole = resolution(found, pin("nvidia-cublas", "1", 900 * MB))
    assert build_note(whole, PREFERRED, ANYWHERE) == note
    assert has_preferred_builds(whole, [PREFERRED]) == (note is None or not note.startswith("no "))


def test_no_note_without_a_preferred_build() -> None:
    entry = PackageEntry(name=TORCH, path="packages.torch")
    assert build_note(resolution(pin("torch", "2.8.0", 1)), entry, ANYWHERE) is None
    assert build_note(resolution(), PREFERRED, ANYWHERE) is None
    assert has_preferred_builds(resolution(pin("torch", "2.8.0", 1)), [entry])


def test_a_preferred_build_that_does_not_fit_is_not_said_to_be_missing() -> None:
    cause = "it does not fit, because torch 2.9.0+cpu needs `setuptools>=77` and setuptools 66 is protected"
    whole = replace(resolution(pin("torch", "2.8.0", 880 * MB)), unused={TORCH: ("torch 2.9.0+cpu", cause)})
    note = build_note(whole, PREFERRED, ANYWHERE)
    assert note is not None
    assert note.startswith(f"not using torch 2.9.0+cpu, a `+cpu` build: {cause}; torch 2.8.0 is the build")
