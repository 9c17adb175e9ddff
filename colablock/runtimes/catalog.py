"""Find recorded runtimes by name and return them as snapshots: the shipped images and the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from colablock._common.fs import expanded, working_folder, write_atomic
from colablock._common.ownership import require_trusted
from colablock._common.toml import read_text_file
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.accelerator import Accelerator, cuda_of_driver
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.notebook_host import Host
from colablock.environment.requirements import parse_requirement
from colablock.environment.snapshot import Snapshot, protected_names
from colablock.errors import InvalidInput, NotFound
from colablock.runtimes.document import (
    RecordedDistribution,
    RecordedRuntime,
    Recording,
    read_document,
    write_document,
)
from colablock.runtimes.packed import FOLDER, packed, packed_runtimes

__all__ = [
    "ListedRuntime",
    "list_runtimes",
    "load_recording",
    "load_runtime",
    "recorded_distributions",
    "runtime_names",
    "runtime_of",
    "runtimes",
    "save_recording",
    "snapshot_of_recording",
]

VARIABLE = "COLABLOCK_RUNTIMES"
_MOST_NAMES = 4  # in a suggestion
_ENDING = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRuntime:
    """One recorded runtime; *shadowed_by* is an earlier one of the same name.

    *file* is None for one that is shipped.  *fault* says why a file is no
    recorded runtime; *about* is None then.
    """

    name: str
    file: str | None
    about: RecordedRuntime | None = None
    shadowed_by: str | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class _RuntimePlace:
    """The location of one runtime: the document at *path*, or the packed file if that is None."""

    name: str
    path: Path | None
    is_shipped: bool = False

    @property
    def file(self) -> str | None:
        return None if self.is_shipped else str(self.path)

    def about(self) -> RecordedRuntime:
        return packed_runtimes()[self.name] if self.path is None else self.read().about

    def read(self) -> Recording:
        """Return the whole recording.  Raises InvalidInput, and NotFound if the file no longer exists."""
        if self.path is None:
            return packed(self.name)
        if not self.is_shipped:
            require_trusted(
                self.path.parent,
                what="a folder of recorded runtimes",
                below=working_folder(),
                hint="Correct its owner (`chown`) and permissions (`chmod -R go-w`)",
            )
        recording = _read_file(self.path, is_shipped=self.is_shipped)
        if recording.about.name != self.name:
            named = recording.about.name
            message = f"`{self.path}` contains the runtime `{named}`, and its file name says `{self.name}`"
            raise InvalidInput(message, hint=f"Rename the file to `{named}{_ENDING}`")
        return recording


def list_runtimes(
    *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[ListedRuntime, ...]:
    """Return every runtime on the search path by date; unreadable files come first.

    They are looked for in ``./runtimes``, the folders of ``COLABLOCK_RUNTIMES``,
    and among those shipped, in this order; the first of a name is the one that is meant.
    """
    first: dict[str, str] = {}
    found = []
    for place in _places(environ, cwd):
        shadow = first.get(place.name)
        about, fault = None, None
        try:
            about = place.about()
        except InvalidInput as error:
            fault = str(error)
        found.append(
            ListedRuntime(name=place.name, file=place.file, about=about, shadowed_by=shadow, fault=fault)
        )
        first.setdefault(place.name, place.file or "shipped")
    return tuple(sorted(found, key=lambda one: (one.about.date if one.about else "", one.name)))


def runtimes(
    *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[RecordedRuntime, ...]:
    """Return the recorded runtimes, oldest first; invalid files are skipped."""
    listed = list_runtimes(environ=environ, cwd=cwd)
    return tuple(one.about for one in listed if one.about is not None and one.shadowed_by is None)


def runtime_names(*, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> list[str]:
    """Return the names of the recorded runtimes, oldest first."""
    return [about.name for about in runtimes(environ=environ, cwd=cwd)]


def load_recording(
    name_or_path: str, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Recording:
    """Return the whole recording of a runtime, by name or by path.

    A path ends in ``.json`` or holds a separator.  Raises NotFound, with near
    names, and InvalidInput for a file that is none.
    """
    if name_or_path.endswith(_ENDING) or os.sep in name_or_path:
        return _read_file(_below(cwd or working_folder(), name_or_path))
    for place in _places(environ, cwd):
        if place.name == name_or_path:
            return place.read()
    message = f"no runtime is recorded as `{name_or_path}`"
    raise NotFound(message, hint=_runtime_hint(name_or_path, list(runtimes(environ=environ, cwd=cwd))))


def _runtime_hint(text: str, known: Sequence[RecordedRuntime]) -> str:
    """Return the names that *text* may mean: a part of them, as the host's menu has it, or a misspelt one."""
    import difflib  # noqa: PLC0415 - only for a name that is not known

    names = [about.name for about in known]
    letters = _plain(text)
    parts = sorted(
        (name for name in names if letters in _plain(name)),
        key=lambda name: (name.rpartition("-")[0], not name.endswith("gpu")),
    )
    if letters.startswith("kaggle") and not any(about.host is Host.KAGGLE for about in known):
        return (  # no image of Colab is like it, however near its name
            "No image of Kaggle is recorded: `colablock runtime record --name kaggle-YEAR.MONTH-gpu` in a"
            f" notebook there records it. Recorded runtimes: {', '.join(names)}"
        )
    near = parts or difflib.get_close_matches(text, names, n=3)
    if not near or len(near) > _MOST_NAMES:
        return f"recorded runtimes: {', '.join(near or names)}"
    return f"did you mean {' or '.join(f'`{name}`' for name in near)}?"


