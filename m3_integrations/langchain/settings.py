"""The retriever's settings as a type, so that functions which pass them on are checked."""

from __future__ import annotations

from typing import Any, TypedDict

from m3_integrations.search import Bm25, Fusion, SearchMode
from m3_integrations.store import FilterLike, Store
from m3_integrations.vectors import Encoder, ModeWeights


class RetrieverSettings(TypedDict, total=False):
    """The constructor's arguments, for those who pass them on."""

    encoder: Encoder
    model: str
    model_kwargs: dict[str, Any]
    store: Store | None
    k: int
    mode: SearchMode
    weights: ModeWeights | str | None
    filter: FilterLike
    score_threshold: float | None
    pool_size: int
    fusion: Fusion
    rrf_k: int
    bm25: Bm25
    show_progress: bool
    name: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None
