"""The indexes that the tables of uv, Poetry or PDM declare, and the notes on what a matrix does otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from colablock._common.limits import SHOWN
from colablock._common.urls import redacted
from colablock.authoring.requirement_file import RequirementFile
from colablock.errors import Fault, FetchFailed

__all__ = ["DeclaredIndexes", "listed"]


@dataclass
class DeclaredIndexes:
    """The indexes of *tool*, declared in *table* of the file *source*.

    A matrix asks an index other than the default only for packages that name it.  Notes say which
    indexes the tool asks for every package, and which passwords are dropped.
    """

    tool: str
    source: str
    table: str
    default: str | None = None
    urls: list[str] = field(default_factory=list)  # other than the default, in order
    names: dict[str, str] = field(default_factory=dict)  # by URL
    find_links: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _by_name: dict[str, str] = field(default_factory=dict)
    _searched: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The location in messages."""
        return f"{self.source}:{self.table}"

    def add(self, url: str, name: str | None = None, *, is_searched: bool, is_default: bool = False) -> None:
        """Add an index; the tool asks one that *is_searched* for every package."""
        plain = self.plain(url)
        if name is not None:
            self._by_name[name] = plain
            self.names[plain] = name
        if is_default:
            self.default = plain
        else:
            self.urls.append(plain)
            self._searched += [name or plain] if is_searched else []

    def plain(self, url: str) -> str:
        """Return *url* without user and password, with a note if it has them."""
        try:
            plain = redacted(url)
            urlsplit(plain)
        except FetchFailed as error:
            self.faults.append(Fault(path=self.where, message=error.message))
            return url
        except ValueError as error:
            message = f"`{plain[:SHOWN]}` is not a valid URL: {error}"
            self.faults.append(Fault(path=self.where, message=message))
            return url
        if plain != url:
            self.drop_password(plain)
        return plain

    def drop_password(self, plain: str) -> None:
        """Add the note that the user and the password of *plain* are not taken over."""
        note = f"omitted user and password of `{plain}`: put them into a netrc file"
        self.notes += [note] if note not in self.notes else []

    def has(self, name: str, *, any_case: bool = False) -> bool:
        """Whether an index has the name *name*, with *any_case* in other letter case, too."""
        return self._of(name, any_case=any_case) is not None

    def named(self, name: str, where: str, *, any_case: bool = False) -> str | None:
        """Return the URL of the index *name*; None, with a fault at *where*, if none has that name."""
        url = self._of(name, any_case=any_case)
        if url is None:
            message = f"names the index `{name}`, and `{self.table}` has none of that name"
            self.faults.append(Fault(path=where, message=message))
        return url

    def _of(self, name: str, *, any_case: bool) -> str | None:
        alike = {own.lower(): url for own, url in self._by_name.items()} if any_case else self._by_name
        return alike.get(name.lower() if any_case else name)

    def added_to(self, file: RequirementFile) -> RequirementFile:
        """Return *file* with these indexes and the notes about them."""
        notes = list(self.notes)
        if self._searched:
            notes.append(
                f"{self.tool} asks {listed(dict.fromkeys(self._searched))} for every package, and a matrix"
                " only for those that name it: set `index` of them"
            )
        default = self.default if self.default is not None else file.default_index
        urls = dict.fromkeys([*file.indexes, *self.urls])
        return replace(
            file,
            indexes=tuple(url for url in urls if url != default),
            default_index=default,
            index_names={**file.index_names, **self.names},
            find_links=(*file.find_links, *self.find_links),
            notes=(*file.notes, *notes),
        )


def listed(names: Iterable[str]) -> str:
    """Return *names* as a list in a message."""
    return ", ".join(f"`{name}`" for name in names)
