from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from colablock._vendor.packaging.direct_url import VcsInfo
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.tags import Tag
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.direct_url import archive_sha256
from colablock.environment.notebook_host import Host
from colablock.environment.snapshot import Installed, fingerprint, snapshot_of
from colablock.errors import NotFound
from colablock.runtimes.catalog import (
    load_runtime,
    recorded_distributions,
    runtime_names,
    runtime_of,
    runtimes,
)
from tests.support.paths import ROOT
from tests.support.runtime import build_runtime, find_python

pytestmark = pytest.mark.stdlib

LABELS = ["2025.07", "2025.09", "2025.10", "2026.01", "2026.04", "2026.07", "2026.08"]

COUNTS = [
    # name, Python, distributions, unknown requirements, torch, driver
    ("colab-2025.09-gpu", "3.12.11", 671, 40, "2.8.0+cu126", None),
    ("colab-2026.07-gpu", "3.12.13", 704, 26, "2.11.0+cu128", "580.82.07"),
    ("colab-2026.08-gpu", "3.13.15", 703, 26, "2.11.0+cu128", "580.82.07"),
    ("colab-2026.08-cpu", "3.13.15", 641, 23, "2.11.0+cpu", None),
]


def test_every_label_has_both_flavours() -> None:
    assert runtime_names() == [f"colab-{label}-{flavour}" for label in LABELS for flavour in ("cpu", "gpu")]
    assert [runtime.name for runtime in runtimes()] == runtime_names()


@pytest.mark.parametrize("expected", COUNTS, ids=[case[0] for case in COUNTS])
def test_a_runtime_has_its_recorded_facts(expected: tuple[str, str, int, int, str, str | None]) -> None:
    name, python, count, unknown, torch, driver = expected
    (about,) = [runtime for runtime in runtimes() if runtime.name == name]
    assert (about.python_version, about.distributions, about.unknown) == (python, count, unknown)
    assert (about.torch, about.driver) == (torch, driver)
    snapshot = load_runtime(name)
    assert len(snapshot.installed) == count
    assert snapshot.installed[canonicalize_name("torch")].version == torch
    assert snapshot.accelerator.driver == driver
    assert snapshot.date == about.date
    assert about.commit[:7] in snapshot.notes[0]
    assert f"{count - unknown} of {count}" in snapshot.notes[1]


def test_load_runtime_returns_a_snapshot() -> None:
    snapshot = load_runtime("colab-2026.08-gpu")
    assert (snapshot.source, snapshot.host, snapshot.python) == ("colab-2026.08-gpu", Host.COLAB, "")
    assert (snapshot.prefix, snapshot.site) == ("/usr", "/usr/local/lib/python3.13/dist-packages")
    assert snapshot.environment.python_version == Version("3.13.15")
    assert Tag("cp313", "cp313", "manylinux_2_35_x86_64") in snapshot.environment.tags
    assert (snapshot.accelerator.kind, snapshot.accelerator.devices) == ("cuda", ())
    assert snapshot.accelerator.source == "recorded"
    assert load_runtime("colab-2026.08-cpu").accelerator.kind == "none"


def test_requirements_are_those_of_the_recorded_release() -> None:
    installed = load_runtime("colab-2026.08-gpu").installed
    transformers = installed[canonicalize_name("transformers")]
    assert "tokenizers" in {Requirement(line).name for line in transformers.requires}
    assert transformers.import_names == ("transformers",)
    assert "torch" in transformers.extras
    assert (transformers.size or 0) > 10_000_000


@pytest.mark.parametrize("name", runtime_names())
def test_google_colab_pins_what_its_image_has(name: str) -> None:
    snapshot = load_runtime(name)
    pins = [Requirement(line) for line in snapshot.installed[canonicalize_name("google-colab")].requires]
    assert len(pins) == 9
    for pin in pins:
        installed = snapshot.installed[canonicalize_name(pin.name)]
        assert pin.specifier.contains(installed.version, prereleases=True)
        assert installed.name in snapshot.protected
    assert {"google-colab", "ipykernel", "jupyter-client", "traitlets", "pyzmq"} <= snapshot.protected
    assert "torch" not in snapshot.protected


