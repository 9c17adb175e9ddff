"""One interpreter as it stands: everything a decision may depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from colablock._vendor.packaging.utils import NormalizedName
from colablock.accelerator import Accelerator
from colablock.environment import Environment

__all__ = ["Host", "Installed", "Snapshot"]


class Host(Enum):
    """Where the interpreter runs."""

    COLAB = "colab"
    KAGGLE = "kaggle"
    JUPYTER = "jupyter"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """One installed distribution, its requirement lines unparsed."""

    name: NormalizedName
    version: str
    requires: tuple[str, ...] = ()  # Requires-Dist, as written
    requires_python: str | None = None
    extras: tuple[str, ...] = ()  # Provides-Extra
    import_names: tuple[str, ...] = ()  # top-level
    direct_url: Mapping[str, object] | None = None  # PEP 610, as read
    installer: str | None = None
    requested: bool = False
    size: int | None = None  # bytes on disk, from RECORD
    sha256: str | None = None  # of the file it was installed from, where recorded (PEP 710)
    path: str | None = None  # the .dist-info (or .egg-info) directory; None when recorded
    has_record: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One interpreter as it stands, live or recorded.

    *loaded* maps a distribution to the modules of it that the kernel holds.
    *shared* maps a distribution to the others that own some of the same files
    with other contents (a top-level ``__init__.py`` left out: portions of old
    namespace packages each ship one).  *protected* stay as they are.
    """

    environment: Environment
    python: str  # the executable; "" for a recorded runtime
    prefix: str
    site: str  # where pure modules go (purelib)
    installed: Mapping[NormalizedName, Installed]
    loaded: Mapping[NormalizedName, tuple[str, ...]] = field(default_factory=dict)
    shared: Mapping[NormalizedName, frozenset[NormalizedName]] = field(default_factory=dict)
    protected: frozenset[NormalizedName] = frozenset()
    accelerator: Accelerator = field(default_factory=Accelerator)
    host: Host = Host.PLAIN
    externally_managed: str | None = None  # PEP 668: the message, when marked so
    has_headers: bool = True  # Python.h is there, as Triton needs it
    source: str = "live"  # or the name of a recorded runtime
    date: str | None = None  # of a recorded runtime
    notes: tuple[str, ...] = ()  # what could not be read, and why
