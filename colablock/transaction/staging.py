"""Stage the wheels of a plan: install them into a separate prefix, mark them as ours, and check them."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colablock._common.archives import open_zip
from colablock._common.fs import file_digest, make_private
from colablock._common.process import quiet_python, run_uv
from colablock._common.reporter import Reporter
from colablock._common.text import count
from colablock._vendor.packaging.direct_url import ArchiveInfo, DirectUrl
from colablock._vendor.packaging.utils import (
    InvalidWheelFilename,
    NormalizedName,
    canonicalize_name,
    parse_wheel_filename,
)
from colablock._vendor.packaging.version import Version
from colablock.environment.record import (
    Row,
    differences,
    read_record,
    recorded_paths,
    replace_text,
    row_differs,
    row_of,
    write_record,
)
from colablock.environment.site import STATE, Site, is_state_path, read_site
from colablock.errors import BadDistribution, Refused
from colablock.index.wheel_check import check_wheel
from colablock.planning.plan import Action, Artifact, Plan, Step
from colablock.planning.shared_files import families, modules_of
from colablock.transaction.file_moves import StagedTree

__all__ = ["Staged", "finish", "install_wheels", "stage"]

# Written by uv for itself: the time of the local file, which has no meaning elsewhere.
_UV_OWN = "uv_cache.json"
_SHOWN = 10  # faults in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Distributions in a separate prefix, checked and complete."""

    tree: StagedTree
    names: tuple[NormalizedName, ...] = ()
    size: int = 0  # bytes, from their RECORDs

    def owner(self, path: str) -> str:
        """Return name and version of the distribution that has the staged file *path*, as text."""
        for folder, _ in self.tree.places:
            for dist_info in Path(folder).glob("*.dist-info"):
                listed = recorded_paths(folder, read_record(dist_info) or ())
                if path in map(os.path.normpath, listed):
                    name, _, version = dist_info.name.removesuffix(".dist-info").rpartition("-")
                    return f"`{canonicalize_name(name)}` {version}"
        return "the plan"


def stage(
    plan: Plan,
    files: Mapping[NormalizedName, Path],
    *,
    python: str | Path,
    into: Path,
    environ: Mapping[str, str],
    reporter: Reporter | None = None,
    site: Site | None = None,
) -> Staged:
    """Install the wheels of *plan* into the empty prefix *into*, complete and check them.

    Nothing outside of *into* changes.  The result maps each folder of the prefix
    to its place in the site of *python*.
    """
    site = site or read_site(python, environ)
    steps = [step for step in plan.steps if step.action is not Action.REMOVE]
    make_private(into)
    tree = StagedTree(folder=into, places=())
    if not steps:
        return Staged(tree=tree)
    (reporter or Reporter()).stage(f"Staging {count(len(steps), 'distribution')}")
    prefix = into / "prefix"
    install_wheels(
        [(step.artifact, files[step.name]) for step in steps],
        ["--python", quiet_python(python, environ, into), "--prefix", str(prefix)],
        scratch=into,
        environ=environ,
        reporter=reporter,
    )
    (prefix / ".lock").unlink(missing_ok=True)
    tree = StagedTree(folder=prefix, places=_places(prefix, site))
    sites = [Path(folder) for folder, _ in tree.places if folder.endswith("site-packages")]
    size = finish(sites, steps, files)
    for folder in sites:
        _list_all(folder)
        _relocate(folder, tree)
    return Staged(tree=tree, names=tuple(step.name for step in steps), size=size)


def install_wheels(
    wheels: Iterable[tuple[Artifact | None, Path]],
    target: Sequence[str],
    *,
    scratch: Path,
    environ: Mapping[str, str],
    reporter: Reporter | None = None,
) -> None:
    """Install exactly these local wheels with uv, with hash checks; the options *target* say where.

    Each is checked before uv reads it, see `check_wheel`; *reporter* gets the notes.
    uv gets them as names and versions with ``--find-links``, so it records no direct URL.
    """
    wheels = list(wheels)
    for _, path in wheels:
        _refuse_state(path)
    links = scratch / "wheels"
    links.mkdir()
    lines = []
    for artifact, path in wheels:
        for note in check_wheel(path):
            (reporter or Reporter()).note(note)
        (links / path.name).symlink_to(path.absolute())
        name, version = _wheel_identity(path)
        lines.append(f"{name}=={version} --hash=sha256:{_sha256(artifact, path)}")
    requirements = scratch / "requirements.txt"
    requirements.write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
    options = ["--no-deps", "--no-index", "--find-links", str(links), "--require-hashes"]
    # uv unpacks into its cache and makes hard links from there.  In the user's cache, these files would stay
    # and never be used again, since the folder of wheels is a new one each time.  Deleting an environment or
    # a stash would then free no space.
    cache = scratch / "uv-cache"
    options += ["--cache-dir", str(cache)]
    run_uv(
        ["pip", "install", *target, *options, "-r", str(requirements)],
        environ=environ,
        doing=f"unpack {count(len(lines), 'wheel')}",
    )
    shutil.rmtree(cache, ignore_errors=True)