@pytest.mark.parametrize("name", runtime_names())
def test_every_version_and_requirement_of_a_runtime_parses(name: str) -> None:
    for item in recorded_distributions(name):
        Version(item.installed.version)
        for line in item.installed.requires:
            Requirement(line)


@pytest.mark.parametrize("name", runtime_names())
def test_an_unchanged_image_is_identified(name: str) -> None:
    image = load_runtime(name)
    assert runtime_of(image) == name
    ours = {
        canonicalize_name(one): Installed(name=canonicalize_name(one), version="1", requires=requires)
        for one, requires in (("colablock", ("Brand-New>=1",)), ("brand-new", ()))
    }
    assert runtime_of(replace(image, installed={**ours, **image.installed})) == name
    torch = image.installed[canonicalize_name("torch")]
    for touched in (
        {key: value for key, value in image.installed.items() if key != "torch"},
        {**image.installed, torch.name: replace(torch, version="0.1")},
        {**image.installed, canonicalize_name("brand-new"): ours[canonicalize_name("brand-new")]},
    ):
        assert runtime_of(replace(image, installed=touched)) is None


def test_direct_urls_are_kept() -> None:
    installed = load_runtime("colab-2026.08-gpu").installed
    gateway = installed[canonicalize_name("jupyter-kernel-gateway")].direct_url
    assert gateway is not None
    assert gateway.vcs_info == VcsInfo(vcs="git", commit_id="b134e9945df25c2dcb98ade9129399be10788671")
    assert gateway.url == "https://github.com/googlecolab/kernel_gateway"
    model = installed[canonicalize_name("en-core-web-sm")]
    assert model.version == "3.8.0"
    assert (archive_sha256(model.direct_url) or "").startswith("1932429d")
    assert installed[canonicalize_name("numpy")].direct_url is None


def test_builds_that_share_files_are_known() -> None:
    shared = load_runtime("colab-2025.09-gpu").shared
    assert shared[canonicalize_name("opencv-python")] == {
        "opencv-contrib-python",
        "opencv-python-headless",
    }
    assert len(shared) == 3


def test_an_unknown_runtime_is_refused_with_near_names() -> None:
    with pytest.raises(NotFound) as raised:
        load_runtime("colab-2026.8-gpu")
    assert "`colab-2026.08-gpu`" in (raised.value.hint or "")
    with pytest.raises(NotFound) as raised:
        load_runtime("?")
    assert "colab-2025.07-cpu" in (raised.value.hint or "")


@pytest.mark.parametrize("name", ["colab-2025.09-gpu", "colab-2026.08-gpu"])
def test_the_snapshot_of_a_stand_in_equals_the_recording(name: str, tmp_path: Path) -> None:
    recorded = load_runtime(name)
    python = find_python(recorded.environment.short)
    if python is None:
        pytest.skip(f"there is no Python {recorded.environment.short} here")
    site = build_runtime(name, tmp_path / "venv", python)
    live = snapshot_of(tmp_path / "venv", environ=os.environ)
    assert Path(live.site) == site
    assert fingerprint(live) == fingerprint(recorded)
    assert live.shared == recorded.shared
    for key, expected in recorded.installed.items():
        found = live.installed[key]
        assert (found.requires, found.requires_python) == (expected.requires, expected.requires_python)
        assert found.extras == expected.extras


def test_a_stand_in_needs_the_python_of_the_runtime(tmp_path: Path) -> None:
    other = next((python for minor in ("3.10", "3.11", "3.12") if (python := find_python(minor))), None)
    if other is None:
        pytest.skip("there is no other Python here")
    with pytest.raises(ValueError, match=r"has Python 3\.13"):
        build_runtime("colab-2026.08-gpu", tmp_path / "venv", other)


