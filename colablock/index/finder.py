"""Find the candidates of a project in indexes, find-links and direct references."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from colablock._common.once_map import OnceMap
from colablock._common.urls import Url, local_path, redacted
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment
from colablock.environment.requirements import parse_requirement
from colablock.errors import BadDistribution, FetchFailed
from colablock.index.candidates import (
    Candidate,
    CandidateOrigin,
    Candidates,
    Deferred,
    File,
    KnownArchive,
    KnownArchives,
    Metadata,
    ProjectCandidates,
    Reason,
    Rejection,
    at_hand_first,
    has_label,
    rejections_of,
)
from colablock.index.direct_reference import (
    direct_candidates,
    not_here,
    relabelled,
)
from colablock.index.evaluator import FilesByVersion, Policy, judge_files
from colablock.index.find_links import FindLinks
from colablock.index.metadata_fetcher import MetadataSource, contents_key
from colablock.index.prefetch import Prefetcher, ReadOnce
from colablock.index.project_pages import (
    UNHASHED,
    of_index,
    project_url,
    read_page,
    unread_metadata,
    with_status,
)
from colablock.index.rebuilt_wheel import replaced_metadata
from colablock.matrix.model import Index, Matrix, PackageEntry
from colablock.matrix.package_sources import PackageSources
from colablock.network.fetcher import Fetcher

__all__ = ["IndexSource"]


class IndexSource:
    """The CandidateSource of indexes and folders.  Safe to use from several threads.

    *entries* tells where each name comes from: an index of its own (then no other
    index is asked for it), a direct reference, a preferred local label, and whether
    its wheel is rebuilt.  The first of the *default* indexes that has a project is
    the only one used for it.  *find_links* take precedence over indexes: their
    candidates come first, and an index's candidate of the same version is dropped.
    With *links_override* False it is the other way round, except that offline a
    file that is at hand comes before one that is not.  *known* tells what a lock
    knows about the archive of an entry or the files of an index, for when its host cannot be reached.  Names
    in *settled* are installed, so nothing is prefetched for them.  With
    *takes_unhashed* a file that its page lists without a strong hash is a
    candidate; whoever locks it has to fetch and hash it.  With *is_portable* the result is for
    other machines, so a folder of this one has no build that the matrix prefers where the index has
    one that fits, unless *links_override* says that the user has named it.  *reads* has what other
    solves of this call have read through *fetcher*.

    Otherwise candidates are ordered newest first, those with the preferred local label first.
    Offline, those whose file is at hand come first, and *unreached* has the names of which not all
    candidates are known, with the errors.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        policy: Policy,
        default: Sequence[str],
        indexes: Sequence[Index] = (),
        entries: Mapping[NormalizedName, PackageEntry] | None = None,
        elsewhere: Mapping[NormalizedName, PackageEntry] | None = None,
        find_links: Sequence[str] = (),
        links_override: bool = True,
        build: Callable[[Path], Path] | None = None,
        settled: Container[NormalizedName] = (),
        unwanted_labels: frozenset[str] = frozenset(),
        known: KnownArchives | None = None,
        takes_unhashed: bool = False,
        is_portable: bool = False,
        reads: ReadOnce | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._policy = policy
        named = {index.name: index for index in indexes}
        replacing = [index for index in indexes if index.default]
        self._default = replacing or [Index(name="default", url=Url(url)) for url in default]
        self._named = named
        self._entries = entries or {}
        self._elsewhere = elsewhere or {}
        self._links_override = links_override
        self._find_links = FindLinks(
            find_links, fetcher, partial(_page_of_links, fetcher), may_be_missing=not links_override
        )
        self._unwanted_labels = unwanted_labels
        self._reader = MetadataSource(fetcher, build)
        self._known = known
        self._takes_unhashed = takes_unhashed
        self._is_portable = is_portable and not links_override
        self._reads = reads or ReadOnce()
        self._files = self._reads.judged(policy.environment)
        self._claims: dict[NormalizedName, str] = {}  # names that packages of a named index require
        self._bound: dict[NormalizedName, str] = {}  # undeclared names and their indexes
        self._recalled: dict[NormalizedName, KnownArchive] = {}  # from a lock: their index is away
        self._judged: OnceMap[tuple[NormalizedName, str | None], ProjectCandidates] = OnceMap()
        self._metadata: OnceMap[tuple[object, ...], Metadata] = OnceMap()
        self._ahead = Prefetcher(
            self._reads, self._entries, settled, policy.environment, offline=fetcher.offline
        )
        self.unreached: dict[NormalizedName, FetchFailed] = {}
        self._errors = self.unreached if fetcher.offline else None

    @classmethod
    def for_matrix(
        cls,
        matrix: Matrix,
        *,
        environment: Environment,
        fetcher: Fetcher,
        default_index: str,
        find_links: Sequence[str] = (),
        links_override: bool = True,
        additions: Sequence[PackageEntry] = (),
        build: Callable[[Path], Path] | None = None,
        settled: Container[NormalizedName] = (),
        known: KnownArchives | None = None,
        takes_unhashed: bool = False,
        is_portable: bool = False,
        reads: ReadOnce | None = None,
    ) -> IndexSource:
        """Return the source that *matrix* (its variant selected) describes for *environment*."""
        options = matrix.options
        sources = PackageSources.of(matrix, environment, additions)
        variant = matrix.variants.get(matrix.variant or "")
        for_cards = variant is not None and variant.system.accelerator == "cuda"
        policy = Policy(
            environment=environment,
            exclude_newer=matrix.exclude_newer,
            allow_build=options.allow_build,
            no_binary=options.no_binary,
        )
        return cls(
            fetcher=fetcher,
            policy=policy,
            default=(default_index,),
            indexes=matrix.indexes,
            entries=sources.entries,
            elsewhere=sources.elsewhere,
            find_links=find_links,
            links_override=links_override,
            build=build,
            settled=settled,
            unwanted_labels=frozenset({"cpu"}) if for_cards else frozenset(),
            known=known,
            takes_unhashed=takes_unhashed,
            is_portable=is_portable,
            reads=reads,
        )

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        """Return the candidates of *name*, best first, and its rejections.  Raises FetchFailed."""
        return self._judged.get((name, self._bound.get(name)), lambda: self._judge(name))

    def bind(self, names: Mapping[NormalizedName, str]) -> None:
        """Take undeclared *names* from the named index that each comes in through, and from no other."""
        self._bound.update(names)

    def bind_missing(self, names: Iterable[NormalizedName]) -> bool:
        """Bind those of *names* that a package of a named index requires; return whether there are any."""
        found = {
            name: self._claims[name] for name in names if name in self._claims and name not in self._bound
        }
        self.bind(found)
        return bool(found)

    def metadata(self, candidate: Candidate) -> Metadata:
        """Return the metadata of *candidate*.  Raises BadDistribution or FetchFailed."""
        file = candidate.file.url if candidate.file else None
        key = (candidate.name, candidate.version, candidate.origin, file)
        return self._metadata.get(key, lambda: self._claimed(candidate, self._read(candidate)))

    def _claimed(self, candidate: Candidate, metadata: Metadata) -> Metadata:
        """Note the requirements of a package of a named index."""
        entry = self._entries.get(candidate.name)
        index = entry.index if entry is not None else self._bound.get(candidate.name)
        if index is not None and not (entry is not None and entry.requires_dist is not None):
            for requirement in metadata.requires:
                name = canonicalize_name(requirement.name)
                if name not in self._entries and name not in self._elsewhere:
                    self._claims.setdefault(name, index)
        return metadata

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        """Fetch the pages and the likely metadata of *names* and of their requirements in the background."""
        for name in names:
            entry = self._entries.get(name)
            self._ahead.start(self, name, entry.specifier if entry is not None else SpecifierSet())

    def expect(self, versions: Mapping[NormalizedName, Version | None]) -> None:
        """Fetch the pages of names that will probably be needed, and their metadata in these *versions*."""
        self._ahead.expected = versions
        self.prefetch(versions)

    # -- one name

    def _judge(self, name: NormalizedName) -> ProjectCandidates:
        entry = self._entries.get(name)
        if entry is not None and entry.url is not None:
            return _if_reached(name, partial(self._direct, entry), self._errors)
        if entry is None and (other := self._elsewhere.get(name)) is not None and other.url is not None:
            return ProjectCandidates(rejections=(not_here(other),))
        policy = _policy_for(self._policy, name, entry)
        listed = _if_reached(name, partial(self._listed, name, entry, policy), self._errors)
        linked = self._linked(name, policy, local=not self._is_elsewhere(entry, listed))
        return self._chosen(entry, linked, listed)

    def linked(self, name: NormalizedName) -> ProjectCandidates:
        """Return the candidates of *name* in find-links alone; none if the matrix takes it from a URL."""
        entry = self._entries.get(name)
        if (entry or self._elsewhere.get(name) or PackageEntry(name=name, path="")).url is not None:
            return ProjectCandidates(found=False)
        linked = self._linked(name, _policy_for(self._policy, name, entry))
        return self._chosen(entry, linked, ProjectCandidates(found=False))

    def _chosen(
        self, entry: PackageEntry | None, linked: ProjectCandidates, listed: ProjectCandidates
    ) -> ProjectCandidates:
        """Return the candidates of find-links and of an index in the order in which they are tried."""
        found = _in_order(
            linked.candidates, listed.candidates, self._fetcher, links_override=self._links_override
        )
        if entry is not None and entry.prefer_local:
            label = entry.prefer_local
            found = found.ordered(lambda version: not has_label(version, label))
        if entry is not None and entry.is_rebuilt:
            found = Candidates.of([relabelled(candidate, entry) for candidate in found])
        if self._fetcher.offline:
            found = Candidates.of(at_hand_first(found, self._fetcher.is_here))
        labels = self._unwanted_labels  # no function may refer to the source: see `_page_of_links`
        unwanted = found.select(lambda version: has_label(version, *labels)) if labels else None
        return ProjectCandidates(
            candidates=found.select(lambda version: not has_label(version, *labels)) if labels else found,
            rejections=Deferred(
                lambda fits: (
                    *rejections_of(linked.rejections, fits),
                    *rejections_of(listed.rejections, fits),
                    *(map(_without_card, unwanted.select(fits)) if unwanted is not None else ()),
                )
            ),
            found=linked.found or listed.found,
            where=(*linked.where, *listed.where),
        )

    def _listed(self, name: NormalizedName, entry: PackageEntry | None, policy: Policy) -> ProjectCandidates:
        """Return the candidates in the entry's own index, else in the first default index that has *name*."""
        indexes = self._default
        bound = self._bound.get(name)
        entry = entry or self._elsewhere.get(name)
        if entry is not None and entry.index is not None:
            indexes = [_index_of(entry, entry.index, self._named)]
        elif entry is None and bound is not None:
            indexes = [self._named[bound]]
        where = []
        for index in indexes:
            url = project_url(self._fetcher.learn_credentials(index.url), name)
            where.append(redacted(index.url))
            try:
                known = self._listed_before(name, entry, index) or None
                page = None if known else self._page(url, redacted(index.url), name)
            except FetchFailed as error:
                known = self._listed_before(name, entry, index, error)
                if known is None:
                    raise of_index(error, f"{name} cannot be looked up", index) from error
                page = None
            if page is None and known is None:
                continue
            files, status = page or (FilesByVersion.of(name, known or ()), None)
            files = files.each(_without_hash_too) if self._takes_unhashed else files
            of_index_policy = replace(policy, exclude_newer=_cutoff(index, policy))
            judge = partial(judge_files, name, files, of_index_policy)
            rules = (url, redacted(index.url), name, self._takes_unhashed, of_index_policy.rules_for(name))
            judged = judge() if page is None else self._files.get(rules, judge)
            return with_status(name, status, replace(judged, where=tuple(where)), url)
        return ProjectCandidates(found=False, where=tuple(where))

    def _page(self, url: str, index: str, name: NormalizedName) -> tuple[FilesByVersion, str | None] | None:
        read = partial(read_page, self._fetcher, url, index, name)
        return self._reads.pages.get((url, index, name), read)

    def _listed_before(
        self, name: NormalizedName, entry: PackageEntry | None, index: Index, error: FetchFailed | None = None
    ) -> Sequence[File] | None:
        """Return the files of *name* in a lock, if its named *index* cannot be reached: now, or before."""
        is_rebuilt = entry is not None and entry.is_rebuilt
        if self._known is None or index.name not in self._named or is_rebuilt:
            return None
        if not (error.is_away if error is not None else self._known.is_away(index.url)):
            return None
        known = self._known.listed(name, index)
        if known is None:
            return None
        self._recalled[name] = known
        return known.candidate.all_files

    # -- find-links and direct references

    def _is_elsewhere(self, entry: PackageEntry | None, listed: ProjectCandidates) -> bool:
        """Whether other machines have a version that *entry* allows in place of a build of this machine."""
        if not self._is_portable or entry is None or not entry.prefer_local:
            return False
        allowed = partial(entry.specifier.contains, prereleases=True)
        return bool(Candidates.of(listed.candidates).select(allowed))

    def _linked(self, name: NormalizedName, policy: Policy, *, local: bool = True) -> ProjectCandidates:
        """Return the candidates in find-links, to which `exclude-newer` does not apply.

        With *local* false, those in folders of this machine are left out.
        """
        files = self._find_links.files(name)
        files = files if local else [file for file in files if local_path(file.url) is None]
        files = [*map(_without_hash_too, files)] if self._takes_unhashed else files
        origin = CandidateOrigin.FIND_LINKS
        judged = judge_files(name, files, replace(policy, exclude_newer=None), origin=origin)
        return replace(judged, found=bool(files), where=self._find_links.places)

    def _direct(self, entry: PackageEntry) -> ProjectCandidates:
        """Return the single candidate of a direct reference, or what a lock knows about it."""
        known = self._known.archive(entry) if self._known and self._known.is_away(entry.url) else None
        if known is None:
            try:
                return direct_candidates(entry, self._fetcher, self._policy)
            except FetchFailed as error:
                known = _recalled(self._known, entry, error, self._fetcher)
                if known is None:
                    raise
        return ProjectCandidates(candidates=(known.candidate,), where=(redacted(entry.url or ""),))

    # -- metadata

    def _read(self, candidate: Candidate) -> Metadata:
        if candidate.installed is not None:
            return _installed_metadata(candidate)
        file = candidate.file
        if file is None:
            raise BadDistribution(f"{candidate} has no file that could be read")
        entry, listed = self._entries.get(candidate.name), self._recalled.get(candidate.name)
        if listed is not None and listed.candidate.version == candidate.version:
            return listed.metadata
        try:
            return self._metadata_of(candidate, file, entry)
        except FetchFailed as error:
            known = _recalled(self._known, entry, error, self._fetcher)
            if known is not None and known.candidate.version == candidate.version:
                return known.metadata
            unread = unread_metadata(error, candidate, file)
            if not self._fetcher.offline:
                raise unread from error
            self.unreached[candidate.name] = unread
            raise BadDistribution(unread.message) from error

    def _metadata_of(self, candidate: Candidate, file: File, entry: PackageEntry | None) -> Metadata:
        read = partial(_metadata_of, self._reader, candidate, file, entry)
        key = contents_key(self._fetcher, file) if file.is_wheel else None
        if key is None or (entry is not None and entry.is_rebuilt):
            return read()
        return self._reads.metadata.get((candidate.name, key), read)


