"""Where an installed distribution came from, and whether an index may replace it.

A project of the same name in an index may be another one, so a distribution is replaced only where
its own source offers it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from colablock._common.urls import redacted
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.errors import FetchFailed
from colablock.index.candidates import Candidates, rejections_of

if TYPE_CHECKING:
    from colablock.environment.snapshot import Installed
    from colablock.index.candidates import CandidateSource

__all__ = ["direct_origin", "direct_refusal", "refusal_of"]

_BUILD = re.compile(r"cpu|cu[0-9]+|rocm[0-9.]+|xpu")  # local labels of the builds of one public version


def direct_origin(there: Installed) -> str | None:
    """Return the URL (without credentials) that *there* was installed from (PEP 610); None for an index.

    The wheel of a build for an accelerator on a web server counts as that of an index: the images of
    Colab have some that were installed by their URL.
    """
    origin = there.direct_url
    if origin is None:
        return None
    is_archive = origin.url.startswith("https://") and origin.archive_info is not None
    return None if is_archive and _is_build(there.version) else redacted(origin.url)


def direct_refusal(there: Installed, *, by: str) -> str | None:
    """Return why *by* ("a repair") must not replace *there*: it belongs to no index; None if it may."""
    origin = direct_origin(there)
    if origin is None:
        return None
    return f"{there.name} was installed from `{origin}`, and {by} takes it from nowhere else"


def refusal_of(there: Installed, source: CandidateSource, *, by: str) -> str | None:
    """Return why *by* ("a repair") must not replace *there* from *source*; None if it may.

    *source* has to list the version that is installed, and a direct reference belongs to no index.
    A build for an accelerator (``2.8.0+cu128``) counts as its public version.
    """
    refusal = direct_refusal(there, by=by)
    if refusal is not None:
        return refusal
    try:
        judged = source.judge(there.name)
    except FetchFailed:
        return None  # the caller asks again and handles the error
    if not judged.candidates:
        return None
    known: dict[Version, str] = {}
    try:
        version = Version(there.version)
    except InvalidVersion:
        pass
    else:
        known = {version: str(version)}
        if _is_build(there.version):
            known[Version(version.public)] = version.public

    def is_known(one: Version | None) -> bool:
        return one is not None and known.get(one) == str(one)

    # A rejection is worded when it is read, so they are read last.
    if Candidates.of(judged.candidates).select(is_known):
        return None
    if any(rejections_of(judged.rejections, is_known)):
        return None
    where = " or ".join(f"`{place}`" for place in judged.where) or "its source"
    return f"{where} does not list {there.name} {there.version}, so it may be another project of that name"


def _is_build(version: str) -> bool:
    try:
        return _BUILD.fullmatch(Version(version).local or "") is not None
    except InvalidVersion:
        return False
