"""How many texts a forward pass holds, and how many a call keeps in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_MAX_PADDING = 1.5
"""A padded pass computes at most so many times the tokens of its texts."""


@dataclass(slots=True)
class PassBudget:
    """Counts what a forward pass holds, and says what it has room for.

    Attributes:
        max_tokens: Tokens that the network may compute, padding included; one text may be longer.
        is_packed: Whether texts are laid end to end, or padded to the longest of them.
        rows: Texts so far.
        longest: Tokens of the longest of them.
        tokens: Tokens of all of them.
    """

    max_tokens: int
    is_packed: bool
    rows: int = 0
    longest: int = 0
    tokens: int = 0

    @property
    def cost(self) -> int:
        """Tokens that the network computes, padding included."""
        return self.tokens if self.is_packed else self.rows * self.longest

    @property
    def is_full(self) -> bool:
        """Whether not even the shortest text fits."""
        least = self.tokens + 1 if self.is_packed else (self.rows + 1) * self.longest
        return self.rows > 0 and least > self.max_tokens

    def has_room(self, length: int) -> bool:
        """Say whether a text of so many tokens fits; into an empty pass any does."""
        if not self.rows:
            return True
        tokens = self.tokens + length
        if self.is_packed:
            return tokens <= self.max_tokens
        cost = (self.rows + 1) * max(self.longest, length)
        # Padding costs as much as text. In a small pass it hardly counts beside reading the weights.
        return cost <= self.max_tokens and cost <= max(_MAX_PADDING * tokens, self.max_tokens / 8)

    def add(self, length: int) -> None:
        """Count a text."""
        self.rows, self.tokens, self.longest = self.rows + 1, self.tokens + length, max(self.longest, length)


def windows(texts: Iterable[str], *, max_texts: int, max_tokens: int, max_length: int) -> Iterator[list[str]]:
    """Cut a stream of texts into lists whose vectors fit in bounded memory.

    A text counts as one token per character, which few texts exceed, and never as more than max_length.

    Args:
        texts: Any iterable; it is read only as far as the lists are taken.
        max_texts: The most texts in a list.
        max_tokens: The most tokens that a list may count; a text that counts more is a list of its own.
        max_length: The length limit of one text, in tokens.
    """
    window: list[str] = []
    tokens = 0
    for text in texts:
        cost = min(len(text), max_length) if isinstance(text, str) else 1  # a wrong type is the encoder's to refuse
        if window and (len(window) == max_texts or tokens + cost > max_tokens):
            yield window
            window, tokens = [], 0
        window.append(text)
        tokens += cost
    if window:
        yield window