def _in_order(
    linked: Sequence[Candidate], listed: Sequence[Candidate], fetcher: Fetcher, *, links_override: bool
) -> Candidates:
    """Return the candidates of two sources, of a version in both that of the source that comes first."""
    if not linked:
        return Candidates.of(listed)
    first, second = (linked, listed) if links_override else (listed, linked)
    if not links_override and fetcher.offline:
        there = {candidate.version for candidate in linked}
        first = [c for c in first if c.version not in there or fetcher.copies.find(c.files[0])]
    versions = {candidate.version for candidate in first}
    return Candidates.of([*first, *(c for c in second if c.version not in versions)])


def _if_reached(
    name: NormalizedName,
    judge: Callable[[], ProjectCandidates],
    errors: dict[NormalizedName, FetchFailed] | None,
) -> ProjectCandidates:
    """Return what *judge* returns; with *errors*, none if it needs the network, and keep the error there."""
    try:
        return judge()
    except FetchFailed as error:
        if errors is None:
            raise
        errors[name], why = error, error.message
        unread = Rejection(name=name, version=None, filename="", reason=Reason.UNREADABLE, detail=why)
    return ProjectCandidates(rejections=(unread,), found=False)


def _recalled(
    known: KnownArchives | None, entry: PackageEntry | None, error: FetchFailed, fetcher: Fetcher
) -> KnownArchive | None:
    """Return what a lock knows about the archive of *entry*, if its host cannot be reached now."""
    is_away = error.is_away or fetcher.offline
    if known is None or entry is None or entry.url is None or not is_away:
        return None
    return known.archive(entry)


