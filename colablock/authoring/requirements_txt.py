"""Parse the lines of a requirements file (pip, Requirements File Format), without reading files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colablock._common.fs import expanded
from colablock._common.limits import REQUIREMENT, REQUIREMENT_LINE, SHOWN
from colablock._common.text import near
from colablock._common.urls import basename, local_path, redacted
from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, parse_sdist_filename, parse_wheel_filename
from colablock._vendor.packaging.version import Version
from colablock.authoring.requirement_file import FoundRequirement
from colablock.environment.requirements import requirement_of
from colablock.errors import InvalidInput

__all__ = [
    "FoundRequirement",
    "Line",
    "Option",
    "archive_of",
    "index_annotations",
    "logical_lines",
    "parse_built_elsewhere",
    "parse_line",
    "parse_named",
    "release_hint",
]

# The options of a line, each spelling with its canonical name.
_WITH_VALUE = {
    "-c": "--constraint",
    "--constraint": "--constraint",
    "-C": "--config-settings",
    "--config-settings": "--config-settings",
    "-e": "--editable",
    "--editable": "--editable",
    "--extra-index-url": "--extra-index-url",
    "-f": "--find-links",
    "--find-links": "--find-links",
    "--global-option": "--global-option",
    "--hash": "--hash",
    "-i": "--index-url",
    "--index-url": "--index-url",
    "--pypi-url": "--index-url",
    "--no-binary": "--no-binary",
    "--only-binary": "--only-binary",
    "-r": "--requirement",
    "--requirement": "--requirement",
    "--trusted-host": "--trusted-host",
    "--use-feature": "--use-feature",
}
_FLAGS = frozenset({"--no-index", "--pre", "--prefer-binary", "--require-hashes"})
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$")
_GITHUB_REPOSITORY = re.compile(
    r"(?:git\+)?(?:https|ssh)://(?:[^/@]*@)?github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?$"
)
_MARKER = re.compile(r";(?=\s)|(?<=\s);")
_FROM = re.compile(r"\s+# from ((?:https?|file)://\S+)\s*")
_OPTIONS = re.compile(r"(?:^|\s)(?=-)")
_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")
_USER = re.compile(r"//[^/\s]*@")
_ARCHIVE = (".whl", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_DIRECT = re.compile(r"[A-Za-z0-9._-]+\s*(?:\[[^\]]*\]\s*)?@")  # PEP 508, `name @ url`
# The folders in which conda-build and conda-forge build.
_CONDA = re.compile(
    r"/(croot|feedstock_root|build_artifacts|conda-bld|80754af9|perseverance-python-buildout)/"
    r"|/ci(_[a-z0-9]+)?/|/abs_[a-z0-9]+/|_\d{10,13}/work(/|$)",
)
_EXTRAS = re.compile(r"\[[A-Za-z0-9._, -]+\]$")
_GITHUB = re.compile(r"git\+[a-z]+://(?:[^/@]*@)?github\.com/([^/]+/[^/@#]+?)(?:\.git)?@([^#]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a line, by its canonical name.  The *value* of a flag is empty."""

    name: str
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: a *requirement* (a path or URL is possible) with options, or only options."""

    requirement: str = ""
    options: tuple[Option, ...] = ()

    def values(self, name: str) -> tuple[str, ...]:
        """Return every value of the option *name*."""
        return tuple(option.value for option in self.options if option.name == name)


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its number: continued lines are joined, comments and blank lines omitted.

    As in pip, a comment ends a continuation, and a backslash in a comment does not continue it.
    """
    parts: list[str] = []
    start = 1
    for number, raw in enumerate(text.splitlines(), start=1):
        start = start if parts else number
        is_comment = raw.lstrip().startswith("#")
        if raw.endswith("\\") and not is_comment:
            parts.append(raw.removesuffix("\\"))
            continue
        parts.append(f" {raw}" if is_comment else raw)
        if line := _COMMENT.sub("", "".join(parts)).strip():
            yield start, line
        parts.clear()
    if line := _COMMENT.sub("", "".join(parts)).strip():
        yield start, line