def _refuse_state(wheel: Path) -> None:
    """Raise BadDistribution if *wheel* has files in a folder with the name of our state folder.

    Such a file could say that a change of the environment was made that never was.
    """
    try:
        with wheel.open("rb") as stream, open_zip(stream) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return  # uv says what is wrong with it
    for name in names:
        if is_state_path(name.replace("\\", "/").split("/")):
            raise BadDistribution(
                f"`{wheel.name}` has the file `{name}`, and `{STATE}` is the folder of colablock's own state"
            )


def finish(folders: Iterable[Path], steps: Iterable[Step], wheels: Mapping[NormalizedName, Path]) -> int:
    """Mark the distributions of *steps* in the site-packages *folders* as ours; return their bytes.

    Writes INSTALLER, REQUESTED and direct_url.json, and updates RECORD.  A file that several
    distributions have is the one in the wheel of the last step.  Raises BadDistribution if a
    distribution or a file is missing, or a file differs from its RECORD, and Refused for builds
    of one package at different versions.
    """
    steps = list(steps)
    by_name = {step.name: step for step in steps}
    faults: list[str] = []
    size = 0
    for folder in folders:
        records: dict[str, Sequence[Row]] = {}
        for dist_info in sorted(folder.glob("*.dist-info")):
            step = by_name.pop(_name_of(dist_info), None)
            if step is not None:
                records[dist_info.name] = _finish_one(dist_info, step)
        _lay_shared(folder, records, steps, wheels)
        faults += differences(folder, records)
        size += sum(int(row.size or 0) for rows in records.values() for row in rows)
    faults += [f"`{name}` was not unpacked" for name in by_name]
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise BadDistribution(
            "\n  ".join(["the unpacked files differ from their RECORD", *faults[:_SHOWN], *more])
        )
    return size


def _lay_shared(
    folder: Path,
    records: Mapping[str, Sequence[Row]],
    steps: Sequence[Step],
    wheels: Mapping[NormalizedName, Path],
) -> None:
    """Take each file that several distributions have from the wheel of the last step that has it.

    uv unpacks wheels at the same time, so without this the files would be of any of them.
    """
    order = {step.name: number for number, step in enumerate(steps)}
    claims: dict[str, dict[int, Row]] = {}
    for dist_info, rows in records.items():
        number = order[_name_of(folder / dist_info)]
        for row in rows:
            claims.setdefault(row.path, {})[number] = row
    shared = {path: by for path, by in claims.items() if len({row.hash for row in by.values()}) > 1}
    if not shared:
        return
    _refuse_mixed(folder, records, [steps[number] for by in shared.values() for number in by])
    for path, by in shared.items():
        last = max(by)
        if row_differs(folder / path, by[last]):
            _take(path, wheels[steps[last].name], folder)


def _refuse_mixed(folder: Path, records: Mapping[str, Sequence[Row]], steps: Iterable[Step]) -> None:
    """Raise Refused if two of *steps* are builds of one package at different versions."""
    versions = {step.name: step.version for step in steps}
    claims = [
        modules_of(name, str(folder), (row.path for row in rows))
        for dist_info, rows in records.items()
        if (name := _name_of(folder / dist_info)) in versions
    ]
    for name, others in sorted(families((), claims).items()):
        for other in sorted(others):
            if versions[name] != versions[other]:
                raise Refused(
                    f"`{name}` {versions[name]} and `{other}` {versions[other]} own the same files, and the"
                    " plan installs both",
                    hint="Give them one version in the matrix, or exclude one of them with `[absent]`",
                )


def _take(path: str, wheel: Path, folder: Path) -> None:
    """Replace the unpacked file *path* by that of *wheel*.  A script or a data file stays as it is."""
    with wheel.open("rb") as stream, open_zip(stream) as archive:
        places = (name for name in archive.namelist() if name.partition(".data/")[2] in _of_site(path))
        member = path if path in archive.NameToInfo else next(places, None)
        if member is None:
            return
        content = archive.read(member)
    file = folder / path
    mode = file.stat().st_mode
    file.unlink()  # it may be a hard link into the cache of uv
    file.write_bytes(content)
    file.chmod(mode)


