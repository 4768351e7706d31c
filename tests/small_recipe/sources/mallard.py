"""Titles and the text under them, from the pages of GNOME's manuals (Mallard)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET

from tests.small_recipe.sections import squeeze

_SPACE: Final = "{http://projectmallard.org/1.0/}"
_PARAGRAPHS: Final = frozenset({f"{_SPACE}p", f"{_SPACE}desc"})
_HOLDERS: Final = frozenset(
    f"{_SPACE}{name}" for name in ("info", "note", "steps", "item", "list", "terms", "comment", "if:choose", "div")
)


def read_page(xml: str, known: frozenset[str] = frozenset()) -> Iterator[tuple[str, str, str]]:
    """Yield the page and each of its sections as a name, the title and the text of its own paragraphs.

    Args:
        xml: The page.
        known: Texts to leave out: the English ones, which stand where nobody has translated yet.

    Raises:
        ET.ParseError: If the page is not XML.
    """
    root = ET.fromstring(xml)
    sections = [root, *(each for each in root.iter(f"{_SPACE}section"))]
    for number, section in enumerate(sections):
        title = section.find(f"{_SPACE}title")
        name = squeeze("".join(title.itertext())) if title is not None else ""
        text = " ".join(part for part in _paragraphs(section) if part not in known)
        if name and text and name not in known:
            yield section.get("id") or str(number), name, text


def _paragraphs(element: ET.Element) -> Iterator[str]:
    for child in element:
        if child.tag in _PARAGRAPHS:
            text = squeeze("".join(child.itertext()))
            if text:
                yield text
        elif child.tag in _HOLDERS:
            yield from _paragraphs(child)
