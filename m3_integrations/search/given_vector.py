"""A dense vector that the caller passes instead of the query's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from m3_integrations.vectors import Encoder, FloatArray, M3Vectors


def with_dense(vectors: M3Vectors | None, dense: FloatArray | None, encoder: Encoder) -> M3Vectors:
    """Return a query's vectors with another dense vector, scaled to unit length; a zero vector stays zero.

    If the query's vectors have no dense mode, the dense vector is checked and not used.

    Args:
        vectors: The query's vectors; None if there is only a dense vector.
        dense: (d,) float32 of any length; None keeps the query's own.
        encoder: The encoder whose vectors these are.

    Raises:
        TypeError: If both vectors and dense are None.
        ValueError: If the dense vector is not of the encoder's size, or not finite.
    """
    if dense is None:
        if vectors is None:
            raise TypeError("a search needs a query (a string) or a dense vector, got neither")
        return vectors
    if dense.shape != (encoder.dim,) or not np.isfinite(dense).all():
        shown = np.array2string(dense, threshold=8, edgeitems=3)
        raise ValueError(
            f"a dense vector of {encoder.model} must be {encoder.dim} finite numbers, got shape {dense.shape}: {shown}"
        )
    length = float(np.linalg.norm(dense)) or 1.0
    row = (dense / length).astype(np.float32).reshape(1, -1)
    if vectors is None:
        return M3Vectors(dense=row)
    columns: dict[str, Any] = {mode: getattr(vectors, mode) for mode in vectors.modes}
    return M3Vectors(**columns | ({"dense": row} if "dense" in columns else {}))