def _policy_for(policy: Policy, name: NormalizedName, entry: PackageEntry | None) -> Policy:
    """Return the policy for *name*: an entry with a source root takes its modules from the sdist."""
    if entry is None or entry.source_root is None:
        return policy
    return replace(policy, allow_build=policy.allow_build | {name}, no_binary=policy.no_binary | {name})


def _index_of(entry: PackageEntry, name: str, named: Mapping[str, Index]) -> Index:
    try:
        return named[name]
    except KeyError:
        raise FetchFailed(f"{entry.path} names the index `{name}`, and there is none", url=name) from None


def _without_hash_too(file: File) -> File:
    """Return *file*, acceptable even if it is listed without a hash: a lock hashes what it fetches."""
    return file.replaced(untrusted=None) if file.untrusted == UNHASHED else file


def _metadata_of(
    reader: MetadataSource, candidate: Candidate, file: File, entry: PackageEntry | None
) -> Metadata:
    if entry is None or not entry.is_rebuilt:
        return reader.read(candidate.name, candidate.version, file).parsed(file.filename)
    if entry.requires_dist is not None:
        return replaced_metadata(entry, Metadata(requires_python=file.requires_python))
    # Only the modules are replaced: the archive has to state its requirements statically.
    return replaced_metadata(entry, reader.read(candidate.name, None, file).parsed(file.filename))


