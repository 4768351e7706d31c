"""What a store says to Qdrant Edge, in its types."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import qdrant_edge as edge

from m3_integrations.store.engine import Ask
from m3_integrations.store.filters import Filter
from m3_integrations.store.format import StoreFormat
from m3_integrations.store.qdrant_filters import Bound, translate
from m3_integrations.store.qdrant_vectors import as_named
from m3_integrations.vectors import M3Vectors

_DATATYPES: Final = {
    "float16": edge.VectorStorageDatatype.Float16,
    "turbo8": edge.VectorStorageDatatype.Turbo8,
    "turbo4": edge.VectorStorageDatatype.Turbo4,  # type: ignore[attr-defined]  # absent from the stubs only
}


class _EdgeWords:
    """The parts of a filter as Qdrant Edge spells them."""

    def join(self, must: Sequence[Any] = (), should: Sequence[Any] = (), must_not: Sequence[Any] = ()) -> edge.Filter:
        return edge.Filter(must=list(must) or None, should=list(should) or None, must_not=list(must_not) or None)

    def any_term(self, terms: list[str]) -> edge.FieldCondition:
        return edge.FieldCondition("terms", match=edge.MatchAny(terms))

    def bound(self, key: str, bound: Bound, value: int) -> edge.FieldCondition:
        return edge.FieldCondition(key, range=edge.RangeFloat(**{bound: float(value)}))

    def nested(self, key: str, filter_: edge.Filter) -> edge.NestedCondition:
        return edge.NestedCondition(key, filter_)


_WORDS: Final = _EdgeWords()


def as_request(ask: Ask, among: Collection[edge.PointId] | None) -> edge.QueryRequest:
    """Give one search, which gives the points' ids and scores alone.

    Args:
        ask: What is searched.
        among: The points of the ask's ids; None where it has none.
    """
    if among is not None:
        where: edge.Filter | None = edge.Filter(must=[edge.HasIdCondition(set(among))])
    else:
        where = None if ask.filter is None else as_filter(ask.filter)
    return edge.QueryRequest(
        limit=ask.limit,
        query=edge.Query.Nearest(as_vectors(ask.query.select([ask.mode]))[ask.mode], using=ask.mode),
        filter=where,
        with_payload=False,
        params=edge.SearchParams(hnsw_ef=max(128, ask.limit), exact=among is not None),
    )


def as_filter(filter_: Filter) -> edge.Filter:
    """Give a filter."""
    translated: edge.Filter = translate(_WORDS, filter_)
    return translated


def as_vectors(vectors: M3Vectors) -> dict[str, Any]:
    """Give the vectors of one text by name; see `as_named`. The engine reads lists twice as fast as arrays."""
    named = as_named(vectors)
    return {
        mode: edge.SparseVector(*values) if mode == "lexical" else values.tolist() for mode, values in named.items()
    }


def as_config(format_: StoreFormat) -> edge.EdgeConfig:
    """Give the settings of a new collection."""
    dense: dict[str, edge.EdgeVectorParams] = {}
    if "dense" in format_.modes:
        dense["dense"] = edge.EdgeVectorParams(format_.dense_dim, edge.Distance.Dot)
    if "multi_vector" in format_.modes:
        dense["multi_vector"] = edge.EdgeVectorParams(
            format_.token_dim,
            edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            datatype=_DATATYPES[format_.multi_vector],
            # No graph: token vectors score candidates, they do not find them.
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        )
    sparse = {"lexical": edge.EdgeSparseVectorParams()} if "lexical" in format_.modes else None
    return edge.EdgeConfig(vectors=dense or None, sparse_vectors=sparse)
