"""Splitting a text into sentences."""

from __future__ import annotations

import re
from typing import Final

_MARKS: Final = "!?。！？｡।॥؟۔…"  # noqa: RUF001 - these and no others
"""The end marks of a sentence without the full stop: of Latin, Chinese, Japanese, Devanagari and Arabic script."""

_CLOSERS: Final = r"[\"'”’»›)\]）」』】〕]*"  # noqa: RUF001 - likewise
"""The closing quotes and brackets that may follow the end mark and belong to the sentence."""

_SPACELESS: Final = "。！？｡।॥」』】）”’"  # noqa: RUF001 - likewise
"""The characters after which a sentence may begin without a space."""

_END: Final = re.compile(
    rf"""
    (?:
        # A match starts only where a run of marks does: starts at each of n marks would take n * n steps.
        (?<!\.) (?:
            (?<!\b[^\W\d])(?<!\b[A-Z][a-z]) \.++  # not "J. Smith", "z. B.", "Dr. Smith", "No. 7"
          | \.\.++                                # but "J... Smith"
        ) {_CLOSERS} (?=\s)
      | (?<![{_MARKS}]) [{_MARKS}]+ {_CLOSERS} (?:\s|(?<=[{_SPACELESS}]))
      | \n\s*\n | \n (?=\s*[-*•\d])                  # paragraphs, lists
    )
    \s*""",
    re.VERBOSE,
)

_GERMAN: Final = re.compile(r"\b(?:und|der|das)\b")
"""Words of a German text, where a full stop after a number makes an ordinal before a capital: "19. Jahrhundert"."""

_LONGEST: Final = 1000
"""The most characters of a sentence. A longer one, such as a table without end marks, is cut at line ends or spaces."""


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return the start and the end (exclusive) of every sentence, without the white space around it.

    A sentence ends at an end mark before white space. Some end marks, such as the Chinese ones, need no white space. A
    full stop may belong to an abbreviation or an ordinal: it ends no sentence after a single letter or two such as
    "Dr", before a word in lower case, and in German after a number of one or two digits. A blank line ends a sentence,
    and so does a line end before an item of a list. A sentence longer than 1,000 characters is cut at a line end or a
    space.
    """
    spans: list[tuple[int, int]] = []
    start, is_german = 0, _GERMAN.search(text) is not None
    for found in _END.finditer(text):
        is_stop = found[0].startswith(".")
        if is_stop and text[found.end() : found.end() + 1].islower():
            continue
        if is_stop and is_german and re.search(r"\b\d\d?$", text[max(0, found.start() - 3) : found.start()]):
            continue
        spans.extend(_pieces(text, start, found.end()))
        start = found.end()
    return [*spans, *_pieces(text, start, len(text))]


def _pieces(text: str, start: int, end: int) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    while start < end:
        last = end
        if end - start > _LONGEST:
            middle, most = start + _LONGEST // 2, start + _LONGEST
            last = max(text.rfind("\n", middle, most), text.rfind(" ", middle, most)) + 1 or most
        piece = text[start:last]
        if stripped := piece.strip():
            first = start + len(piece) - len(piece.lstrip())
            pieces.append((first, first + len(stripped)))
        start = last
    return pieces