def _page_of_links(fetcher: Fetcher, link: str) -> Sequence[File] | None:
    # No method: a reference of the source to itself would keep the cache locked until a collection.
    found = read_page(fetcher, fetcher.learn_credentials(link), None)
    return found[0].all() if found is not None else None


def _cutoff(index: Index, policy: Policy) -> datetime | None:
    """Return the `exclude-newer` of an index: its own, None if it is False, else the matrix's."""
    if isinstance(index.exclude_newer, datetime):
        return index.exclude_newer
    return None if index.exclude_newer is False else policy.exclude_newer


def _installed_metadata(candidate: Candidate) -> Metadata:
    """Return the metadata of an installed distribution; unreadable requirement lines are ignored."""
    installed = candidate.installed
    assert installed is not None  # noqa: S101 - checked by the caller
    parsed = (parse_requirement(line) for line in installed.requires)
    return Metadata(
        parsed=tuple(requirement for requirement in parsed if requirement is not None),
        requires_python=installed.requires_python,
        extras=frozenset(canonicalize_name(extra) for extra in installed.extras),
    )


def _without_card(candidate: Candidate) -> Rejection:
    return Rejection(
        name=candidate.name,
        version=candidate.version,
        filename=candidate.file.filename if candidate.file else "",
        reason=Reason.EXCLUDED,
        detail=f"{candidate} is a CPU build, and this variant is for a GPU",
    )
