"""Finds a text's headings, and cuts the text into sections at them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from docutils import nodes
from docutils.core import publish_doctree
from markdown_it import MarkdownIt
from markdown_it.token import Token

Markup = Literal["plain", "markdown", "rst"]
"""How the headings of a text are written; plain text has none."""

_FRONT_MATTER: Final = re.compile(r"\A---[ \t]*\n.*?^(?:---|\.\.\.)[ \t]*$", re.DOTALL | re.MULTILINE)
_LINE_CONTENT: Final = re.compile(r"[^\n]")


@contextmanager
def rejected_by_parser(kind: str, *, where: str = "") -> Iterator[None]:
    """Raise ValueError for what a library's parser says of its input. The block must hold only the parser's call.

    Args:
        kind: What the parser reads, such as "HTML".
        where: The beginning of the message, such as "a.html: ".
    """
    try:
        yield
    except (MemoryError, OSError):  # not the content's fault
        raise
    except RecursionError as error:
        raise ValueError(f"{where}its elements are nested too deeply to be read: leave the file out") from error
    except Exception as error:  # parsers raise errors of any type for content that their authors did not expect
        why = str(error) or type(error).__name__
        raise ValueError(f"{where}cannot be read as {kind}: {why}: correct the file, or leave it out") from error


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a text.

    Attributes:
        title: Its text without markup.
        level: 1 to 6.
        start: Position of its first character in the text.
        end: Position after its last line.
    """

    title: str
    level: int
    start: int
    end: int


def read_headings(text: str) -> list[Heading]:
    """Return the headings of a CommonMark text in their order; headings inside quotes and lists do not count.

    Args:
        text: Lines end with a line feed only. A block of metadata between lines of "---" at its start is skipped.

    Raises:
        ValueError: If the parser rejects the text.
    """
    # The metadata would be parsed as an underlined heading, so it is replaced by as many blanks: positions stay.
    readable = _FRONT_MATTER.sub(lambda match: _LINE_CONTENT.sub(" ", match.group()), text)
    lines = [0]
    for line in readable.split("\n"):
        lines.append(lines[-1] + len(line) + 1)
    headings: list[Heading] = []
    with rejected_by_parser("Markdown"):
        tokens = MarkdownIt("commonmark").parse(readable)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0 and opening.map is not None:
            first, after = opening.map
            end = min(lines[after], len(text))
            headings.append(Heading(_plain(inline.children or []), int(opening.tag[1]), lines[first], end))
    return headings


_RST_SETTINGS: Final[dict[str, Any]] = {
    "_disable_config": True,
    "doctitle_xform": False,  # keep the first title as a section
    "file_insertion_enabled": False,
    "halt_level": 5,  # never stop at an error: a directive of Sphinx is unknown to docutils
    "raw_enabled": False,
    "report_level": 5,
}


def read_rst_headings(text: str) -> list[Heading]:
    """Return the headings of a reStructuredText in their order; headings inside blocks do not count.

    Args:
        text: Lines end with a line feed only.

    Raises:
        ValueError: If the parser rejects the text.
    """
    with rejected_by_parser("reStructuredText"):
        document = publish_doctree(text, settings_overrides=_RST_SETTINGS)
    lines = [0]
    for line in text.split("\n"):
        lines.append(lines[-1] + len(line) + 1)
    headings: list[Heading] = []

    def visit(parent: nodes.Element, level: int) -> None:
        for section in parent.children:
            if isinstance(section, nodes.section):
                title = section[0]
                below = title.line or 1  # the number of the line under the title, counted from 1
                above = text[lines[below - 3] : lines[below - 2]].strip() if below > 2 else ""
                is_overlined = above and above == text[lines[below - 1] : lines[below]].strip()
                start = lines[below - 3] if is_overlined else lines[below - 2]
                headings.append(Heading(title.astext(), level, start, min(lines[below], len(text))))
                visit(section, level + 1)

    visit(document, 1)
    return headings


def _plain(children: Sequence[Token]) -> str:
    return "".join(" " if child.type == "softbreak" else child.content for child in children).strip()


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a text from one heading to the next.

    Attributes:
        start: Position of its first character.
        end: Position after its last character.
        heading_length: Number of characters at its start that are headings: 0 before the first heading, and the length
            of several headings if no text stands between them.
        trail: The titles of the headings above it, the outermost first, its own last.
    """

    start: int
    end: int
    heading_length: int
    trail: tuple[str, ...]


def read_sections(text: str, markup: Markup = "markdown") -> list[Section]:
    """Cut a text before its headings; a heading without text below it stays with the next heading.

    Raises:
        ValueError: If the markup's parser rejects the text.
    """
    sections: list[Section] = []
    open_headings: list[Heading] = []
    start = heading_end = 0
    found = {"markdown": read_headings, "rst": read_rst_headings}
    for heading in found[markup](text) if markup != "plain" else ():
        if text[heading_end : heading.start].strip():
            sections.append(Section(start, heading.start, heading_end - start, _titles(open_headings)))
            start = heading.start
        heading_end = heading.end
        open_headings = [outer for outer in open_headings if outer.level < heading.level] + [heading]
    return [*sections, Section(start, len(text), heading_end - start, _titles(open_headings))]


def _titles(headings: Sequence[Heading]) -> tuple[str, ...]:
    return tuple(heading.title for heading in headings if heading.title)
