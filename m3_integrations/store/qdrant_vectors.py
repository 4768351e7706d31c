"""Vectors by the names that a Qdrant engine has them under, which are the modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from m3_integrations.store.format import StoreFormat
from m3_integrations.vectors import LexicalRows, M3Vectors, MultiVectorRows


def as_named(vectors: M3Vectors) -> dict[str, Any]:
    """Give the vectors of one text by name; one without values is left out, as engines refuse it.

    Returns:
        "dense" (d,) float32; "lexical" two lists, indices and values; "multi_vector" (tokens, d) float32.
    """
    named: dict[str, Any] = {}
    if "dense" in vectors.modes:
        named["dense"] = vectors.dense[0]
    if "lexical" in vectors.modes and len(weights := vectors.lexical[0]):
        named["lexical"] = (weights.indices.tolist(), weights.values.tolist())
    if "multi_vector" in vectors.modes and len(tokens := vectors.multi_vector[0]):
        named["multi_vector"] = tokens
    return named


def read_vectors(format_: StoreFormat, named: Mapping[str, Any] | None) -> M3Vectors:
    """Give back the vectors of one text from what an engine gives by name."""
    named = named or {}
    dense = lexical = multi_vector = None
    if "dense" in format_.modes:
        dense = np.asarray(named["dense"], np.float32).reshape(1, -1)
    if "lexical" in format_.modes:
        sparse = named.get("lexical")
        indices = np.asarray(sparse.indices if sparse else [], np.int32)
        order = np.argsort(indices)
        values = np.asarray(sparse.values if sparse else [], np.float32)
        lexical = LexicalRows(np.array([0, len(indices)]), indices[order], values[order])
    if "multi_vector" in format_.modes:
        flat = np.asarray(named.get("multi_vector", []), np.float32).reshape(-1, format_.token_dim)
        multi_vector = MultiVectorRows(np.array([0, len(flat)]), flat)
    return M3Vectors(dense=dense, lexical=lexical, multi_vector=multi_vector)