def _plain(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def load_runtime(
    name_or_path: str, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Snapshot:
    """Return the snapshot of a recorded runtime, which is looked up as in `load_recording`.

    It is the image before anything ran: no module is loaded, and of the
    accelerator only the driver is known.
    """
    return snapshot_of_recording(load_recording(name_or_path, environ=environ, cwd=cwd))


def recorded_distributions(
    name_or_path: str, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[RecordedDistribution, ...]:
    """Return the distributions of a runtime, sorted by name; it is looked up as in `load_recording`."""
    return load_recording(name_or_path, environ=environ, cwd=cwd).distributions


def save_recording(recording: Recording, path: Path) -> None:
    """Write the document of *recording* to *path*, replacing a file there.  Raises InvalidInput."""
    write_atomic(path, write_document(recording).encode())


def snapshot_of_recording(recording: Recording) -> Snapshot:
    """Return a recorded image as a snapshot."""
    about = recording.about
    installed = {item.installed.name: item.installed for item in recording.distributions}
    environment = environment_for(about.python_version, about.platform)
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
        shared={name: group - {name} for group in recording.shared for name in group},
        protected=protected_names(installed, environment, about.host),
        accelerator=accelerator,
        host=about.host,
        source=about.name,
        date=about.date,
        notes=(
            f"recorded from {about.source or about.file}",
            f"requirements are known for {len(installed) - about.unknown} of {len(installed)} distributions"
            + (": whether the others still fit is not checked" if about.unknown else ""),
        ),
    )


def runtime_of(
    snapshot: Snapshot, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str | None:
    """Return the name of the recorded runtime that equals *snapshot*; None if there is none.

    colablock and what was installed for it may stand there beside the image's
    own.  Of two images with the same distributions the accelerator decides.
    """
    flavour = "gpu" if snapshot.accelerator.kind == "cuda" else "cpu"
    likely = sorted(runtimes(environ=environ, cwd=cwd), key=lambda about: about.flavour != flavour)
    for about in likely:
        if environment_for(about.python_version, about.platform).short == snapshot.environment.short:
            image = recorded_distributions(about.name, environ=environ, cwd=cwd)
            if _is_image(snapshot, image):
                return about.name
    return None


def _is_image(snapshot: Snapshot, distributions: tuple[RecordedDistribution, ...]) -> bool:
    installed = {name: there.version for name, there in snapshot.installed.items()}
    image = {item.installed.name: item.installed.version for item in distributions}
    is_whole = all(installed.get(name) == version for name, version in image.items())
    more = installed.keys() - image.keys()
    return is_whole and more <= _needed_by(canonicalize_name("colablock"), snapshot)


def _needed_by(name: NormalizedName, snapshot: Snapshot) -> frozenset[NormalizedName]:
    """Return *name* and its transitive requirements, markers ignored."""
    found: set[NormalizedName] = set()
    pending = [name]
    while pending:
        one = pending.pop()
        if one not in found and one in snapshot.installed:
            found.add(one)
            parsed = map(parse_requirement, snapshot.installed[one].requires)
            pending += [canonicalize_name(requirement.name) for requirement in parsed if requirement]
    return frozenset(found)


# The search path


def _places(environ: Mapping[str, str] | None, cwd: Path | None) -> Iterator[_RuntimePlace]:
    """Yield the locations of runtimes, nearest first."""
    environ, cwd = os.environ if environ is None else environ, cwd or working_folder()
    named = [text for text in environ.get(VARIABLE, "").split(os.pathsep) if text]
    seen: set[str] = set()
    for folder in (_below(cwd, text) for text in ("runtimes", *named)):
        for path in _documents(folder):
            identity = os.path.realpath(path)
            if identity not in seen:  # a folder may be on the search path twice
                seen.add(identity)
                yield _RuntimePlace(path.name.removesuffix(_ENDING), path)
    for path in _documents(FOLDER):
        yield _RuntimePlace(path.name.removesuffix(_ENDING), path, is_shipped=True)
    yield from (_RuntimePlace(name, None, is_shipped=True) for name in packed_runtimes())


def _documents(folder: Path) -> list[Path]:
    """Return the documents of a folder; none if it does not exist."""
    return sorted(path for path in folder.glob(f"*{_ENDING}") if path.is_file())


def _below(cwd: Path, path: str) -> Path:
    """Return *path* relative to *cwd*, kept short for messages."""
    found = expanded(path, "the path of a runtime")
    return found if cwd == working_folder() else cwd / found


def _read_file(path: Path, *, is_shipped: bool = False) -> Recording:
    """Return the recording in the document at *path*, cached until the file changes."""
    try:
        status = path.stat()
    except OSError as error:
        message = f"there is no recorded runtime at `{path}`"
        raise NotFound(message) from error
    return _read_document(path, (status.st_ino, status.st_mtime_ns, status.st_size), is_shipped=is_shipped)


@lru_cache(maxsize=16)
def _read_document(path: Path, _stamp: tuple[int, int, int], *, is_shipped: bool) -> Recording:
    try:
        text = read_text_file(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"`{path}` cannot be read: {error}"
        raise InvalidInput(message) from error
    return read_document(text, None if is_shipped else str(path))
