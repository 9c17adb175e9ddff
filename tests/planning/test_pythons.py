"""What else would take a stack: only what may be true."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.version import Version
from colablock.matrix.model import Matrix
from colablock.planning.pythons import alternatives
from colablock.runtimes.document import RecordedRuntime
from tests.support.dict_source import entries

PYTHONS = ("3.13", "3.12", "3.11", "3.10")


def matrix(name: str, requires_python: str) -> Matrix:
    return Matrix(name=name, source=f"{name}.toml", digest="0", requires_python=SpecifierSet(requires_python))


def runtime(label: str, python: str) -> RecordedRuntime:
    return RecordedRuntime(
        name=f"colab-{label}-gpu",
        label=label,
        flavour="gpu",
        python_version=python,
        date="2026-01-01",
        commit="0",
        distributions=1,
        unknown=0,
    )


IMAGES = [
    runtime("2026.08", "3.13.15"),
    runtime("2026.07", "3.12.13"),
    runtime("2026.04", "3.12.13"),
    runtime("2025.10", "3.12.12"),
    runtime("2025.07", "3.11.13"),
]
NEWER = matrix("newer", ">=3.12")


@pytest.mark.parametrize(
    ("requires_python", "python", "expected"),
    [
        (
            ">=3.10,<3.13",
            "3.13.15",
            (
                "`--into env` makes an isolated environment with Python 3.12 or 3.11; "
                "the runtime version 2026.07, 2026.04 or 2025.10 has Python 3.12.13 or 3.12.12; "
                "`newer` admits Python 3.13"
            ),
        ),
        (
            ">=3.10",
            "3.13.15",
            (
                "`--into env` makes an isolated environment with Python 3.12 or 3.11; "
                "the runtime version 2026.07, 2026.04 or 2025.10 has Python 3.12.13 or 3.12.12; "
                "`newer` admits Python 3.13"
            ),
        ),
        (
            "==3.11.*",
            "3.12.13",
            (
                "`--into env` makes an isolated environment with Python 3.11; "
                "the runtime version 2025.07 has Python 3.11.13; `newer` admits Python 3.12"
            ),
        ),
        ("==3.10.*", "3.11.13", "`--into env` makes an isolated environment with Python 3.10"),
        ("==3.13.*", "3.13.15", "`newer` admits Python 3.13"),
        ("", "3.11.13", None),
        (">=3.14", "3.11.13", None),
    ],
)
def test_alternatives_are_only_for_another_python(
    requires_python: str, python: str, expected: str | None
) -> None:
    asked = matrix("asked", requires_python)
    found = alternatives(
        asked,
        Version(python),
        in_kernel=True,
        pythons=PYTHONS,
        runtimes=IMAGES,
        others=[asked, NEWER, matrix("any", "")],
    )
    assert found == expected


def test_an_isolated_environment_gets_no_advice_about_kernels() -> None:
    asked = matrix("asked", "<3.13")
    said = alternatives(
        asked, Version("3.13.0"), in_kernel=False, pythons=PYTHONS, runtimes=IMAGES, others=[NEWER]
    )
    assert said == "`newer` admits Python 3.13"


@pytest.mark.parametrize(
    ("other", "is_named"),
    [
        (("torch", "trl"), True),
        (("torch", "scipy"), True),
        (("torch",), False),
        (("pandas",), False),
        ((), False),
    ],
)
def test_a_matrix_that_asks_for_other_packages_is_no_alternative(
    other: tuple[str, ...], is_named: bool
) -> None:
    asked = replace(matrix("asked", "<3.13"), packages=entries("torch", "trl", "scipy"))
    newer = replace(NEWER, packages=entries(*other))
    said = alternatives(asked, Version("3.13.0"), in_kernel=False, pythons=PYTHONS, others=[newer])
    assert (said is not None) is is_named


def test_a_pre_release_of_python_counts_as_its_series() -> None:
    said = alternatives(
        matrix("m", "<3.13"), Version("3.13.1rc1"), in_kernel=False, pythons=PYTHONS, others=[NEWER]
    )
    assert said == "`newer` admits Python 3.13"