INDEX = """
[[runtime]]
label = "2030.01"
flavour = "gpu"
path = "colab/2030.01/gpu"
python = "3.15.1"
ubuntu = "24.04"
commit = "0123456789abcdef"
date = 2030-01-02
torch = "9.0+cu200"
driver = "600.1"

[[runtime]]
label = "2030.01"
flavour = "tpu"
path = "colab/2030.01/tpu"
python = "3.15.1"
ubuntu = "24.04"
commit = "0123456789abcdef"
date = 2030-01-02
"""
URL = "https://files.example/beta-2.0%2Bcpu-py3-none-any.whl"
FREEZE = f"""\
# a comment
Alpha_one==1.0
beta @ {URL}
gamma==3
"""
RECORDS = {
    "alpha-one==1.0": {"source": "installed", "requires_dist": ["gamma"], "provides_extra": [], "size": 5},
    "gamma==3": {"source": "approximate", "requires_dist": ["not-this"]},
}
GAMMA = ["delta", "delta; extra == 'e'", "epsilon; extra == 'e'", "zeta"]


def test_packing_fills_gaps_from_documents(tmp_path: Path) -> None:
    folder = tmp_path / "colab" / "2030.01" / "gpu"
    folder.mkdir(parents=True)
    (tmp_path / "runtimes.toml").write_text(INDEX)
    (folder / "pip-freeze.txt").write_text(FREEZE)
    (tmp_path / "metadata.json.gz").write_bytes(gzip.compress(json.dumps({"records": RECORDS}).encode()))
    lines = [
        {"name": "alpha.one", "version": "1.0", "requires": ["the-folder-knows-better"]},
        {"name": "beta", "version": "2.0+cpu", "url": URL, "requires": ["gamma"], "requires_of": "2.0"},
        {"name": "gamma", "version": "3", "requires": GAMMA, "extras": ["e"]},
        {"name": "unheard-of", "version": "1", "requires": []},
    ]
    (tmp_path / "document.json").write_text(json.dumps({"distributions": lines}))
    command = [sys.executable, str(ROOT / "tools" / "pack_runtimes.py"), str(tmp_path)]
    command += [str(tmp_path / "document.json"), "--output", str(tmp_path / "packed.gz")]
    subprocess.run(command, check=True, capture_output=True)
    data = json.loads(gzip.decompress((tmp_path / "packed.gz").read_bytes()))
    assert data["unknown"] == []
    assert data["records"] == {
        "requires_dist": ["gamma", "gamma", "delta\n;; extra == 'e'\ndelta\nepsilon\n;\nzeta"],
        "requires_of": [None, "2.0", None],
        "provides_extra": [None, None, ["e"]],
        "size": [5, None, None],
    }


def test_packing_is_reproducible(tmp_path: Path) -> None:
    folder = tmp_path / "colab" / "2030.01" / "gpu"
    folder.mkdir(parents=True)
    (tmp_path / "runtimes.toml").write_text(INDEX)
    (folder / "pip-freeze.txt").write_text(FREEZE)
    (tmp_path / "metadata.json.gz").write_bytes(gzip.compress(json.dumps({"records": RECORDS}).encode()))
    outputs = []
    for name in ("one.gz", "two.gz"):
        command = [sys.executable, str(ROOT / "tools" / "pack_runtimes.py"), str(tmp_path)]
        subprocess.run([*command, "--output", str(tmp_path / name)], check=True, capture_output=True)
        outputs.append((tmp_path / name).read_bytes())
    assert outputs[0] == outputs[1]
    data = json.loads(gzip.decompress(outputs[0]))
    assert [entry["label"] for entry in data["runtimes"]] == ["2030.01"]
    assert data["runtimes"][0]["date"] == "2030-01-02"
    assert data["pins"] == {
        "lines": ["Alpha_one==1.0", f"beta @ {URL}", "gamma==3"],
        "masks": [1, 1, 1],
        "versions": {f"beta @ {URL}": "2.0+cpu"},
    }
    assert data["records"] == {"requires_dist": ["gamma", None, None], "size": [5, None, None]}
    assert data["unknown"] == [1, 2]
