"""A runtime of 671 distributions, or a part of it, with files that are hard to move, and a change of many."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.snapshot import Snapshot, snapshot_of
from colablock.planning.plan import Action, Artifact, Plan, Step, Target
from colablock.runtimes.catalog import recorded_distributions
from tests.support.runtime import Stub, build_runtime, build_site, make_venv, site_of
from tests.support.wheels import make_wheel

__all__ = ["RUNTIME", "Ground", "copy_tree", "make_ground"]

RUNTIME = "colab-2025.09-gpu"
NEWER = "9999.0"  # than any release, even one with a calendar version
# Debian's changes to its interpreters, as far as they concern install locations.
_DEBIAN = """\
import site, sys, sysconfig

local = sys.prefix + "/local"
packages = "%s/lib/python%d.%d/dist-packages" % (local, *sys.version_info[:2])
changed = {"purelib": packages, "platlib": packages, "scripts": local + "/bin", "data": local}
sysconfig._INSTALL_SCHEMES["posix_local"] = {**sysconfig._INSTALL_SCHEMES["posix_prefix"], **changed}
sysconfig.get_default_scheme = lambda: "posix_local"
sysconfig.get_paths.__defaults__ = ("posix_local", *sysconfig.get_paths.__defaults__[1:])
sysconfig.get_path.__defaults__ = ("posix_local", *sysconfig.get_path.__defaults__[1:])
site.addsitedir(packages)
"""
_LONG_AGO = 1_500_000_000_123_456_789  # ns: shows whether a copy keeps times

# Of each family some are removed, some are replaced, and some stay.
_FAMILIES = ("google-cloud-", "nvidia-", "opencv-", "jaraco-", "sphinxcontrib-", "opentelemetry-")
_EACH = 18  # so many of no family are removed, and as many replaced
_NEW = 20
_STANDING = 5  # every so many of those that do not change are in a part of the runtime


@dataclass(frozen=True, kw_only=True)
class Ground:
    """An environment in *folder*, and the change to apply to it.

    *real* is the folder that changes, *python* the interpreter of the environment.
    """

    folder: Path
    real: Path
    python: str
    steps: tuple[Step, ...]
    files: Mapping[NormalizedName, Path] = field(repr=False)

    @property
    def pristine(self) -> Path:
        """A copy of *real* as it was built."""
        return self.folder / "pristine"

    @cached_property
    def plan(self) -> Plan:
        return Plan(
            matrix="big",
            matrix_digest="0",
            variant=None,
            target=Target.KERNEL,
            why_target="asked for",
            python=self.python,
            python_version=f"{sys.version_info[0]}.{sys.version_info[1]}",
            steps=self.steps,
            fingerprint="",
        )

    def snapshot(self) -> Snapshot:
        return snapshot_of(Path(self.python), environ=os.environ)

    def write_matrix(self) -> Path:
        """Write a matrix for the part of the change that breaks nothing else of the runtime."""
        held = _held_back()
        asked = [f'{s.name} = "=={s.version}"' for s in self.steps if s.version and s.name not in held]
        unwanted = [s.name for s in self.steps if s.version is None and s.name not in held]
        lines = [
            "schema = 1",
            'name = "big"',
            'summary = "Many at once"',
            "[packages]",
            *asked,
            "[absent]",
            *(f'{name} = {{ version = "<{NEWER}", why = "in the way" }}' for name in unwanted),
            "[verify]",
            'imports = ["new_1", "new_2.a.b.c"]',
        ]
        path = self.folder / "big.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def _held_back() -> set[NormalizedName]:
    """Return the names whose newer version some requirement of the runtime excludes."""
    held: set[NormalizedName] = set()
    for item in recorded_distributions(RUNTIME):
        for requirement in map(Requirement, item.installed.requires):
            name = canonicalize_name(requirement.name)
            if not requirement.specifier.contains(NEWER):
                held.add(name)
    return held


def make_ground(folder: Path, *, debian: bool = False, whole: bool = True) -> Ground:
    """Build the runtime, add leftovers and odd permissions, and make the wheels of the change.

    It is a virtual environment behind a symbolic link, or is installed as Debian's interpreters do.
    Unless it is *whole*, the same change is made among fewer distributions that stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    real, python, site = (_debian if debian else _linked_venv)(folder)
    versions = {item.spelled: item.installed.version for item in recorded_distributions(RUNTIME)}
    removed, replaced = _chosen(list(versions))
    families = [name for name in versions if name.startswith(_FAMILIES)]
    some = {*families, *removed, *replaced, *[*versions][::_STANDING]}
    build_runtime(RUNTIME, site, only=None if whole else some)
    for number, name in enumerate(dict.fromkeys([*families, *removed, *replaced])):
        _enrich(site, name, versions[name], number)
    _editable(site, folder)
    _spoil(site, removed, replaced)
    _age(real)
    files = dict(_wheels(folder / "wheels", replaced))
    gone = {**{name: versions[name] for name in removed}, "ed": "1.0"}
    steps = [
        *(_remove(name, version) for name, version in gone.items()),
        *(_put(files[canonicalize_name(name)], versions[name]) for name in replaced),
        *(_put(path, None) for name, path in files.items() if name.startswith("new-")),
    ]
    ground = Ground(folder=folder, real=real, python=str(python), steps=tuple(steps), files=files)
    copy_tree(real, ground.pristine)
    return ground


