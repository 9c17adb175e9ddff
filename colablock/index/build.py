"""Build wheels from sdists with ``uv build``, in an isolated build environment."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.child_environment import Purpose, child_environment
from colablock._common.fs import NEW, file_digest, make_private
from colablock._common.process import (
    ChildFailed,
    ChildOutput,
    last_lines,
    quiet_python,
    run_child,
    uv_command,
)
from colablock._common.scratch import scratch_folder
from colablock._common.urls import Url
from colablock._records import dataclass
from colablock._vendor import tomli_w
from colablock.environment.markers_and_tags import Environment
from colablock.errors import BadDistribution
from colablock.network.cache import Cache

if TYPE_CHECKING:
    from colablock.bundles.reader import Bundle

__all__ = ["Builder", "build_wheel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds wheels for one interpreter.  Calling it with an sdist returns the wheel.

    *python* is its executable, or a function that finds one when it is needed; "" if
    nothing can be built (a recorded runtime, another platform).  *index*,
    *find_links* and *exclude_newer* select the build requirements.  *address* gives
    the URL of an index or of find-links with its credentials.  *bundle* may have the wheel already.
    """

    python: str | Callable[[], str]
    environment: Environment
    cache: Cache
    environ: Mapping[str, str] = field(default_factory=dict)
    index: str | None = None
    find_links: Sequence[str] = ()
    exclude_newer: datetime | None = None
    offline: bool = False
    address: Callable[[str], str] = str
    bundle: Bundle | None = None

    def __call__(self, sdist: Path) -> Path:
        """Return the wheel of *sdist*, built once per sdist, Python, platform, cutoff and index.

        Raises BadDistribution with the last lines of output if the build fails.
        """
        tag = self.environment.tags[0]
        digest = file_digest(sdist)
        bundled = self.bundle.wheel_of(digest) if self.bundle is not None else None
        # The index counts too: the build requirements come from it.
        sources = (self.index or "", *self.find_links) if bundled is None else (bundled.sha256,)
        parts = (
            digest,
            tag.interpreter,
            tag.abi,
            tag.platform,
            str(self.exclude_newer),
            *sources,
        )
        folder = self.cache.path("built", "\n".join(parts))
        built = [wheel for wheel in sorted(folder.glob("*.whl")) if zipfile.is_zipfile(wheel)]
        if built:
            return built[0]
        from colablock.index.archive import open_archive  # noqa: PLC0415 - few plans build anything

        with open_archive(sdist):
            pass  # uv unpacks it, so it must be safe
        make_private(folder)
        with tempfile.TemporaryDirectory(prefix=NEW, dir=make_private(self.cache.unfinished)) as scratch:
            if bundled is not None and self.bundle is not None:
                self.bundle.copy(bundled, folder / bundled.filename)
                return folder / bundled.filename
            wheel = build_wheel(
                sdist,
                self.python if isinstance(self.python, str) else self.python(),
                Path(scratch),
                environ=self.environ,
                index=self.address(self.index) if self.index else None,
                find_links=[self.address(link) for link in self.find_links],
                exclude_newer=self.exclude_newer,
                offline=self.offline,
            )
            return wheel.replace(folder / wheel.name)


def build_wheel(
    sdist: Path,
    python: str,
    into: Path,
    *,
    environ: Mapping[str, str],
    index: str | None = None,
    find_links: Sequence[str] = (),
    exclude_newer: datetime | None = None,
    offline: bool = False,
) -> Path:
    """Build *sdist* with ``uv build`` and *python* into the empty folder *into*; return the wheel."""
    if not python or not Path(python).exists():
        message = f"`{sdist.name}` has to be built, and no interpreter here can build it"
        hint = "Run this where the target's Python is installed, or choose a version that has a wheel"
        raise BadDistribution(message, hint=hint)
    environ = environ or os.environ
    words = ["build", "--wheel", "--out-dir", str(into)]
    words += ["--exclude-newer", exclude_newer.isoformat()] if exclude_newer else []
    words += ["--offline"] if offline else []
    # Of what uv starts, the build, nothing may see a password: not on the command line, not in a variable,
    # not in a file.  uv reads its standard input once.
    config = tomli_w.dumps(_configuration(index, find_links, environ)).encode()
    # The working folder is empty, so that uv finds no foreign project or settings.
    try:
        with scratch_folder() as home:
            words += ["--python", quiet_python(python, environ, home), str(sdist.resolve())]
            command = uv_command(words, environ, configured=True)
            variables = _build_environment(environ, home)
            output = run_child(command, environ=variables, folder=into, data=config)
    except ChildFailed as error:
        raise _not_built(sdist, error.output, str(error)) from error
    wheels = sorted(into.glob("*.whl"))
    if len(wheels) != 1:
        raise _not_built(sdist, output, f"there are {len(wheels)} wheels")
    return wheels[0]


def _configuration(
    index: str | None, find_links: Sequence[str], environ: Mapping[str, str]
) -> dict[str, object]:
    """Return the configuration of uv: where build requirements come from, with every password."""
    found: dict[str, object] = {"find-links": list(find_links)} if find_links else {}
    if index:
        found["index"] = [{"url": index, "default": True}]
    for name in ("http", "https"):
        spelled = (f"{name}_proxy", f"{name}_proxy".upper(), "all_proxy", "ALL_PROXY")
        proxy = next((environ[one] for one in spelled if environ.get(one)), "")
        if Url(proxy) != proxy:  # others are variables, which older versions of uv know as well
            found[f"{name}-proxy"] = proxy
            # With a proxy in the configuration, uv does not read this variable.
            excepted = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
            found["no-proxy"] = [one for one in re.split(r"[,\s]+", excepted) if one]
    return found


def _build_environment(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the variables of a build: an empty home folder, and uv's cache where it always is."""
    user = environ.get("HOME") or str(home)
    variables = child_environment(Purpose.BUILD, environ, HOME=str(home))
    variables.setdefault("UV_CACHE_DIR", f"{environ.get('XDG_CACHE_HOME') or f'{user}/.cache'}/uv")
    variables.setdefault("RUSTUP_HOME", f"{user}/.rustup")
    return variables


def _not_built(sdist: Path, output: ChildOutput, why: str) -> BadDistribution:
    lines = last_lines(output.text + output.error_text, indent="  ") or f"  {why}"
    return BadDistribution(f"`{sdist.name}` cannot be built\n{lines}")
