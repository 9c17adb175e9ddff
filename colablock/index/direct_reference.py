"""Direct references (PEP 508, PEP 610): the one file that an entry names by its URL."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from colablock._common.urls import Url, basename, is_loopback, local_path, redacted, split_fragment
from colablock._vendor.packaging.version import Version
from colablock.errors import BadDistribution, FetchFailed
from colablock.index.candidates import (
    Candidate,
    CandidateOrigin,
    File,
    ProjectCandidates,
    Reason,
    Rejection,
)
from colablock.index.evaluator import Policy, judge_files, parse_wheel_name
from colablock.index.find_links import WHEELS_AND_SDISTS
from colablock.index.rebuilt_wheel import archive_version, rebuilt_version, source_identity
from colablock.matrix.model import PackageEntry
from colablock.network.fetcher import Fetcher

__all__ = ["direct_candidates", "direct_file", "not_here", "relabelled"]


def direct_candidates(entry: PackageEntry, fetcher: Fetcher, policy: Policy) -> ProjectCandidates:
    """Return the single candidate of a direct reference (PEP 508, PEP 610).

    Raises FetchFailed and BadDistribution as `direct_file`, and if a version has to be read and cannot.
    """
    name, file = entry.name, direct_file(entry, fetcher)
    where = (redacted(file.url),)
    if file.is_wheel:
        any_wheel = replace(policy, exclude_newer=None, no_binary=frozenset())
        judged = judge_files(name, [file], any_wheel, origin=CandidateOrigin.DIRECT)
        if entry.is_rebuilt:
            judged = replace(judged, candidates=[relabelled(one, entry) for one in judged.candidates])
        return replace(judged, where=where)
    if not entry.is_rebuilt and not policy.may_build(name):
        detail = f"{name} is a source archive, and building is not allowed (options.allow-build)"
        rejection = Rejection(
            name=name, version=None, filename=file.filename, reason=Reason.SDIST, detail=detail
        )
        return ProjectCandidates(rejections=(rejection,), where=where)
    version = Version(entry.version) if entry.version else archive_version(fetcher.fetch_named(file), entry)
    if entry.is_rebuilt:
        identity = entry.pinned_sha256 or source_identity(entry, fetcher.fetch_named(file))
        version = rebuilt_version(entry, version, identity)
    candidate = Candidate(
        name=name, version=version, origin=CandidateOrigin.DIRECT, files=(file,), all_files=(file,)
    )
    return ProjectCandidates(candidates=(candidate,), where=where)


def relabelled(candidate: Candidate, entry: PackageEntry) -> Candidate:
    """Return the candidate with the version of its rebuilt wheel."""
    file = candidate.file
    if file is None or "sha256" not in file.hashes:
        where = file.filename if file else str(candidate)
        raise BadDistribution(f"`{where}` is listed without a sha256, which a rebuilt wheel needs")
    version = rebuilt_version(entry, candidate.version, file.hashes["sha256"])
    return replace(candidate, version=version, files=(file,))


def direct_file(entry: PackageEntry, fetcher: Fetcher) -> File:
    """Return the file that *entry* names by URL, with its sha256; the file is fetched if none is given.

    Raises FetchFailed if the URL names no wheel or archive, BadDistribution if a wheel has an invalid name.
    """
    assert entry.url is not None  # noqa: S101 - the caller's case
    _check_direct(entry, entry.url)
    whole, hashes = split_fragment(Url(entry.url).with_credentials())
    plain, path = redacted(whole), local_path(whole)
    url = path.resolve().as_uri() if path is not None else fetcher.learn_credentials(whole)
    if entry.sha256:
        hashes["sha256"] = entry.sha256.lower()
    file = File(filename=basename(plain), url=url, hashes=hashes)
    if "sha256" not in hashes:
        if urlsplit(url).scheme == "http" and not is_loopback(url) and fetcher.place(url) == url:
            message = f"{entry.path} names `{redacted(url)}`, which is fetched over http, without a sha256"
            raise FetchFailed(message, url=redacted(url), hint="add its `sha256`, or use https")
        fetched = _fetched(entry, file, fetcher)
        file = file.replaced(hashes={**hashes, "sha256": fetcher.cache.local_digest(fetched)})
        return file.replaced(size=fetched.stat().st_size)
    return file


def _fetched(entry: PackageEntry, file: File, fetcher: Fetcher) -> Path:
    """Fetch a file whose hash nobody states.  Raises FetchFailed."""
    try:
        return fetcher.fetch(file)
    except FetchFailed as error:
        if not fetcher.offline:
            raise
        hint = (
            f"Add `sha256` to {entry.path}: a copy in a folder of find-links counts by its hash."
            " Or run this once without `--offline` and COLABLOCK_OFFLINE"
        )
        raise FetchFailed(error.message, url=error.url, hint=hint) from error


def _check_direct(entry: PackageEntry, url: str) -> None:
    """Raise FetchFailed if a direct reference is neither an archive nor a wheel."""
    scheme = urlsplit(url).scheme
    if re.match(r"(git|hg|svn|bzr)\+", url) or scheme in {"git", "ssh"}:
        message = (
            f"{entry.path} names the repository `{redacted(url)}`, and only archives and wheels can be used"
        )
        raise FetchFailed(message, url=redacted(url), hint=_archive_hint(url))
    filename = basename(split_fragment(url)[0])
    path = local_path(split_fragment(url)[0])
    if path is not None and path.is_dir():
        message = f"{entry.path} names the folder `{path}`, and only archives and wheels can be used"
        raise FetchFailed(message, url=url, hint="build a wheel of it, and name that")
    if not filename.endswith(WHEELS_AND_SDISTS):
        message = f"{entry.path} names `{redacted(url)}`, which is neither a wheel nor an archive"
        raise FetchFailed(message, url=redacted(url), hint="name a .whl, .tar.gz or .zip file")
    if filename.endswith(".whl"):
        try:
            parse_wheel_name(filename)
        except ValueError as error:
            raise BadDistribution(
                f"{entry.path} names `{filename}`, which is not a wheel: {error}"
            ) from error


def _archive_hint(url: str) -> str:
    """Return a hint at the archive URL of a repository, if its host offers one."""
    match = re.match(r"git\+https://github\.com/([^/@]+)/([^/@]+?)(?:\.git)?@([^#]+)", url)
    if match:
        return f"give an archive's URL: https://github.com/{match[1]}/{match[2]}/archive/{match[3]}.tar.gz"
    return "give the URL of an archive of one commit or tag, with its sha256"


def not_here(entry: PackageEntry) -> Rejection:
    """Return the rejection of a direct reference whose marker does not hold here."""
    detail = (
        f"{entry.path} takes {entry.name} from `{redacted(entry.url or '')}`, but that entry does not apply"
        " here, and no index is asked in its place"
    )
    return Rejection(name=entry.name, version=None, filename="", reason=Reason.EXCLUDED, detail=detail)