def index_annotations(text: str) -> dict[int, str]:
    """Return the index that a comment names for a requirement, by the number of the comment's line.

    ``uv pip compile --emit-index-annotation`` and ``colablock export`` write ``# from URL`` below a pin.
    """
    lines = enumerate(text.splitlines(), start=1)
    return {number: match[1] for number, line in lines if (match := _FROM.fullmatch(line))}


def parse_line(line: str) -> Line:
    """Return the parsed line.  Raises InvalidInput with its fault."""
    if len(line) > REQUIREMENT_LINE:
        raise InvalidInput(f"`{line[:SHOWN]}...` is longer than {REQUIREMENT_LINE:,} characters")
    if match := _VARIABLE.search(_USER.sub("//", line)):
        raise InvalidInput(f"the variable `{match[0]}` is not expanded", hint="write its value")
    at = match.start() if (match := _OPTIONS.search(line)) else len(line)
    try:
        words = iter(shlex.split(line[at:]))
    except ValueError as error:
        raise InvalidInput(f"`{line[at:].strip()}` cannot be split into words: {error}") from None
    parsed = Line(requirement=line[:at].strip(), options=tuple(_option(word, words) for word in words))
    if parsed.values("--hash") and not parsed.requirement:
        hint = "end the line before it with a backslash"
        raise InvalidInput("the hash belongs to no requirement", hint=hint)
    return parsed


def _option(word: str, following: Iterator[str]) -> Option:
    """Return the option that starts with *word*."""
    if word in _FLAGS:
        return Option(name=word)
    if word.startswith("--"):
        name, _, value = word.partition("=")
    else:
        name, value = word[:2], word[2:].removeprefix("=")
    if name not in _WITH_VALUE:
        hint = near(name, [*_WITH_VALUE, *_FLAGS])
        raise InvalidInput(f"`{word}` is not an option of requirements files", hint=hint)
    value = value or next(following, "")
    if not value:
        raise InvalidInput(f"`{name}` needs a value")
    return Option(name=_WITH_VALUE[name], value=value)


def parse_built_elsewhere(text: str) -> Requirement | None:
    """Return the project of a line that names a build on another machine; None for any other line.

    conda writes such lines (``numpy @ file:///croot/numpy_1668593735768/work``).  The folder of the
    build is not here, so only the name counts, and the version if the line names a wheel or an sdist.
    """
    match = _DIRECT.match(text)
    if match is None:
        return None
    try:
        requirement = _requirement(text, text)
    except InvalidInput:
        return None
    place = (requirement.url or "").partition("#")[0]
    path = local_path(place) if place.lower().startswith("file:") else None
    if path is None or _exists(path):
        return None
    is_archive = path.name.endswith(_ARCHIVE)
    if is_archive and _CONDA.search(place) is None:
        return None  # the user may have the file elsewhere
    version = _version_of(path.name) if is_archive else None
    requirement.url = None
    requirement.specifier = SpecifierSet(f"=={version}" if version else "")
    return requirement


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long or has a null character
        return False


def parse_named(text: str, folder: Path) -> Requirement:
    """Return the requirement in *text*: a PEP 508 requirement, or the URL or path of an archive.

    Relative paths start in *folder*.  User and password of a URL are removed.  Raises InvalidInput
    for an invalid requirement, and for folders and repositories, which cannot be pinned.
    """
    if len(text) > REQUIREMENT:
        raise InvalidInput(f"`{text[:SHOWN]}...` is longer than {REQUIREMENT:,} characters")
    if not _DIRECT.match(text) and (_is_url(text) or _is_path(text)):
        return _unnamed(text, folder)
    requirement = _requirement(text, text)
    if requirement.url is not None:
        requirement.url = _archive_url(requirement.url, folder, requirement.name)
    return requirement


def _requirement(line: str, text: str) -> Requirement:
    """Return the requirement in *line*, which is normalised from *text*."""
    try:
        return requirement_of(line)
    except InvalidRequirement as error:
        first_line = str(error).partition("\n")[0]
        raise InvalidInput(
            f"`{text}` is not a valid requirement (PEP 508): {first_line}", hint=_meant(text)
        ) from None


