"""What is asked of a search, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from m3_integrations.fusion import DEFAULT_RRF_K
from m3_integrations.store import FilterLike, parse_filter
from m3_integrations.vectors import Mode, ModeWeights

SearchMode = Literal["dense", "lexical", "dense+lexical", "multi_vector", "all"]
"""Which modes rank the candidates that the dense and the lexical leg have found."""

Fusion = Literal["weighted", "rrf"]
"""How scores of several modes become one: their weighted mean, or reciprocal rank fusion."""

Bm25 = Literal["off", "extra", "replace"]
"""Whether BM25 finds candidates too: beside the learned lexical leg, or in its place."""

MODES_OF: Final[Mapping[SearchMode, tuple[Mode, ...]]] = {
    "dense": ("dense",),
    "lexical": ("lexical",),
    "dense+lexical": ("dense", "lexical"),
    "multi_vector": ("multi_vector",),
    "all": ("dense", "lexical", "multi_vector"),
}
"""The modes that rank, for each mode of search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What is asked of a search.

    Attributes:
        k: How many results at most.
        mode: Which modes rank the candidates. "all" leaves out those that the checkpoint has no head for or
            that the store does not keep: over a store without multi-vectors it is "dense+lexical".
        weights: How the modes count; also the name of a preset. Equal if None.
        filter: Only records that match, as `parse_filter` reads it.
        score_threshold: Only results whose final score is at least this.
        pool_size: How many candidates each leg finds; at least k are found in any case.
        fusion: "weighted" for the weighted mean of the exact scores, "rrf" for reciprocal rank fusion of the rankings.
        rrf_k: How little the first ranks stand out under "rrf".
        bm25: Whether BM25 over the model's tokens finds candidates too (in memory only). Under "rrf" its ranking takes
            part, with the weight of the lexical mode; with "replace" in the place of the learned lexical ranking.

    Raises:
        TypeError: If k, pool_size or rrf_k is no integer, or the filter no mapping.
        ValueError: If one is out of range or unknown.
    """

    k: int = 4
    mode: SearchMode = "all"
    weights: ModeWeights | str | None = None
    filter: FilterLike = None
    score_threshold: float | None = None
    pool_size: int = 100
    fusion: Fusion = "weighted"
    rrf_k: int = DEFAULT_RRF_K
    bm25: Bm25 = "off"

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("pool_size", 1), ("rrf_k", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, known in (("mode", SearchMode), ("fusion", Fusion), ("bm25", Bm25)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.score_threshold is not None and not math.isfinite(self.score_threshold):
            raise ValueError(f"score_threshold must be finite, got {self.score_threshold}")
        resolve_weights(self.weights)
        parse_filter(self.filter)


def resolve_weights(weights: ModeWeights | str | None) -> ModeWeights:
    """Give the weights that a user named or passed; equal ones for None.

    Raises:
        TypeError: For anything else.
        ValueError: For an unknown preset.
    """
    if weights is None:
        return ModeWeights()
    if isinstance(weights, str):
        return ModeWeights.preset(weights)
    if not isinstance(weights, ModeWeights):
        raise TypeError(f"weights must be ModeWeights or the name of a preset, got {weights!r}")
    return weights