def copy_tree(source: Path, target: Path) -> None:
    """Make the folder *target* an exact copy of *source*, owners and times included."""
    target.mkdir(exist_ok=True)
    for path in target.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    subprocess.run(["cp", "--archive", f"{source}/.", target], check=True)  # noqa: S607


def _linked_venv(folder: Path) -> tuple[Path, Path, Path]:
    make_venv(folder / "real", sys.executable)
    (folder / "env").symlink_to("real")
    return folder / "real", folder / "env" / "bin" / "python", site_of(folder / "real")


def _debian(folder: Path) -> tuple[Path, Path, Path]:
    """Copy an interpreter that installs into ``local/lib/python3.X/dist-packages`` below its prefix."""
    usr = folder / "usr"
    library = Path(sysconfig.get_path("stdlib"))
    ours = usr / "lib" / library.name
    python = usr / "bin" / library.name
    for path in (ours, python.parent):
        path.mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), python)
    for path in library.iterdir():
        if path.name not in {"site-packages", "sitecustomize.py", "EXTERNALLY-MANAGED"}:
            (ours / path.name).symlink_to(path)
    site = usr / "local" / "lib" / library.name / "dist-packages"
    site.mkdir(parents=True)
    (ours / "sitecustomize.py").write_text(_DEBIAN, encoding="utf-8")
    return usr / "local", python, site


def _chosen(names: Sequence[str]) -> tuple[list[str], list[str]]:
    removed: list[str] = []
    replaced: list[str] = []
    for family in _FAMILIES:
        members = [name for name in names if name.startswith(family)]
        removed += members[0::3]
        replaced += members[1::3]
    others = [name for name in names if not name.startswith(_FAMILIES)]
    step = len(others) // (2 * _EACH)
    picked = others[::step][: 2 * _EACH]
    return removed + picked[0::2], replaced + picked[1::2]


def _portion(name: str) -> str:
    """Return the folder of the package: for one of a family, it is below a shared namespace."""
    family = next((family for family in _FAMILIES if name.startswith(family)), None)
    own = name.replace("-", "_").replace(".", "_").lower()
    if family is None:
        return own
    if family == "opencv-":
        return "cv2"
    return f"{family.strip('-').replace('-', '/')}/{own}"


def _enrich(site: Path, name: str, version: str, number: int) -> None:
    """Rewrite a recorded distribution with more files than one module."""
    package = _portion(name)
    top = package.partition("/")[0]
    files = {
        f"{top}/__init__.py": "",  # shared, with the same bytes, by a whole family
        f"{package}/__init__.py": f'__version__ = "{version}"\n' if top != package else "",
        f"{package}/core.py": f"def core():\n    return {number}\n",
        f"{package}/deep/er/data.txt": "d" * (100 + number),
        f"{package}/lib/lib{number}.so.12": "\x7fELF",
    }
    if number % 4 == 0:
        files[f"../../../bin/{name.lower()}"] = "#!/usr/bin/python\n"
        files[f"../../../share/{top}/{name}.txt"] = "shared\n"
    if number % 5 == 0:
        files[f"../../../etc/jupyter/conf.d/{name}.json"] = "{}\n"
        files[f"{name.replace('-', '_')}_single.py"] = "single = 1\n"
    if number % 7 == 0:
        files[f"{package}/with space, and comma.txt"] = "odd\n"
    url = {"url": "https://files.example/x.whl", "archive_info": {}} if number % 6 == 0 else None
    (stub,) = [item for item in recorded_distributions(RUNTIME) if item.spelled == name]
    build_site(
        site,
        [
            Stub(
                name=name,
                version=version,
                requires=stub.installed.requires,
                import_names=(),
                direct_url=url,
                files={path: text for path, text in files.items() if "," not in path},
            )
        ],
    )
    if number % 4 == 0:
        (site.parents[2] / "bin" / name.lower()).chmod(0o755)


