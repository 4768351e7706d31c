"""The retriever's settings as a type, so that functions which pass them on are checked."""

from __future__ import annotations

from typing import Any, TypedDict

from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import IndexNode
from llama_index.core.vector_stores import MetadataFilters

from m3_integrations.search import Bm25, Fusion, SearchMode
from m3_integrations.store import FilterLike, Store
from m3_integrations.vectors import Encoder, ModeWeights


class RetrieverSettings(TypedDict, total=False):
    """The constructor's arguments, for those who pass them on."""

    model: str | None
    encoder: Encoder | None
    model_kwargs: dict[str, Any] | None
    store: Store | None
    similarity_top_k: int
    mode: SearchMode
    weights: ModeWeights | str | None
    filters: MetadataFilters | FilterLike
    score_threshold: float | None
    pool_size: int
    fusion: Fusion
    rrf_k: int
    bm25: Bm25
    callback_manager: CallbackManager | None
    object_map: dict[str, Any] | None
    objects: list[IndexNode] | None
    verbose: bool
