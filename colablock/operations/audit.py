"""Audit a lock: the advisories that the indexes have of its releases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from colablock._common.scratch import scratch_folder
from colablock._common.text import command_line, count
from colablock._common.urls import redacted
from colablock.check.advisories import AuditedRelease, AuditResult, Unchecked, news_of
from colablock.errors import FetchFailed, NotFound
from colablock.index.project_pages import project_url, read_page
from colablock.lockfile.export import parents_of
from colablock.lockfile.pins import applicable_packages
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.tool_table import table_of
from colablock.matrix.catalog import lock_files
from colablock.network.fetcher import Fetcher
from colablock.network.settings import DEFAULT_INDEX
from colablock.operations.export import lock_of, matrix_of
from colablock.operations.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from colablock._vendor.packaging.pylock import Package, Pylock
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.matrix.model import Matrix
    from colablock.network.settings import Settings
    from colablock.planning.options import ApplyOptions

__all__ = ["audit_locks"]

_WORKERS = 16  # most of them wait for the network
#: Files of PyPI itself: a lock that names no index names them.
_FILES_OF_PYPI = "https://files.pythonhosted.org/"
#: Builds of releases that PyPI has, too.  The index has no advisories of its own.
_BUILDS_OF_PYPI = "https://download.pytorch.org/"


@dataclass(slots=True, kw_only=True)
class _Release:
    """A release of one or several locks, and the *index* to ask about it."""

    name: NormalizedName
    version: str
    asked: str
    index: str
    is_direct: bool = False
    required_by: set[str] = field(default_factory=set)
    locks: list[str] = field(default_factory=list)


def audit_locks(
    session: Session,
    options: ApplyOptions,
    *,
    every: bool = False,
    ignore: Iterable[str] = (),
    python_version: str | None = None,
    platform: str | None = None,
) -> AuditResult:
    """Return what the indexes know against the releases of a lock: advisories, yanks, project status.

    The lock is the one that an export takes; with *every*, all locks beside the
    matrix are audited.  *ignore* are ids or aliases of advisories.  A package is
    asked about only at the index that it comes from, and only if that is an index
    of the matrix or the default one.

    Raises FetchFailed if an index does not answer, if colablock is offline, or
    if no release could be checked.
    """
    with scratch_folder() as scratch:
        locks = _locks(session, options, scratch, (python_version, platform), every=every)
    matrix = matrix_of(session, options, next(iter(locks.values())))
    settings = session.settings(options, matrix)
    if settings.offline:
        message = "an audit needs the network: a lock has no advisories, and colablock is offline"
        hint = "Run it without `--offline` and COLABLOCK_OFFLINE"
        raise FetchFailed(message, url=redacted(settings.default_index), hint=hint)
    releases, unchecked = _sorted_out(locks, _indexes(settings, matrix))
    fetcher = Fetcher.for_settings(settings, session.environ)
    for url in _indexes(settings, matrix).values():
        fetcher.learn_credentials(url)
    session.reporter.stage(f"Asking for the advisories of {count(len(releases), 'release')}")
    answers = _asked(session, fetcher, releases)
    findings = [one for one in answers if isinstance(one, AuditedRelease)]
    unchecked += [one for one in answers if isinstance(one, Unchecked)]
    if unchecked and not findings:
        message = f"no release could be checked: {unchecked[0].name}: {unchecked[0].reason}"
        hint = "Audit on a machine that reaches PyPI, or name an index with advisories with `--default-index`"
        raise FetchFailed(message, url=redacted(settings.default_index), hint=hint)
    ids = {one for found in findings for advisory in found.advisories for one in advisory.ids}
    assumed = {name for lock in locks.values() for name in table_of(lock).get("assumes", {})}
    told = (_without_ignored(found, frozenset(ignore)) for found in findings)
    return AuditResult(
        matrix=matrix.name if matrix is not None else "",
        locks=tuple(locks),
        checked=len(findings),
        findings=tuple(one for one in told if one.advisories or one.ignored or one.yanked or one.status),
        unchecked=tuple(sorted(unchecked, key=lambda one: one.name)),
        assumed=len(assumed),
        unused_ignores=tuple(sorted(set(ignore) - ids)),
    )


def _locks(
    session: Session,
    options: ApplyOptions,
    scratch: Path,
    target: tuple[str | None, str | None],
    *,
    every: bool,
) -> dict[str, Pylock]:
    """Return the locks to audit by file name."""
    if not every:
        path = lock_of(session, options, scratch, *target)
        return {path.name: read_lock(path)}
    matrix = session.matrix(options.name)
    found = {path.name: read_lock(path) for path in lock_files(matrix, environ=session.environ)}
    if not found:
        command = command_line("lock", options.name, "--all", *options.sources)
        hint = f"Write them with `{command}`, or omit `--all`"
        raise NotFound(f"{matrix.name} has no locks beside it", hint=hint)
    return found


# -- which index to ask


def _indexes(settings: Settings, matrix: Matrix | None) -> dict[str, str]:
    """Return the indexes that may be asked, by the URL that locks name them with.

    A default index in the settings takes the place of PyPI.
    """
    declared = {_key(index.url): index.url for index in (matrix.indexes if matrix is not None else ())}
    default = settings.default_index
    return {**declared, _key(DEFAULT_INDEX): default, _key(default): default}


def _key(url: str) -> str:
    return redacted(url).rstrip("/")


def _sorted_out(
    locks: Mapping[str, Pylock], indexes: Mapping[str, str]
) -> tuple[list[_Release], list[Unchecked]]:
    """Return the releases to ask about, and the packages that no index can be asked about."""
    releases: dict[tuple[str, str, str], _Release] = {}
    unchecked: dict[tuple[str, str], Unchecked] = {}
    for lock_name, lock in locks.items():
        parents = parents_of(lock)
        matrix = str(table_of(lock).get("matrix", ""))
        for package in applicable_packages(lock):
            version = str(package.version or "")
            index, reason = _index_of(package, indexes)
            if index is None or package.version is None:
                missing = reason or "the lock does not say which version it is"
                unchecked[package.name, version] = Unchecked(
                    name=package.name, version=version, reason=missing
                )
                continue
            release = releases.setdefault(
                (package.name, version, index),
                _Release(name=package.name, version=version, asked=package.version.public, index=index),
            )
            release.locks.append(lock_name)
            release.required_by |= parents[package.name]
            release.is_direct |= matrix in parents[package.name]
    return list(releases.values()), list(unchecked.values())


def _index_of(package: Package, indexes: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the index to ask about *package*, or None and the reason."""
    url = _origin(package)
    if package.index is not None:
        key = _key(package.index)
        if f"{key}/".startswith(_BUILDS_OF_PYPI):
            return indexes[_key(DEFAULT_INDEX)], ""
        if key in indexes:
            return indexes[key], ""
        return None, f"its index {key} is neither one of the matrix nor the default index"
    if url is not None and url.startswith(_FILES_OF_PYPI):
        return indexes[_key(DEFAULT_INDEX)], ""
    return None, f"it comes from {redacted(url)}, not from an index" if url else "it comes from no index"


