"""Which of a query's hits become its negatives."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args

import numpy as np

from m3_integrations.scoring import combine
from m3_integrations.search import Hit, SearchMode
from m3_integrations.search.options import MODES_OF
from m3_integrations.vectors import PRESETS, M3Scores, ModeWeights

_GRAM: Final = 5
"""Characters of the pieces by which texts are compared: for every script, also where no blanks divide words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningOptions:
    """Which passages become negatives.

    Attributes:
        modes: The rankings that they are drawn from, in turn, one of each. Empty: every mode alone that the checkpoint
            has a head for and the store keeps, so that no mode is left without its own hard negatives.
        n: How many negatives a query gets at most; 7 and a positive are `m3 train`'s group of 8.
        first_rank: The first rank that they are drawn from: 1 is the best passage that is no positive.
        last_rank: The last one.
        margin: By what share of a positive's score a negative has to score less than every positive, in the ranking
            that it is drawn from; None lets it score anything. 0.05 is "TopK-PercPos" with 95 % of Moreira et al.
            (2024, "NV-Retriever"): a guard against passages that answer too. A weak checkpoint, whose positives rank
            low, keeps few negatives with it.
        duplicates: From which similarity on a passage repeats a positive, the query or a negative that was chosen
            before, and is left out: the Jaccard index of their runs of 5 characters, whatever their case; 1 leaves
            out the same texts alone.
        weights: How much each mode counts in the rankings "all" and "dense+lexical". A mode of weight 0 cannot be
            ranked by alone.
        query_instruction: Put before queries whose example has no prompt; a prompt stands in its place. Nothing else is
            put before a query, so the encoder is to have no instruction of its own.
        seed: For the choice among the ranks.

    Raises:
        ValueError: If an option is out of range.
    """

    modes: tuple[SearchMode, ...] = ()
    n: int = 7
    first_rank: int = 10
    last_rank: int = 100
    margin: float | None = None
    duplicates: float = 0.8
    weights: ModeWeights = PRESETS["equal"]
    query_instruction: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [mode for mode in self.modes if mode not in get_args(SearchMode)]:
            raise ValueError(f"modes must be some of {', '.join(get_args(SearchMode))}, got {unknown[0]!r}")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if not 1 <= self.first_rank <= self.last_rank:
            raise ValueError(
                f"ranks must begin at 1 or later and not end before, got {self.first_rank} to {self.last_rank}"
            )
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise ValueError(f"margin must be 0 or more and finite, got {self.margin}")
        if not 0 < self.duplicates <= 1:
            raise ValueError(f"duplicates must be more than 0 and at most 1, got {self.duplicates}")


def choose_negatives(
    found: Mapping[SearchMode, Sequence[Hit]],
    own: Sequence[str],
    limits: Mapping[SearchMode, float],
    options: MiningOptions,
    draw: random.Random,
) -> list[str]:
    """Return the texts of at most `options.n` hits, as they are drawn.

    Args:
        found: What each ranking found, best first.
        own: The query and its positives, which no negative may repeat. Where they are hits themselves, they have no
            rank.
        limits: The most that a negative may score in each ranking.
        options: How many, from which ranks, and what is too similar.
        draw: Decides among the ranks.
    """
    seen = _Texts(options.duplicates, own)
    pools: list[Iterator[str]] = []
    for mode, hits in found.items():
        ranked = [hit for hit in hits if not seen.has(hit.text)][options.first_rank - 1 : options.last_rank]
        kept = [hit.text for hit in ranked if hit.score <= limits[mode]]
        draw.shuffle(kept)
        pools.append(iter(kept))
    chosen: list[str] = []
    while pools and len(chosen) < options.n:
        pool = pools.pop(0)
        text = next((text for text in pool if not seen.repeats(text)), None)
        if text is not None:
            seen.add(text)
            chosen.append(text)
            pools.append(pool)
    return chosen


def margin_limits(scores: M3Scores, modes: Sequence[SearchMode], options: MiningOptions) -> dict[SearchMode, float]:
    """Return the most that a negative may score in each ranking.

    Args:
        scores: Of the query with each of its positives.
        modes: The rankings.
        options: With a margin.
    """
    limits: dict[SearchMode, float] = {}
    for mode in modes:
        values = combine({name: getattr(scores, name) for name in MODES_OF[mode]}, options.weights)
        limits[mode] = float((values - (options.margin or 0.0) * np.abs(values)).min())
    return limits


class _Texts:
    """Texts that nothing may repeat."""

    def __init__(self, threshold: float, texts: Sequence[str]) -> None:
        self._threshold = threshold
        self._plain: set[str] = set()
        self._grams: list[frozenset[str]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        plain = _plain(text)
        self._plain.add(plain)
        self._grams.append(_grams(plain))

    def has(self, text: str) -> bool:
        """Whether this is one of the texts, but for case and blanks."""
        return _plain(text) in self._plain

    def repeats(self, text: str) -> bool:
        """Whether this is one of the texts, or as similar to one as the threshold says."""
        plain = _plain(text)
        grams = _grams(plain)
        return plain in self._plain or any(_jaccard(grams, other) >= self._threshold for other in self._grams)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _grams(plain: str) -> frozenset[str]:
    return frozenset(plain[i : i + _GRAM] for i in range(max(len(plain) - _GRAM + 1, 1)))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the Jaccard index: the number of elements in both, divided by the number in either."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
