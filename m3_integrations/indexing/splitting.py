"""Splits texts by the model's own tokens: at headings first, then paragraphs, lines, sentences and words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from m3_integrations.indexing.headings import Markup, read_sections
from m3_integrations.vectors import Encoder

_SPECIAL_TOKENS: Final = 2
"""[CLS] and [SEP], which the encoder adds to every part."""

_LONGEST_LINE: Final = 20_000
"""Characters of a line that is split in one piece. The splitter's time grows with the square of an unbroken word's
length: 300,000 characters took 55 s."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """The size and overlap of parts.

    Attributes:
        size: The most tokens of a part, [CLS] and [SEP] included.
        overlap: The most tokens that a part repeats from the part before it. Parts never overlap across a heading.

    Raises:
        TypeError: If size or overlap is not an integer.
        ValueError: If size is under 16, or overlap is negative or over half of size.
    """

    size: int = 256
    overlap: int = 32

    def __post_init__(self) -> None:
        for name in ("size", "overlap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if self.size < 16:
            raise ValueError(f"size must be at least 16 tokens, got {self.size}")
        if not 0 <= self.overlap <= self.size // 2:
            raise ValueError(f"overlap must be 0 to {self.size // 2}, half of size, got {self.overlap}")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text.

    Attributes:
        text: The piece, unchanged, without white space around it.
        start: Position of its first character in the whole text.
        headings: The headings above it, the outermost first; empty for plain text.
    """

    text: str
    start: int
    headings: tuple[str, ...] = ()


class Splitter:
    """Splits texts into parts that the model reads completely.

    Args:
        encoder: Counts the tokens.
        splitting: Size and overlap of the parts.

    Raises:
        ValueError: If the encoder cuts texts of `splitting.size` tokens.
    """

    def __init__(self, encoder: Encoder, splitting: Splitting) -> None:
        self._encoder = encoder
        self.splitting = splitting
        self._capacity = splitting.size - _SPECIAL_TOKENS
        # tokenize() cuts at the encoder's limit: longer texts have the same count, so parts must stay below it.
        if (longest := self._count(" a" * splitting.size)) <= self._capacity:
            raise ValueError(
                f"parts of {splitting.size} tokens are too long: this encoder ({encoder.model}) cuts texts after "
                f"{longest + _SPECIAL_TOKENS}, so size can be {longest + _SPECIAL_TOKENS - 1} at most"
            )

    def __repr__(self) -> str:
        return f"Splitter({self._encoder!r}, {self.splitting!r})"

    def split(self, text: str, *, markup: Markup = "plain") -> list[Part]:
        """Return the parts of a text in their order; none for a blank text.

        Markdown and reStructuredText are cut at every heading. A section that is too long is cut into parts that are as
        long as possible, at the largest units that fit: paragraphs, then lines, sentences, words. A piece is joined
        with the next one if both fit and it is only a heading, or has at most an eighth of a part's tokens.

        Args:
            text: Lines end with a line feed only.
            markup: How headings are written. In Markdown, code blocks, lists and so on are units too.

        Raises:
            ValueError: If the markup's parser rejects the text.
        """
        sections = read_sections(text, markup)
        kind = MarkdownSplitter if markup == "markdown" else TextSplitter
        return [
            Part(piece, section.start + start, section.trail)
            for section in sections
            for start, piece in self._pieces(text[section.start : section.end], section.heading_length, kind)
        ]

    def _pieces(
        self, text: str, heading_length: int, kind: type[MarkdownSplitter | TextSplitter]
    ) -> list[tuple[int, str]]:
        """Cut one section."""
        if self._fits(text):
            return [(len(text) - len(text.lstrip()), text.strip())] if text.strip() else []
        n = self._count(text[:heading_length])
        # Leave room to join the heading with the next piece; a heading over a quarter of a part may stay alone.
        reserved = n if n <= self._capacity // 4 else 0
        splitter = kind.from_callback(self._count, self._capacity - reserved, overlap=self.splitting.overlap)
        joined: list[tuple[int, str]] = []
        for start, piece in (
            (a + i, piece) for a, b in _blocks(text) for i, piece in splitter.chunk_indices(text[a:b])
        ):
            if joined:
                before, short = joined[-1]
                is_short = before + len(short) <= heading_length or self._count(short) <= self._capacity // 8
                both = text[before : start + len(piece)]
                if is_short and self._fits(both):
                    joined[-1] = before, both
                    continue
            joined.append((start, piece))
        return joined

    def _count(self, text: str) -> int:
        """Return the number of a text's tokens without [CLS] and [SEP], at most as many as the encoder reads."""
        return len(self._encoder.tokenize([text])[0]) - 1  # [SEP]

    def _fits(self, text: str) -> bool:
        return self._count(text) <= self._capacity


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield spans of start and end that cover the text: one, or several if a line is over `_LONGEST_LINE`."""
    start = position = 0
    while position < len(text):
        end = text.find("\n", position) + 1 or len(text)
        if end - position <= _LONGEST_LINE:
            position = end
            continue
        space = text.rfind(" ", position + _LONGEST_LINE // 2, position + _LONGEST_LINE)
        position = space + 1 if space >= 0 else position + _LONGEST_LINE
        yield start, position
        start = position
    if start < len(text):
        yield start, len(text)
