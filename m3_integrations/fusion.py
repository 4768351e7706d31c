"""Fusion of rankings whose scores cannot be compared."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Final, TypeVar

T = TypeVar("T", bound=Hashable)

DEFAULT_RRF_K: Final = 60


def reciprocal_rank_fusion(
    rankings: Iterable[Sequence[T]], *, weights: Iterable[float] | None = None, rrf_k: int = DEFAULT_RRF_K
) -> dict[T, float]:
    """Return for every item the sum of weight / (rrf_k + rank) over the rankings that hold it; ranks begin with 1.

    Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion", 2009.

    Args:
        rankings: Items, best first, each at most once in a ranking.
        weights: One per ranking; 1 each if None.
        rrf_k: Added to every rank: the larger it is, the less the first ranks stand out.

    Returns:
        Scores greater than 0, in the order in which the items first occur.

    Raises:
        ValueError: If rrf_k is negative or weights do not match the rankings.
    """
    if rrf_k < 0:
        raise ValueError(f"rrf_k must be 0 or more, got {rrf_k}")
    lists = list(rankings)
    scores: dict[T, float] = {}
    for ranking, weight in zip(lists, [1.0] * len(lists) if weights is None else weights, strict=True):
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + weight / (rrf_k + rank)
    return scores
