"""Read HTML into a tree.  An end tag that does not match the open element is a failure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

__all__ = ["Element", "body", "read"]

VOID = frozenset({"br", "input", "link", "meta"})
OPEN_ENDED = frozenset({"dd", "dt", "li", "option"})  # their end tags may be left out (HTML, optional tags)


@dataclass(eq=False)
class Element:
    """An element with what is below it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text below."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def has(self, name: str, word: str) -> bool:
        """Return whether *word* is among those of the attribute *name*."""
        return word in self.attributes.get(name, "").split()

    def all(self, tag: str | None = None, kind: str | None = None) -> list[Element]:
        """Return every element below with this tag and class, in order."""
        found = (one for one in self._below() if tag in {None, one.tag})
        return [one for one in found if kind is None or one.has("class", kind)]

    def one(self, tag: str | None = None, kind: str | None = None) -> Element:
        """Return the only such element below."""
        (found,) = self.all(tag, kind)
        return found

    def named(self, name: str) -> Element:
        """Return the only element below with this id."""
        (found,) = (one for one in self._below() if one.attributes.get("id") == name)
        return found

    def _below(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in OPEN_ENDED and self.open[-1].tag in OPEN_ENDED:
            self.open.pop()
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1].tag in OPEN_ENDED and tag not in OPEN_ENDED:
            self.open.pop()
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(text: str) -> Element:
    """Return the root of *text*.  Fails where it is not well nested."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], "something is not closed"
    return reader.root


def body(html: str) -> Element:
    """Return the only block of colablock in *html*, without its styles."""
    (block,) = read(html).all("div", "colablock")
    block.children = [one for one in block.children if isinstance(one, str) or one.tag != "style"]
    return block
