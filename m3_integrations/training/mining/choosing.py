"""Choosing negatives from a query's hits."""

from __future__ import annotations

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
"""The length in characters of the pieces by which texts are compared; it works for scripts without spaces too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningOptions:
    """The options for choosing negatives.

    Attributes:
        modes: The rankings that negatives are drawn from, one from each in turn. Empty: each mode alone that the
            checkpoint has a head for and the store keeps, so that every mode gets hard negatives for itself.
        n: The most negatives of a query; 7 and a positive are `m3 train`'s group of 8.
        first_rank: The first rank that negatives are drawn from: 1 is the best passage that is not a positive.
        last_rank: The last rank that negatives are drawn from.
        margin: The share of a positive's score by which a negative must score less than every positive, in the ranking
            that it is drawn from, 0 to 1; None for no limit. 0.05 is "TopK-PercPos" with 95 % of Moreira et al. (2024,
            "NV-Retriever"): it excludes passages that probably answer too. With a weak checkpoint, whose positives rank
            low, few negatives remain.
        duplicates: A passage is left out if its similarity with the query, a positive or an earlier negative is at
            least this. The similarity is the Jaccard index of their runs of 5 characters, without regard to case; 1
            leaves out only equal texts.
        weights: The weights of the modes in the rankings "all" and "dense+lexical". A mode of weight 0 cannot rank
            alone.
        query_instruction: Put before queries whose example has no prompt; an example's prompt replaces it. Nothing else
            is put before a query, so the encoder must have no query instruction.
        seed: The seed of the choice among the ranks.

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
        if self.margin is not None and not 0 <= self.margin <= 1:
            raise ValueError(f"margin must be a share from 0 to 1, such as 0.05, got {self.margin}")
        if not 0 < self.duplicates <= 1:
            raise ValueError(f"duplicates must be more than 0 and at most 1, got {self.duplicates}")


def choose_negatives(
    found: Mapping[SearchMode, Sequence[Hit]],
    own: Sequence[str],
    limits: Mapping[SearchMode, float],
    options: MiningOptions,
    draw: random.Random,
) -> list[str]:
    """Return the texts of at most `options.n` hits, in the order in which they are drawn.

    Args:
        found: The hits of each ranking, best first. A blank text, which training refuses, is never drawn.
        own: The query and its positives, which no negative may repeat. If they are hits, they are not counted in ranks.
        limits: The highest score of a negative in each ranking.
        options: The number of negatives, their ranks, and the limit of similarity.
        draw: The generator for the choice among the ranks.
    """
    seen = _Texts(options.duplicates, own)
    pools: list[Iterator[str]] = []
    for mode, hits in found.items():
        ranked = [hit for hit in hits if not seen.has(hit.text)][options.first_rank - 1 : options.last_rank]
        kept = [hit.text for hit in ranked if hit.score <= limits[mode] and hit.text.strip()]
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
    """Return the highest score that a negative may have in each ranking.

    Args:
        scores: The scores of the query with each of its positives.
        modes: The rankings.
        options: Options with a margin.
    """
    limits: dict[SearchMode, float] = {}
    for mode in modes:
        values = combine({name: getattr(scores, name) for name in MODES_OF[mode]}, options.weights)
        limits[mode] = float((values - (options.margin or 0.0) * np.abs(values)).min())
    return limits


class _Texts:
    """Texts that no negative may repeat."""

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
        """Return whether this is one of the texts, without regard to case and white space."""
        return _plain(text) in self._plain

    def repeats(self, text: str) -> bool:
        """Return whether this is one of the texts, or at least as similar to one as the threshold."""
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
