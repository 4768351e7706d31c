"""Headings and the paragraphs under them, from HTML manuals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Final

from tests.small_recipe.sections import squeeze

_BLOCKS: Final = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "p", "li", "dd", "dt"})
_SKIPPED: Final = frozenset({"script", "style", "pre", "nav", "table", "head"})
_SKIPPED_CLASSES: Final = frozenset(
    {"howtoget", "MAC", "toc", "navheader", "navfooter", "titlepage-info", "relatedtopics"}
)
_NUMBER: Final = re.compile(r"^(?:(?:[A-Z]|\d+)\.)+(?:\d+\.?)*\s*")


@dataclass(frozen=True, slots=True)
class Block:
    """A heading or a paragraph.

    Attributes:
        name: The id that the file has for it; empty if it has none.
        is_heading: Whether it opens a section.
        text: On one line.
    """

    name: str
    is_heading: bool
    text: str


class _Blocks(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._tag = ""
        self._name = ""
        self._parts: list[str] = []
        self._skipped_tag = ""
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipped_tag:
            self._depth += tag == self._skipped_tag
            return
        values = dict(attrs)
        if tag in _SKIPPED or _SKIPPED_CLASSES.intersection((values.get("class") or "").split()):
            self._skipped_tag, self._depth = tag, 1
        elif tag in _BLOCKS:
            self.flush()
            self._tag, self._name = tag, values.get("id") or ""
        elif tag == "br":
            self._parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._skipped_tag:
            self._depth -= tag == self._skipped_tag
            if not self._depth:
                self._skipped_tag = ""
        elif tag in _BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if self._tag and not self._skipped_tag:
            self._parts.append(data)

    def flush(self) -> None:
        text = squeeze("".join(self._parts))
        if self._tag and text:
            is_heading = self._tag[0] == "h"
            self.blocks.append(Block(self._name, is_heading, _NUMBER.sub("", text) if is_heading else text))
        self._tag, self._name, self._parts = "", "", []


def read_blocks(html: str) -> list[Block]:
    """Return the headings and paragraphs of a page, in order; tables, code and navigation are left out."""
    parser = _Blocks()
    parser.feed(html)
    parser.flush()
    return parser.blocks


def group_blocks(blocks: Sequence[Block], known: frozenset[str] = frozenset()) -> Iterator[tuple[str, str, str]]:
    """Yield every section as its name, heading and joined paragraphs.

    Args:
        blocks: Of one page.
        known: Texts to leave out: the English ones, which stand where nobody has translated yet.
    """
    heading: Block | None = None
    number = 0
    parts: list[str] = []
    for block in [*blocks, Block("", True, "")]:
        if not block.is_heading:
            if block.text not in known:
                parts.append(block.text)
            continue
        if heading is not None and parts and heading.text not in known:
            yield heading.name or str(number), heading.text, " ".join(parts)
        heading, parts, number = block, [], number + 1