def _of_site(path: str) -> tuple[str, str]:
    return f"purelib/{path}", f"platlib/{path}"


def _finish_one(dist_info: Path, step: Step) -> Sequence[Row]:
    rows = read_record(dist_info)
    if rows is None:
        raise BadDistribution(f"`{step.name}` {step.version} was unpacked without a RECORD")
    ours = {"INSTALLER": "colablock\n"}
    if step.requested:
        ours["REQUESTED"] = ""
    if step.artifact is not None and step.artifact.direct:
        ours["direct_url.json"] = _direct_url(step.artifact)
    for name in ("INSTALLER", "REQUESTED", "direct_url.json", _UV_OWN):
        (dist_info / name).unlink(missing_ok=True)
    for name, text in ours.items():
        replace_text(dist_info / name, text)
    site = dist_info.parent
    replaced = {f"{dist_info.name}/{name}" for name in (*ours, "REQUESTED", "direct_url.json", _UV_OWN)}
    kept = [row for row in rows if row.path not in replaced]
    finished = [*kept, *(row_of(dist_info / name, site) for name in ours)]
    write_record(dist_info, finished)
    return finished


def _direct_url(artifact: Artifact) -> str:
    """Return the text of direct_url.json (PEP 610) for an archive."""
    hashes = dict(sorted(artifact.hashes.items(), key=lambda item: item[0] != "sha256"))
    origin = DirectUrl(url=artifact.url, archive_info=ArchiveInfo(hashes=hashes or None))
    return json.dumps(origin.to_dict(generate_legacy_hash=True), sort_keys=True)


def _places(prefix: Path, site: Site) -> tuple[tuple[str, str], ...]:
    """Return the destinations of the folders of a prefix, which uv lays out like a virtual environment."""
    places = [(str(path), site.purelib) for path in prefix.glob("lib/python*/site-packages")]
    places += [(str(path), site.platlib) for path in prefix.glob("lib64/python*/site-packages")]
    places += [(str(prefix / "bin"), site.scripts)]
    return (*places, (str(prefix), site.data))


def _list_all(folder: Path) -> None:
    """Add unlisted files of wheels to their RECORDs, so that they can be removed later.

    There are published wheels with such files, and their hash covers the whole wheel.  A file belongs to the
    distribution that owns its top-level folder alone; any other unlisted file raises BadDistribution.
    """
    records = {path: list(read_record(path) or ()) for path in sorted(folder.glob("*.dist-info"))}
    owners: dict[str, set[Path]] = {}
    listed: set[str] = set()
    for dist_info, rows in records.items():
        for row in rows:
            listed.add(row.path)
            owners.setdefault(row.path.partition("/")[0], set()).add(dist_info)
    grown: set[Path] = set()
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        if relative in listed or (path.is_dir() and not path.is_symlink()):
            continue
        owner = owners.get(relative.partition("/")[0], set())
        if len(owner) != 1:
            raise BadDistribution(f"no RECORD lists the unpacked file `{relative}`")
        (dist_info,) = owner
        records[dist_info].append(row_of(path, folder))
        grown.add(dist_info)
    for dist_info in grown:
        write_record(dist_info, records[dist_info])


def _relocate(folder: Path, tree: StagedTree) -> None:
    """Adapt the rows of files outside of site-packages to the layout of the site."""
    goes = dict(tree.places)[str(folder)]
    for dist_info in folder.glob("*.dist-info"):
        rows = read_record(dist_info) or ()
        moved = [_moved(row, folder, goes, tree) if row.path.startswith("../") else row for row in rows]
        if moved != list(rows):
            write_record(dist_info, moved)


def _moved(row: Row, folder: Path, goes: str, tree: StagedTree) -> Row:
    staged = os.path.normpath(folder / row.path)
    for place, target in tree.places:
        if staged.startswith(place + os.sep):
            return row._replace(path=os.path.relpath(target + staged[len(place) :], goes))
    raise BadDistribution(f"`{row.path}` is outside of the staged prefix")


def _name_of(dist_info: Path) -> NormalizedName:
    return canonicalize_name(dist_info.name.removesuffix(".dist-info").rpartition("-")[0])


def _wheel_identity(path: Path) -> tuple[NormalizedName, Version]:
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise BadDistribution(f"`{path.name}` is not the name of a wheel: {error}") from error
    return name, version


def _sha256(artifact: Artifact | None, path: Path) -> str:
    """Return the SHA-256 to require: the one that the index has for this file, or else the file's own."""
    if artifact is not None and artifact.filename == path.name and not (artifact.build or artifact.rebuilt):
        promised = artifact.hashes.get("sha256")
        if promised:
            return promised
    return file_digest(path)