def _editable(site: Path, folder: Path) -> None:
    source = folder / "source" / "ed"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("")
    finder = "__editable___ed_1_0_finder"
    files = {f"{finder}.py": f"MAPPING = {{'ed': {str(source)!r}}}\n", "__editable__.ed-1.0.pth": "\n"}
    url = {"url": source.parent.as_uri(), "dir_info": {"editable": True}}
    build_site(site, [Stub(name="ed", version="1.0", import_names=(), files=files, direct_url=url)])


def _spoil(site: Path, removed: Sequence[str], replaced: Sequence[str]) -> None:
    """Add files that no RECORD lists, and listed links and odd names; set odd permissions."""
    for number, name in enumerate([*removed, *replaced]):
        package = site / _portion(name)
        if not package.is_dir() or (package / "latest").is_symlink():
            continue
        tag = sys.implementation.cache_tag
        cache = package / "__pycache__"
        cache.mkdir(exist_ok=True)
        for module in ("__init__", "core", "long_gone"):
            (cache / f"{module}.{tag}.pyc").write_bytes(b"\0" * 16 + module.encode())
        (cache / f"core.{tag}.opt-1.pyc").write_bytes(b"\0" * 16)
        links = {"latest": "deep", "libx.so": f"lib/lib{number}.so.12", "dangling": "nowhere/at/all"}
        for link, to in links.items():
            (package / link).symlink_to(to)
        _list(site, name, [f"{_portion(name)}/{link}" for link in links])
        kind = number % 6
        if kind == 0:
            (package / "core.py").chmod(0o444)
            if os.geteuid() == 0:  # another user could not move it
                (package / "deep" / "er").chmod(0o555)
                (package / "deep").chmod(0o555)
        elif kind == 1:
            (package / "empty").mkdir(mode=0o700)
            (package / "__init__.py").chmod(0o600)
        elif kind == 2:
            (package / "of the user.txt").write_text("not listed\n")
        elif kind == 3:
            package.chmod(0o2750)
            (package / "deep").chmod(0o1777)
        elif kind == 4:
            odd = os.fsdecode(b"\xe9t\xe9, \xff.txt")
            (package / odd).write_text("a name that is no text\n")
            _list(site, name, [f"{_portion(name)}/{odd}"])
        else:
            (package / "twin.py").hardlink_to(package / "core.py")
            _list(site, name, [f"{_portion(name)}/twin.py"])


def _list(site: Path, name: str, paths: Sequence[str]) -> None:
    stem = name.replace("-", "_").replace(".", "_")
    (info,) = site.glob(f"{stem}-[0-9]*.dist-info")
    with (info / "RECORD").open("a", encoding="utf-8", errors="surrogateescape") as record:
        record.writelines(f'"{path}",,\n' for path in paths)


def _age(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            os.utime(Path(folder, name), ns=(_LONG_AGO, _LONG_AGO), follow_symlinks=False)


def _wheels(folder: Path, replaced: Sequence[str]) -> Iterator[tuple[NormalizedName, Path]]:
    for number, name in enumerate(replaced):
        package = _portion(name)
        top = package.partition("/")[0]
        modules = {
            f"{top}/__init__.py": "",
            f"{package}/__init__.py": "new = True\n" if top != package else "",
            f"{package}/core.py": "def core():\n    return 'new'\n",
            f"{package}/fresh/deep/new.py": "",
        }
        scripts = {name.lower(): f"{package.replace('/', '.')}:core"} if number % 2 == 0 else None
        yield canonicalize_name(name), make_wheel(folder, name, NEWER, modules=modules, scripts=scripts)
    for number in range(_NEW):
        name = f"new-{number}"
        modules = {
            f"new_{number}/__init__.py": "",
            f"new_{number}/a/b/c.py": "x = 1\n",
            f"nvidia/new_{number}/__init__.py": "",
        }
        if number % 3 == 0:
            modules[f"google/cloud/new_{number}/__init__.py"] = ""
            modules["new_shared/portion_{number}.py"] = ""
        more = {f"data/share/new/{number}.txt": "x"} if number % 4 == 0 else None
        scripts = {name: f"new_{number}:main"} if number % 2 else None
        yield (
            canonicalize_name(name),
            make_wheel(folder, name, "1.0", modules=modules, scripts=scripts, data_files=more),
        )


def _remove(name: str, version: str) -> Step:
    return Step(action=Action.REMOVE, name=canonicalize_name(name), reason="[absent]", previous=version)


def _put(wheel: Path, previous: str | None) -> Step:
    name, version = wheel.name.split("-")[:2]
    return Step(
        action=Action.REPLACE if previous else Action.INSTALL,
        name=canonicalize_name(name),
        reason="the matrix names it",
        version=version,
        previous=previous,
        artifact=Artifact(
            name=canonicalize_name(name),
            version=version,
            filename=wheel.name,
            url=f"https://files.example/{wheel.name}",
            hashes={"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()},
        ),
    )
