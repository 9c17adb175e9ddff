"""Settings for indexes and folders: arguments, `COLABLOCK_*`, then those of pip and uv as a fallback."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import expanded
from colablock._common.limits import SETTINGS_FILE
from colablock._common.text import near
from colablock._common.toml import read_text_file
from colablock._common.urls import Url, checked_index, redacted
from colablock._records import dataclass
from colablock.errors import InvalidInput
from colablock.network.cache import cache_folder, distrusted

if TYPE_CHECKING:
    from colablock.bundles.reader import Bundle
    from colablock.matrix.model import Index

__all__ = ["DEFAULT_INDEX", "MIRROR", "Settings", "mirror_variable", "read_settings"]

_EXTRA = "extra-index-url"
MIRROR = "COLABLOCK_INDEX_"  # prefix; the rest is the name of the index whose mirror the variable holds
FILE_HOSTS = "COLABLOCK_FILE_HOSTS"
DEFAULT_INDEX = "https://pypi.org/simple/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Index and folders.  *notes* name the settings that come from the configuration of another tool.

    With *links_override* the find-links are those of this call, and their files come first.
    Without it they are those of the machine, and change no version that a lock or an index
    has.  *mirrors* are pairs of the URL of an index and the URL of its mirror.
    *bundle* has files in place of an index.  *file_hosts* are hosts on which the default
    index keeps its files.  With *keyring*, the keyring is queried for credentials.
    """

    default_index: Url
    find_links: tuple[Url, ...] = ()
    links_override: bool = False
    offline: bool = False
    bundle: Bundle | None = None
    keyring: bool = False
    mirrors: tuple[tuple[str, Url], ...] = ()
    file_hosts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_settings(
    environ: Mapping[str, str],
    *,
    default_index: str | None = None,
    find_links: Sequence[str] = (),
    offline: bool = False,
    indexes: Sequence[Index] | None = None,
) -> Settings:
    """Return the settings: arguments come first, then ``COLABLOCK_*``, then those of pip and uv.

    Lists are split at white space, ``UV_FIND_LINKS`` at commas as in uv; one folder may have either.  Extra
    indexes of pip and uv are not used: a matrix names the index of each package
    that needs another one.  *indexes* are the indexes that the matrix declares;
    without them, no mirror is read.

    Raises InvalidInput for an invalid ``COLABLOCK_*`` variable.
    """
    notes: list[str] = []
    pip = _pip_configuration(environ)
    index = default_index or environ.get("COLABLOCK_DEFAULT_INDEX")
    if not index:
        index, said = _fallback(
            environ, pip, ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"), "index-url"
        )
        index = _without_name(index)
        notes += [f"using the default index from {said}"] if said else []
    links = tuple(find_links) or _parts(environ.get("COLABLOCK_FIND_LINKS", ""), by_comma=False)
    if not links:
        text, said = _fallback(environ, pip, ("UV_FIND_LINKS", "PIP_FIND_LINKS"), "find-links")
        links = _parts(text or "", by_comma=said == "UV_FIND_LINKS")
        notes += [f"using find-links from {said}"] if said else []
    _, said = _fallback(environ, pip, ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"), _EXTRA)
    if said:
        notes.append(f"not using the extra indexes from {said}: a matrix names its own indexes")
    keyring, said = _keyring(environ, pip)
    notes += [f"querying the keyring for passwords, as set in {said}"] if said else []
    why = distrusted(folder := cache_folder(environ))
    notes += [f"not using the cache `{folder}`: {why}"] if why else []
    mirrors: tuple[tuple[str, Url], ...] = ()
    if indexes is not None:
        mirrors, unknown = _mirrors(environ, indexes, index or DEFAULT_INDEX)
        notes += unknown
    return Settings(
        default_index=Url(index or DEFAULT_INDEX),
        find_links=tuple(map(Url, links)),
        links_override=bool(find_links),
        offline=offline or environ.get("COLABLOCK_OFFLINE", "") not in {"", "0"},
        keyring=keyring,
        mirrors=mirrors,
        file_hosts=_file_hosts(environ),
        notes=tuple(notes),
    )


def _file_hosts(environ: Mapping[str, str]) -> tuple[str, ...]:
    hosts = tuple(environ.get(FILE_HOSTS, "").split())
    for host in hosts:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*(?::[0-9]{1,5})?", host):
            message = f"`{redacted(host)}` in {FILE_HOSTS} is not a host name"
            raise InvalidInput(message, hint="Write host names with spaces between them: `files.example.com`")
    return hosts


def mirror_variable(name: str) -> str:
    """Return the variable for the mirror of the index *name* of a matrix."""
    return MIRROR + re.sub(r"[^A-Z0-9]", "_", name.upper())


def _mirrors(
    environ: Mapping[str, str], indexes: Sequence[Index], default: str
) -> tuple[tuple[tuple[str, Url], ...], list[str]]:
    """Return the mirrors, and a note for each variable whose index does not exist.

    The name `default` stands for the default index, unless the matrix declares an index of that name.
    """
    named = {"default": next((index.url for index in indexes if index.default), default)}
    named |= {index.name: index.url for index in indexes}
    known: dict[str, str] = {}
    for name in named:
        variable = mirror_variable(name)
        other = known.setdefault(variable, name)
        if other != name and environ.get(variable):
            message = f"{variable} is the variable of two indexes: `{other}` and `{name}`"
            raise InvalidInput(message, hint="Use COLABLOCK_MIRRORS, which takes URLs")
    places, notes = [], []
    for variable in sorted(name for name in environ if name.startswith(MIRROR) and environ[name]):
        if variable in known:
            places.append((str(named[known[variable]]), Url(_place(variable, environ[variable]))))
        else:
            notes.append(f"{variable} does not name an index of this matrix: {_near(variable, known)}")
    return tuple(places), notes


def _near(variable: str, known: Iterable[str]) -> str:
    """Return a suggestion from the variables *known*, compared without their common prefix."""
    tails = [one.removeprefix(MIRROR) for one in known]
    hint = near(variable.removeprefix(MIRROR), tails)
    listed = ", ".join(f"`{MIRROR}{tail}`" for tail in tails)
    return hint.replace("`", f"`{MIRROR}", 1) if hint else f"it has {listed}"


def _place(variable: str, text: str) -> str:
    """Return the URL of a mirror, also for a folder."""
    checked_index(text, f"{variable}:")
    if "://" not in text:
        return expanded(text, variable).resolve().as_uri()
    if "?" in text or "#" in text:
        message = f"`{redacted(text)}` in {variable} is not a valid mirror: the URL has a query or a fragment"
        raise InvalidInput(message, hint="Write the URL of the folder of projects, without `?` and `#`")
    return text


def _keyring(environ: Mapping[str, str], pip: Mapping[str, str]) -> tuple[bool, str | None]:
    """Return whether the keyring is queried, and the setting of another tool that says so."""
    own = environ.get("COLABLOCK_KEYRING_PROVIDER")
    if own:
        if own not in {"subprocess", "disabled"}:
            message = f"`{own}` in COLABLOCK_KEYRING_PROVIDER is not a keyring provider"
            raise InvalidInput(message, hint="Write `subprocess` or `disabled`")
        return own == "subprocess", None
    text, said = _fallback(environ, pip, ("UV_KEYRING_PROVIDER", "PIP_KEYRING_PROVIDER"), "keyring-provider")
    return (True, said) if text == "subprocess" else (False, None)


def _without_name(index: str | None) -> str | None:
    """Return the URL of an index in uv's form ``name=url``."""
    named = re.fullmatch(r"[A-Za-z0-9._-]+=(.+://.+)", index or "")
    return named[1] if named else index


def _parts(text: str, *, by_comma: bool) -> tuple[str, ...]:
    """Return the parts of a list; the path of a folder that is there is one, whatever it has in it."""
    with suppress(InvalidInput, OSError):  # `~` of nobody, or a name that is too long
        if text.strip() and expanded(text.strip(), "a list of folders").is_dir():
            return (text.strip(),)
    parts = text.split(",") if by_comma else text.split()
    return tuple(part.strip() for part in parts if part.strip())


def _fallback(
    environ: Mapping[str, str], pip: Mapping[str, str], variables: Sequence[str], key: str
) -> tuple[str | None, str | None]:
    """Return the first value among the settings of other tools, and where it comes from."""
    for variable in variables:
        if environ.get(variable):
            return environ[variable], variable
    if pip.get(key):
        return pip[key], "pip's configuration"
    return None, None


def _pip_configuration(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the ``[global]`` and ``[install]`` options of pip's configuration files; later files win."""
    found: dict[str, str] = {}
    for path in _pip_files(environ):
        try:
            text = read_text_file(path, SETTINGS_FILE).decode("utf-8")
        except (OSError, ValueError):  # ValueError: no UTF-8, a path with a null character
            continue
        import configparser  # noqa: PLC0415 - few machines have such a file

        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except (configparser.Error, ValueError):
            continue  # pip reports the faults of its own files
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    return found


def _pip_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield pip's configuration files in the order in which pip reads them."""
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
