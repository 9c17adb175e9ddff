"""The Dockerfile of a lock: an image with exactly its distributions, each checked against its hash."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from colablock.deployment.target import built_from_sdist, checked_name, installable, target_of
from colablock.errors import InvalidInput
from colablock.lockfile.export import Format, export_text, header_lines

if TYPE_CHECKING:
    from colablock._vendor.packaging.pylock import Pylock
    from colablock.deployment.target import DeployTarget

__all__ = ["dockerfile_text"]

_ODD = re.compile(r"[*?\[\\^!$<]|^ | $")  # in a source of COPY
_END = "REQUIREMENTS"  # of the requirements in the Dockerfile
#: The Debian release of the official images of Python, by the newest glibc that it is enough for.
_RELEASES = (((2, 36), "bookworm"), ((2, 41), "trixie"))
_FULL_IMAGE = """\
# The base image, and its digest: `--build-arg BASE_DIGEST=sha256:...` pins it.
# It needs Python {python} with pip and venv, and glibc {glibc}.  A C compiler is for triton.
ARG BASE_IMAGE=python:{python}-{release}
ARG BASE_DIGEST
FROM ${{BASE_IMAGE}}${{BASE_DIGEST:+@${{BASE_DIGEST}}}}

ARG VENV=/opt/venv
ARG USER_ID=1000

# The lock is for this interpreter and this machine.
RUN python3 -c 'import platform, sys; \\
found = (sys.version_info[:2], platform.machine()); \\
glibc = tuple(map(int, (platform.libc_ver()[1] or "0").split("."))); \\
sys.exit(None if found == (({versions}), "{machine}") and glibc >= ({glibcs}) else \\
"the lock is for Python {python} on {platform}")'
"""
_INSTALL = """\
RUN {mounts}python3 -m venv --without-pip "${{VENV}}" \\
    && python3 -m pip --python "${{VENV}}/bin/python" install --disable-pip-version-check --no-deps \\
    --only-binary :all:{builds} --require-hashes --requirement requirements.txt

ENV VIRTUAL_ENV=${{VENV}} \\
    PATH=${{VENV}}/bin:${{PATH}} \\
    PYTHONUNBUFFERED=1

# The base image may have a user of that number.
RUN useradd --create-home --non-unique --uid "${{USER_ID}}" --user-group trainer
USER ${{USER_ID}}
WORKDIR /home/trainer
"""
# pip reads these variables, so neither mount depends on the home of the user that builds.
_CACHE = ("ARG PIP_CACHE_DIR=/var/cache/pip", "--mount=type=cache,target=/var/cache/pip,sharing=locked")
_SECRET = ("ARG NETRC=/run/secrets/netrc", "--mount=type=secret,id=netrc")


def dockerfile_text(
    lock: Pylock, *, source: str, matrix: str | None = None, wheels: Sequence[str] = ()
) -> str:
    """Return the Dockerfile of *lock*, which *source* names in messages.

    *matrix* is what the user calls the matrix.  *wheels* are the folders of the wheels that no index has,
    relative to the build context.  Raises InvalidInput for a lock that an image cannot have, or that has
    a value which would change the meaning of a line.
    """
    target = target_of(lock)
    lock = installable(lock, target)
    copied = _copied(wheels)
    links = list(copied.values())
    requirements = export_text(lock, Format.REQUIREMENTS, source=source, matrix=matrix, find_links=links)
    if _END in requirements.splitlines():
        raise InvalidInput(f"`{source}` has a line `{_END}`", hint="Make the lock again from its matrix")
    return "\n".join(_lines(lock, target, requirements, copied, matrix)) + "\n"


def _copied(folders: Sequence[str]) -> Mapping[str, str]:
    """Return the name in the image of each folder of the build context.  Raises InvalidInput.

    pip gets no name of the user: it would expand variables and cut comments off.
    """
    names = map(checked_name, folders)
    return {folder: "wheels" if at == 1 else f"wheels-{at}" for at, folder in enumerate(names, 1)}


def _copy_words(folder: str, name: str) -> str:
    """Return the arguments of COPY for a *folder* of the build context, which gets a *name* in the image.

    BuildKit looks for a here-document, decodes the JSON, expands variables as a shell does, and takes the
    source for a pattern.  It compares that by Go's `filepath.Match`, and by a regular expression of its own:
    both understand a class with one escaped character.  A `!` or a space at an end has a meaning, too.
    """
    pattern = _ODD.sub(r"[\\\g<0>]", folder)
    word = re.sub(r"""([\\$"'])""", r"\\\1", pattern)
    return json.dumps([word, f"{name}/"], ensure_ascii=False)


def _lines(
    lock: Pylock, target: DeployTarget, requirements: str, copied: Mapping[str, str], matrix: str | None
) -> Iterator[str]:
    yield "# syntax=docker/dockerfile:1"
    yield from header_lines(lock, (), "dockerfile", called=matrix)
    release = next((name for newest, name in _RELEASES if target.glibc <= newest), _RELEASES[-1][1])
    major, minor = target.python.split(".")
    yield _FULL_IMAGE.format(
        python=target.python,
        versions=f"{major}, {minor}",
        release=release,
        glibc=".".join(map(str, target.glibc)),
        glibcs=", ".join(map(str, target.glibc)),
        machine=target.machine,
        platform=target.platform,
    )
    yield "WORKDIR /opt/colablock"
    yield from (f"COPY {_copy_words(folder, name)}" for folder, name in copied.items())
    yield f"COPY <<'{_END}' requirements.txt"
    _, _, pins = requirements.partition("\n\n")
    yield from pins.splitlines()
    yield _END
    yield ""  # hadolint expects it
    # A private index: `docker build --secret id=netrc,src=$HOME/.netrc`.  It is in no layer.
    sdists = built_from_sdist(lock)
    if sdists:
        yield "# pip builds what has no wheel: the lock pins its sources, not what builds them."
    builds = "".join(f" --no-binary {name}" for name in sdists)
    mounts = (_CACHE, _SECRET) if "index-url " in pins else (_CACHE,)
    yield from (argument for argument, _ in mounts)
    yield _INSTALL.format(mounts="".join(f"{mount} \\\n    " for _, mount in mounts), builds=builds).rstrip()