def _origin(package: Package) -> str | None:
    """Return where the code of a package without an index comes from."""
    if package.vcs is not None:
        return package.vcs.url or package.vcs.path
    if package.directory is not None:
        return package.directory.path
    made_from = table_of(package).get("made-from", {}).get("url")
    files = (*(package.wheels or ()), package.sdist, package.archive)
    return made_from or next((file.url for file in files if file is not None and file.url), None)


# -- asking


def _asked(
    session: Session, fetcher: Fetcher, releases: Sequence[_Release]
) -> list[AuditedRelease | Unchecked]:
    """Return the answer for each of *releases*, in their order."""
    pool = ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="colablock-audit")
    jobs = {pool.submit(_answer, fetcher, release): release for release in releases}
    waits = True
    try:
        for done, job in enumerate(as_completed(jobs), start=1):
            job.result()
            session.reporter.step(f"{jobs[job].name} {jobs[job].version}", done, len(jobs))
    except BaseException:
        waits = False  # do not wait for a server that does not answer
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)
    return [job.result() for job in jobs]


def _answer(fetcher: Fetcher, release: _Release) -> AuditedRelease | Unchecked:
    index = redacted(release.index)
    try:
        news = news_of(fetcher, index, release.name, release.asked)
    except FetchFailed as error:
        if error.status is None or error.is_passing:
            raise
        return Unchecked(name=release.name, version=release.version, reason=error.message)
    if news is None:
        reason = f"{_key(index)} has no advisories of {release.name} {release.asked}"
        return Unchecked(name=release.name, version=release.version, reason=reason)
    page = read_page(fetcher, project_url(index, release.name), index)
    return AuditedRelease(
        name=release.name,
        version=release.version,
        asked=release.asked,
        index=index,
        is_direct=release.is_direct,
        required_by=tuple(sorted(release.required_by)),
        advisories=news.advisories,
        yanked=news.yanked,
        status=page[1] if page is not None else None,
        locks=tuple(release.locks),
    )


def _without_ignored(finding: AuditedRelease, ignore: frozenset[str]) -> AuditedRelease:
    ignored = tuple(one for one in finding.advisories if ignore & set(one.ids))
    kept = tuple(one for one in finding.advisories if one not in ignored)
    return replace(finding, advisories=kept, ignored=ignored)
