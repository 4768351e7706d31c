"""Where the sentences of a text are."""

from __future__ import annotations

import re
from typing import Final

_MARKS: Final = "!?。！？｡।॥؟۔…"  # noqa: RUF001 - these and no others
"""What ends a sentence, the full stop aside: of scripts with spaces, of Chinese and Japanese, Devanagari and Arabic."""

_CLOSERS: Final = r"[\"'”’»›)\]）」』】〕]*"  # noqa: RUF001 - likewise
"""What may stand between the end mark and the space: it belongs to the sentence."""

_SPACELESS: Final = "。！？｡।॥」』】）”’"  # noqa: RUF001 - likewise
"""After which of these a sentence begins without a space."""

_END: Final = re.compile(
    rf"""
    (?:
        (?<!\b[^\W\d])(?<!\b[A-Z][a-z])  # not "J. Smith", "z. B.", "Dr. Smith", "No. 7"
        \.+ {_CLOSERS} (?=\s)
      | [{_MARKS}]+ {_CLOSERS} (?:\s|(?<=[{_SPACELESS}]))
      | \n\s*\n | \n (?=\s*[-*•\d])                  # paragraphs, lists
    )
    \s*""",
    re.VERBOSE,
)

_GERMAN: Final = re.compile(r"\b(?:und|der|das)\b")
"""A text with one of these words writes ordinals as in "19. Jahrhundert"; elsewhere these go on in lower case."""

_LONGEST: Final = 1000
"""Characters. A longer stretch without an end mark, such as a table, is cut at line ends or spaces."""


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return the first character of every sentence and the one after its last, white space around it left out.

    A sentence ends at an end mark before white space, or at one of Chinese or Japanese. A full stop ends none after a
    single letter or two such as "Dr", before a word in lower case, and in German after a number of one or two digits:
    it may be of an abbreviation or an ordinal. A blank line and the start of a list's line end a sentence too. What is
    longer than 1,000 characters is cut at a line's end or a space.
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
