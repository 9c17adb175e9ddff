"""Where indexes and folders are: arguments, our own variables, then pip's and uv's as a stated fallback."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEFAULT_INDEX", "Settings", "read_settings"]

_EXTRA = "extra-index-url"
DEFAULT_INDEX = "https://pypi.org/simple/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Index and folders; *notes* say what was taken from another tool's configuration."""

    default_index: str
    find_links: tuple[str, ...] = ()
    offline: bool = False
    notes: tuple[str, ...] = ()


def read_settings(
    environ: Mapping[str, str],
    *,
    default_index: str | None = None,
    find_links: Sequence[str] = (),
    offline: bool = False,
) -> Settings:
    """Return the settings in force: arguments first, then ``COLABLOCK_*``, then pip's and uv's.

    Values of several parts are split at white space; those of ``UV_FIND_LINKS``
    at commas, as uv does.  Further indexes of pip and uv are not used: a matrix
    names the index of each package that has one of its own.
    """
    notes: list[str] = []
    pip = _pip_configuration(environ)
    index = default_index or environ.get("COLABLOCK_DEFAULT_INDEX")
    if not index:
        index, said = _fallback(
            environ, pip, ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"), "index-url"
        )
        index = _without_name(index)
        notes += [f"the default index is taken from {said}"] if said else []
    links = tuple(find_links) or tuple(environ.get("COLABLOCK_FIND_LINKS", "").split())
    if not links:
        text, said = _fallback(environ, pip, ("UV_FIND_LINKS", "PIP_FIND_LINKS"), "find-links")
        links = _parts(text or "", by_comma=said == "UV_FIND_LINKS")
        notes += [f"find-links are taken from {said}"] if said else []
    _, said = _fallback(environ, pip, ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"), _EXTRA)
    if said:
        notes.append(f"the further indexes of {said} are not used: a matrix names those that it needs")
    return Settings(
        default_index=index or DEFAULT_INDEX,
        find_links=links,
        offline=offline or environ.get("COLABLOCK_OFFLINE", "") not in {"", "0"},
        notes=tuple(notes),
    )


def _without_name(index: str | None) -> str | None:
    """Return the URL of an index that uv was given as ``name=url``."""
    named = re.fullmatch(r"[A-Za-z0-9._-]+=(.+://.+)", index or "")
    return named[1] if named else index


def _parts(text: str, *, by_comma: bool) -> tuple[str, ...]:
    parts = text.split(",") if by_comma else text.split()
    return tuple(part.strip() for part in parts if part.strip())


def _fallback(
    environ: Mapping[str, str], pip: Mapping[str, str], variables: Sequence[str], key: str
) -> tuple[str | None, str | None]:
    """Return the first value that another tool was given, and where it stands."""
    for variable in variables:
        if environ.get(variable):
            return environ[variable], variable
    if pip.get(key):
        return pip[key], "pip's configuration"
    return None, None


def _pip_configuration(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the ``[global]`` and ``[install]`` options of pip's configuration files, the nearest last."""
    found: dict[str, str] = {}
    for path in _pip_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue  # pip itself complains about its own files
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    return found


def _pip_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield pip's configuration files in the order in which it reads them."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    for folder in reversed(environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)):
        yield Path(folder) / "pip" / "pip.conf"
    yield Path("/etc/pip.conf")
    home = environ.get("HOME")
    if home:
        yield Path(home) / ".pip" / "pip.conf"
    config = environ.get("XDG_CONFIG_HOME") or (str(Path(home) / ".config") if home else None)
    if config:
        yield Path(config) / "pip" / "pip.conf"
    if environ.get("VIRTUAL_ENV"):
        yield Path(environ["VIRTUAL_ENV"]) / "pip.conf"
    if named:
        yield Path(named)
