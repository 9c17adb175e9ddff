"""Where imports come from: compared with the RECORDs of the stack, other places are named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from colablock._common.decoding import Malformed, read_bounded
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.record import readable_rows

__all__ = ["Owner", "hidden_imports", "misplaced", "owner_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The installed distribution whose RECORD lists the top-level module *top* in the folder *site*."""

    name: NormalizedName
    version: str
    site: str
    top: str

    def has(self, origin: str) -> bool:
        """Whether the file or folder *origin* is this module, or lies in this package."""
        own = f"{os.path.realpath(self.site)}/{self.top}"
        return f"{os.path.realpath(origin)}/".startswith((f"{own}/", f"{own}."))


def owner_of(
    subject: str, pins: Mapping[NormalizedName, str], folders: Mapping[NormalizedName, str]
) -> Owner | None:
    """Return the distribution of *pins* that has the module of the import *subject*; None if none has.

    *folders* are the metadata folders by name.  An editable installation lists no module.
    """
    top = subject.partition(":")[0].partition(".")[0]
    likely = sorted(pins, key=lambda name: (name != canonicalize_name(top), name))
    for name in likely:
        folder = folders.get(name)
        if folder and any(_is_of(row.path, top) for row in readable_rows(Path(folder))):
            site = os.path.dirname(folder)  # noqa: PTH120
            return Owner(name=name, version=pins[name], site=site, top=top)
    return None


def _is_of(path: str, top: str) -> bool:
    """Whether a recorded *path* is that of the module *top*, or in the package *top*."""
    rest = path.removeprefix(top) if path.startswith(top) else ""
    return rest.startswith("/") or (rest.startswith(".") and rest.endswith((".py", ".so", ".pyd", ".pyc")))


def misplaced(subject: str, origin: str, owner: Owner) -> str | None:
    """Return which other place the import *subject* came from; None if it is that of *owner*."""
    if not origin or owner.has(origin):
        return None
    text = (
        f"`{subject}` is imported from `{origin}`, not from `{owner.site}/{owner.top}` of"
        f" {owner.name} {owner.version}"
    )
    leads = " and ".join(f"`{path}`" for path in _leading_to(origin, owner.site))
    return f"{text}: {leads} leads there" if leads else text


def _leading_to(origin: str, site: str) -> Iterator[Path]:
    """Yield the path files and import hooks in *site* that name a folder above *origin*."""
    above = {str(folder) for folder in Path(origin).parents[:3]} - {"/"}
    for path in sorted(Path(site).glob("*.pth")) + sorted(Path(site).glob("__editable__*.py")):
        try:
            text = read_bounded(path).decode("utf-8", "replace")
        except (OSError, Malformed):
            continue
        if any(folder in text for folder in above):
            yield path


def hidden_imports(subjects: Iterable[str], environ: Mapping[str, str], site: str) -> dict[str, str]:
    """Return the imports that come from elsewhere than *site* in a program that is started here.

    ``PYTHONPATH`` and the working folder come first there; proofs and training use neither.  The
    keys say which of the two it is, the values are sentences.  No module is run.
    """
    paths = environ.get("PYTHONPATH", "").split(os.pathsep)
    places = [(folder, "PYTHONPATH") for folder in paths if folder] + [(os.curdir, "working folder")]
    found: dict[str, str] = {}
    for top in dict.fromkeys(subject.partition(":")[0].partition(".")[0] for subject in subjects):
        for folder, what in places:
            origin = _found_in(folder, top)
            if origin is not None and os.path.realpath(folder) != os.path.realpath(site):
                told = f"programs that are started with this {what} import `{top}` from `{origin}`"
                found.setdefault(what, told.replace("with this working folder", "in this folder"))
                break
    return found


def _found_in(folder: str, top: str) -> str | None:
    """Return the file of the module *top* in *folder*; None if there is none, or a namespace only."""
    try:
        spec = PathFinder.find_spec(top, [os.path.realpath(folder)])
    except (ImportError, OSError, ValueError):
        return None
    return spec.origin if spec is not None and spec.loader is not None and spec.has_location else None
