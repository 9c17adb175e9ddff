"""Direct references of installed distributions (`direct_url.json`, PEP 610)."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from colablock._common.urls import redacted, unquoted_path

if TYPE_CHECKING:
    from colablock._vendor.packaging.direct_url import DirectUrl

__all__ = [
    "archive_sha256",
    "editable_folder",
    "from_freeze",
    "is_editable",
    "read_direct_url",
    "to_freeze",
]


def read_direct_url(text: str | None) -> DirectUrl | None:
    """Return the direct reference in *text*, which is JSON; None if it is not valid (PEP 610, PEP 710).

    Installed metadata cannot be corrected here, so an invalid file counts as none.
    """
    if not text:
        return None
    # The no-op check of an apply loads this module, and reads no metadata.
    from colablock._vendor.packaging.direct_url import DirectUrl, DirectUrlValidationError  # noqa: PLC0415

    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            return None
        if isinstance(value.get("url"), str):
            value["url"] = redacted(value["url"])  # pip leaves passwords out, other installers may not
        return DirectUrl.from_dict(value)
    except (ValueError, DirectUrlValidationError):
        return None


def archive_sha256(origin: DirectUrl | None) -> str | None:
    """Return the sha256 of the archive that was installed; None if it is not recorded."""
    archive = origin.archive_info if origin is not None else None
    return (archive.hashes or {}).get("sha256") if archive is not None else None


def is_editable(origin: DirectUrl | None) -> bool:
    """Whether the distribution is installed in editable mode."""
    return origin is not None and origin.dir_info is not None and bool(origin.dir_info.editable)


def editable_folder(origin: DirectUrl | None) -> str | None:
    """Return the folder of the project, links resolved, if the installation is editable."""
    if origin is None or not is_editable(origin):
        return None
    return os.path.realpath(unquoted_path(urlsplit(origin.url).path))


def from_freeze(url: str) -> DirectUrl:
    """Return the direct reference that ``pip freeze`` shows as ``name @ url``."""
    from colablock._vendor.packaging.direct_url import (  # noqa: PLC0415 - see `read_direct_url`
        ArchiveInfo,
        DirectUrl,
        DirInfo,
        VcsInfo,
    )

    url = redacted(url)
    if match := re.match(r"(git|hg|svn|bzr)\+", url):
        repository, _, commit = url[match.end() :].partition("#")[0].rpartition("@")
        return DirectUrl(url=repository, vcs_info=VcsInfo(vcs=match[1], commit_id=commit))
    base, _, fragment = url.partition("#")
    if base.startswith("file:") and not re.search(r"\.(whl|zip|tar\.\w+|tgz)$", base):
        return DirectUrl(url=base, dir_info=DirInfo())
    digest = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    return DirectUrl(url=base, archive_info=ArchiveInfo(hashes={"sha256": digest[1]} if digest else None))


def to_freeze(origin: DirectUrl) -> str:
    """Return the URL that ``pip freeze`` shows for *origin*, without credentials."""
    url = redacted(origin.url)
    if origin.vcs_info is not None:
        url = f"{origin.vcs_info.vcs}+{url}@{origin.vcs_info.commit_id}"
    fragment = {"sha256": archive_sha256(origin), "subdirectory": origin.subdirectory}
    known = {key: value for key, value in fragment.items() if value is not None}
    return f"{url}#{urlencode(known, safe='/')}" if known else url
