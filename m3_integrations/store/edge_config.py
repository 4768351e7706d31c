"""The engine's own types for a store's format, its settings, and for filters; and its opening with these settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import qdrant_edge as edge

from m3_integrations.store.edge_folder import StoreFolder
from m3_integrations.store.points import StoreFormat

_DATATYPES: Final = {
    "float16": edge.VectorStorageDatatype.Float16,
    "turbo8": edge.VectorStorageDatatype.Turbo8,
    "turbo4": edge.VectorStorageDatatype.Turbo4,  # type: ignore[attr-defined]  # absent from the stubs only
}

_COMPRESSED: Final = edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits8)
"""Dense vectors are kept a second time with 8 bits a number. Searches compare these, and score the best candidates
exactly; the graph index is built of them too. With 20,000 records of 1,024 numbers that took 0.4 to 0.6 of the CPU time
of float32 alone, for a fifth more disk space. Scalar int8 is as fast in the graph, but has no effect before `optimize`.
"""

RESCORED: Final = edge.QuantizationSearchParams(rescore=True, oversampling=2.0)
"""Twice as many candidates as asked for are found by compressed vectors, and the best of them by exact scores."""


def as_config(format_: StoreFormat) -> edge.EdgeConfig:
    """Return the settings of a new collection."""
    dense: dict[str, edge.EdgeVectorParams] = {}
    if "dense" in format_.modes:
        dense["dense"] = edge.EdgeVectorParams(format_.dense_dim, edge.Distance.Dot, quantization_config=_COMPRESSED)
    if "multi_vector" in format_.modes:
        dense["multi_vector"] = edge.EdgeVectorParams(
            format_.token_dim,
            edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            datatype=_DATATYPES[format_.multi_vector],
            # No graph index: token vectors only score candidates.
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        )
    sparse = {"lexical": edge.EdgeSparseVectorParams()} if "lexical" in format_.modes else None
    return edge.EdgeConfig(vectors=dense or None, sparse_vectors=sparse)


def load_shard(place: StoreFolder, format_: StoreFormat) -> edge.EdgeShard:
    """Return the engine of a folder, and begin to read its files ahead.

    Raises:
        BlockingIOError: If a process that was forked from the owner holds the engine's files; the owner has ended, so
            the folder's own lock is free.
    """
    try:
        shard = edge.EdgeShard.load(str(place.engine), as_config(format_))
    except Exception as error:  # the engine raises Exception itself for every error
        if "WouldBlock" in str(error):
            raise place.taken() from error
        raise
    place.read_ahead()
    return shard


def as_filter(part: Mapping[str, Any]) -> Any:
    """Return a filter of `translate`, or one of its conditions, in the engine's types."""
    if "nested" in part:
        return edge.NestedCondition(part["nested"]["key"], as_filter(part["nested"]["filter"]))
    if "match" in part:
        return edge.FieldCondition(part["key"], match=edge.MatchAny(**part["match"]))
    if "range" in part:
        return edge.FieldCondition(part["key"], range=edge.RangeFloat(**part["range"]))
    clauses: dict[str, Any] = {clause: [as_filter(each) for each in parts] for clause, parts in part.items()}
    return edge.Filter(**clauses)
