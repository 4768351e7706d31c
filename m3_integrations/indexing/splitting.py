"""Texts cut into parts by the model's own tokens: at headings first, then paragraphs, lines, sentences and words."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from m3_integrations.indexing.headings import Heading, heading_runs, heading_trails, read_headings
from m3_integrations.vectors import Encoder

_SPECIAL_TOKENS: Final = 2
"""[CLS] and [SEP], which every part has beside its text."""

_LONGEST_LINE: Final = 20_000
"""Characters. The splitter's time grows with the square of an unbroken word: 300,000 characters took it 55 s."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """How texts are cut.

    Attributes:
        size: The most tokens of a part, [CLS] and [SEP] included.
        overlap: The most tokens that a part repeats of the one before it; never across a heading.

    Raises:
        TypeError: If one is no integer.
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
        text: The piece, to the letter, without white space around it.
        start: Where it begins in the whole, in characters.
        headings: The headings that it stands under, the outermost first; its own is the last. Empty for plain text.
    """

    text: str
    start: int
    headings: tuple[str, ...] = ()


class Splitter:
    """Cuts texts into parts that the model reads whole.

    Args:
        encoder: Whose tokens are counted.
        splitting: How long parts are.

    Raises:
        ValueError: If the encoder cuts texts before they are that long.
    """

    def __init__(self, encoder: Encoder, splitting: Splitting) -> None:
        self._encoder = encoder
        self.splitting = splitting
        self._capacity = splitting.size - _SPECIAL_TOKENS
        # A text over the encoder's limit is counted as just as long as the limit, so parts must stay under it.
        if (longest := self._count(" a" * splitting.size)) <= self._capacity:
            raise ValueError(
                f"parts of {splitting.size} tokens are too long: this encoder ({encoder.model}) cuts texts after "
                f"{longest + _SPECIAL_TOKENS}, so size can be {longest + _SPECIAL_TOKENS - 1} at most"
            )

    def split(self, text: str, *, is_markdown: bool = False) -> list[Part]:
        """Give the parts of a text in their order; none for a blank one.

        A text that is no longer than `size` is one part. Of a longer one every part is as long as it can be without
        breaking a larger unit than it must. A piece that is nothing but headings, or has an eighth of a part's tokens
        at most, goes before the next one where both fit; short ends of a section stay apart from the next section.

        Args:
            text: Lines end with a line feed alone.
            is_markdown: Whether headings, code blocks, lists and so on are units.
        """
        if not text.strip():
            return []
        headings = read_headings(text) if is_markdown else []
        if self._fits(text):
            spans = [(len(text) - len(text.lstrip()), text.strip())]
        else:
            spans = self._spans(text, headings, is_markdown=is_markdown)
        starts, trails = [heading.start for heading in headings], [(), *heading_trails(headings)]
        return [Part(piece, start, trails[bisect_right(starts, start)]) for start, piece in spans]

    def _spans(self, text: str, headings: list[Heading], *, is_markdown: bool) -> list[tuple[int, str]]:
        runs = heading_runs(text, headings)
        lengths = [self._count(text[start:end]) for start, end in runs]
        # Kept free for a heading that the splitter has left alone; one that fills more than a quarter may stay alone.
        reserved = max((n for n in lengths if n <= self._capacity // 4), default=0)
        kind = MarkdownSplitter if is_markdown else TextSplitter
        splitter = kind.from_callback(self._count, self._capacity - reserved, overlap=self.splitting.overlap)
        spans = [(a + start, piece) for a, b in _blocks(text) for start, piece in splitter.chunk_indices(text[a:b])]
        return self._joined(text, spans, runs)

    def _joined(self, text: str, spans: list[tuple[int, str]], runs: list[tuple[int, int]]) -> list[tuple[int, str]]:
        """Put short pieces before the next ones."""
        run_ends = dict(runs)
        joined: list[tuple[int, str]] = []
        for start, piece in spans:
            if joined:
                before, short = joined[-1]
                is_heading = before + len(short) <= run_ends.get(before, 0)
                is_short = self._count(short) <= self._capacity // 8 and start not in run_ends
                both = text[before : start + len(piece)]
                if (is_heading or is_short) and self._fits(both):
                    joined[-1] = before, both
                    continue
            joined.append((start, piece))
        return joined

    def _count(self, text: str) -> int:
        """Give the tokens of a text, special ones left out; of a text that the encoder cuts, what it leaves."""
        return len(self._encoder.tokenize([text])[0]) - 1  # [SEP]

    def _fits(self, text: str) -> bool:
        return self._count(text) <= self._capacity


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Give the whole text as one span, or several if lines are so long that they must be cut beforehand."""
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
