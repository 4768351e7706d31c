"""What a caller gives instead of what a search would make itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from m3_integrations.vectors import Encoder, FloatArray, M3Vectors


def with_dense(vectors: M3Vectors | None, dense: FloatArray | None, encoder: Encoder) -> M3Vectors:
    """Return a query's vectors with another dense vector, which is made of unit length; 0 stays 0.

    Args:
        vectors: The query's; None if there is a dense vector alone.
        dense: (d,) float32 of any length; None leaves the query's own.
        encoder: Whose vectors they are.

    Raises:
        TypeError: If there is neither.
        ValueError: If the dense vector is not of the encoder's size, or not finite.
    """
    if dense is None:
        if vectors is None:
            raise TypeError("a search needs a query, which is a string, or a dense vector; got neither")
        return vectors
    if dense.shape != (encoder.dim,) or not np.isfinite(dense).all():
        shown = np.array2string(dense, threshold=8, edgeitems=3)
        raise ValueError(
            f"a dense vector is {encoder.dim} finite numbers, as {encoder.model} makes them; got shape "
            f"{dense.shape}: {shown}"
        )
    length = float(np.linalg.norm(dense)) or 1.0
    row = (dense / length).astype(np.float32).reshape(1, -1)
    if vectors is None:
        return M3Vectors(dense=row)
    columns: dict[str, Any] = {mode: getattr(vectors, mode) for mode in vectors.modes}
    return M3Vectors(**columns | ({"dense": row} if "dense" in columns else {}))
