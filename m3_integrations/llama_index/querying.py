"""Translates a `VectorStoreQuery` into options of `Searcher.search`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from llama_index.core.vector_stores import VectorStoreQuery
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from m3_integrations.llama_index.filters import as_filter
from m3_integrations.llama_index.nodes import REF_DOC_KEY
from m3_integrations.search import RankingKeywords, SearchKeywords, SearchMode, SearchOptions, as_integer, as_number
from m3_integrations.search.options import MODES_OF
from m3_integrations.store import FilterLike
from m3_integrations.store.columns import check_ids
from m3_integrations.vectors import FloatArray, Mode, ModeWeights

_MODES: Final[dict[VectorStoreQueryMode, SearchMode | None]] = {
    VectorStoreQueryMode.DEFAULT: None,
    VectorStoreQueryMode.HYBRID: "all",
    VectorStoreQueryMode.SEMANTIC_HYBRID: "all",
    VectorStoreQueryMode.SPARSE: "lexical",
    VectorStoreQueryMode.TEXT_SEARCH: "lexical",
    VectorStoreQueryMode.MMR: "dense",
}
"""Our search mode for each mode of a query; None means the store's own mode."""

_HYBRID: Final = (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SEMANTIC_HYBRID)
_LEXICAL: Final = (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH)

_MMR_THRESHOLD: Final = 0.5
"""LlamaIndex's default."""


@dataclass(frozen=True, slots=True)
class Diversity:
    """Options of MMR: how many hits to keep, and the weight, 0 to 1, of likeness to the query against diversity."""

    n: int
    threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class AskedQuery:
    """A query as arguments of `Searcher.search`.

    Attributes:
        text: The text to encode; None if the query has only an embedding.
        dense: (d,) float32, used instead of the text's dense vector; None without an embedding.
        ids: Only records with these ids may be found; any record if None.
        options: Further options of `Searcher.search`.
        diversity: The options of MMR; None in other modes.
    """

    text: str | None
    dense: FloatArray | None
    ids: Sequence[str] | None
    options: SearchKeywords
    diversity: Diversity | None


def read_query(
    query: VectorStoreQuery, own: SearchOptions, given: Mapping[str, Any], kept: Collection[Mode]
) -> AskedQuery:
    """Translate a query as `M3VectorStore` describes.

    Args:
        query: LlamaIndex's query.
        own: The store's options.
        given: Options for this query, which override the store's.
        kept: The modes that the store has vectors for.

    Raises:
        TypeError: For an unknown option, or one of a wrong type.
        ValueError: If an option is out of range or has no meaning in the query's mode, or the query has neither a text
            nor an embedding.
    """
    known = {*RankingKeywords.__annotations__, "mmr_threshold"}
    if unknown := sorted(set(given) - known):
        raise TypeError(f"a query has no option {unknown[0]}: it has {', '.join(sorted(known))}")
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options.setdefault("mmr_threshold", query.mmr_threshold)
    mmr_threshold = options.pop("mmr_threshold")
    _check_fields(query, options, mmr_threshold)
    options["k"] = query.similarity_top_k
    if (mode := _MODES[query.mode]) is not None:
        options["mode"] = mode
    text, dense = query.query_str, None
    if query.query_embedding is not None:
        dense = np.asarray(query.query_embedding, dtype=np.float32)
        if not text:
            if query.mode in _LEXICAL:
                raise ValueError(
                    f"mode {VectorStoreQueryMode(query.mode).value!r} compares words, so it needs query_str, "
                    "got only an embedding"
                )
            text, options["mode"] = None, "dense"
    elif text is None:
        raise ValueError("a query needs query_str or query_embedding, got neither")
    if query.mode in _HYBRID:
        options["k"] = query.similarity_top_k if query.hybrid_top_k is None else query.hybrid_top_k
        options["pool_size"] = max(options.get("pool_size", own.pool_size), query.sparse_top_k or 0)
    elif query.sparse_top_k is not None:
        options["k"] = query.sparse_top_k
    if query.alpha is not None:
        asked = own.changed(mode=options.get("mode"), weights=options.get("weights"))
        options["weights"] = _share(query.alpha, asked.weights, [mode for mode in MODES_OF[asked.mode] if mode in kept])
    diversity = None
    if query.mode == VectorStoreQueryMode.MMR:
        n = own.k if query.similarity_top_k is None else query.similarity_top_k
        diversity = Diversity(n, _MMR_THRESHOLD if mmr_threshold is None else mmr_threshold)
        options["k"] = max(4 * n, 20)
    options["filter"] = _filter(query)
    own.changed(**options)  # raises if an option is wrong, before any other work
    ids = check_ids([] if query.node_ids is None else query.node_ids)
    # An index passes an empty list for no ids.
    return AskedQuery(text, dense, ids or None, options, diversity)  # type: ignore[arg-type]


def _check_fields(query: VectorStoreQuery, options: Mapping[str, Any], mmr_threshold: float | None) -> None:
    """Raise ValueError or TypeError for a field that has no meaning in the query's mode, or is out of range."""
    mode = query.mode
    called = str(getattr(mode, "value", mode))  # a caller may pass a plain string
    if mode not in _MODES:
        raise ValueError(f"mode {called!r} is not supported: use one of {', '.join(known.value for known in _MODES)}")
    is_default, is_mmr = mode == VectorStoreQueryMode.DEFAULT, mode == VectorStoreQueryMode.MMR
    meaningless = {
        "mode": "mode" in options and not is_default,
        "alpha": query.alpha is not None and not (is_default or mode in _HYBRID),
        "sparse_top_k": query.sparse_top_k is not None and mode not in (*_HYBRID, *_LEXICAL),
        "hybrid_top_k": query.hybrid_top_k is not None and mode not in _HYBRID,
        "mmr_threshold": mmr_threshold is not None and not is_mmr,
        "output_fields": query.output_fields is not None,
        "embedding_field": query.embedding_field is not None,
    }
    if names := [name for name, is_so in meaningless.items() if is_so]:
        raise ValueError(f"{', '.join(names)} has no effect in mode {called!r}: leave it out")
    if mmr_threshold is not None:
        as_number(mmr_threshold, "mmr_threshold", 0, 1)
    if query.alpha is not None:
        as_number(query.alpha, "alpha (0: only lexical, 1: no lexical)", 0, 1)
    for name in ("similarity_top_k", "sparse_top_k", "hybrid_top_k"):
        if (n := getattr(query, name)) is not None and as_integer(n, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {n}")


def _share(alpha: float, weights: ModeWeights, modes: Collection[Mode]) -> ModeWeights:
    """Return weights in which these modes together have the share `alpha`, in the same proportions as before."""
    dense = weights.dense if "dense" in modes else 0.0
    multi_vector = weights.multi_vector if "multi_vector" in modes else 0.0
    part = dense / (dense + multi_vector) if dense + multi_vector > 0 else float("dense" in modes)
    return ModeWeights(alpha * part, 1 - alpha, alpha * (1 - part))


def _filter(query: VectorStoreQuery) -> FilterLike:
    """Return a filter that requires both the query's filters and its document ids."""
    filters = as_filter(query.filters)
    if query.doc_ids is None:
        return filters
    of_documents = {REF_DOC_KEY: {"$in": check_ids(query.doc_ids)}}
    return {"$and": [filters, of_documents]} if filters else of_documents