def _meant(text: str) -> str | None:
    """Return a hint for a single ``=``, as in conda's format."""
    match = re.fullmatch(r"([A-Za-z0-9._-]+)\s*=\s*([^=\s]+)(=\S+)?", text)
    return f"write `{match[1]}=={match[2]}`" if match else None


def _is_url(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text) is not None


def _is_path(text: str) -> bool:
    plain = text.partition(";")[0].strip()
    if "://" in plain:
        return False  # `demo==https://...`: no path, and no requirement
    return plain.startswith((".", "/", "~")) or _EXTRAS.sub("", plain).endswith(_ARCHIVE)


def _unnamed(text: str, folder: Path) -> Requirement:
    """Return the requirement of a bare URL or path.  The file name has the project's name."""
    # A URL may have a semicolon: one beside a space starts the marker.
    start = _MARKER.search(text) if _is_url(text) else re.search(";", text)
    place, marker = (text[: start.start()], text[start.end() :]) if start else (text, "")
    place = place.strip()
    extras = match[0] if (match := _EXTRAS.search(place)) else ""
    place = place.removesuffix(extras)
    egg = re.search(r"[#&]egg=([A-Za-z0-9._-]+)", place)
    # The name replaces `egg`; a hash in the fragment is kept.
    url = _archive_url(re.sub(r"#egg=[^&]+$", "", place), folder, egg[1] if egg else None)
    name = egg[1] if egg else _name_of(basename(url.partition("#")[0]))
    if name is None:
        raise InvalidInput(f"`{text}` does not name a project", hint=f"write `NAME @ {url}`")
    return _requirement(f"{name}{extras} @ {url}" + (f" ; {marker}" if start else ""), text)


def _name_of(filename: str) -> str | None:
    parts = _parts_of(filename)
    return str(parts[0]) if parts is not None else None


def _version_of(filename: str) -> str | None:
    parts = _parts_of(filename)
    return str(parts[1]) if parts is not None else None


def _parts_of(filename: str) -> tuple[NormalizedName, Version] | None:
    """Return name and version in the name of a wheel or an sdist."""
    try:
        is_wheel = filename.endswith(".whl")
        return parse_wheel_filename(filename)[:2] if is_wheel else parse_sdist_filename(filename)
    except ValueError:
        return None


def _archive_url(place: str, folder: Path, name: str | None) -> str:
    """Return the URL of the archive at *place*, which is a URL or a path."""
    if re.match(r"(git|hg|svn|bzr)\+", place):
        raise InvalidInput(
            f"`{_plain(place)}` is a repository, not an archive", hint=release_hint(place, name)
        )
    if basename(place.partition("#")[0]).endswith(_ARCHIVE):
        return (
            _plain(place)
            if _is_url(place)
            else (folder / expanded(place, "a requirement")).absolute().as_uri()
        )
    if place.startswith("file:") or not _is_url(place):
        hint = "build a wheel from it, and name the wheel"
        raise InvalidInput(f"`{place}` is a folder, not an archive", hint=hint)
    raise InvalidInput(f"`{_plain(place)}` is not an archive")


def _plain(url: str) -> str:
    return redacted(url)


def archive_of(repository: str, revision: str) -> str | None:
    """Return the URL of the archive of a revision of a repository on GitHub; None for another host."""
    match = _GITHUB_REPOSITORY.match(repository)
    return f"https://github.com/{match[1]}/archive/{revision}.tar.gz" if match else None


def release_hint(url: str, name: str | None = None) -> str:
    """Return a hint with the archive for a revision of a repository, if it is on GitHub."""
    egg = re.search(r"[#&]egg=([A-Za-z0-9._-]+)", url)
    match = _GITHUB.match(url)
    if match is None:
        return "name an archive or a wheel instead"
    name = name or (egg[1] if egg else "NAME")
    return f"write `{name} @ https://github.com/{match[1]}/archive/{match[2]}.tar.gz`"
