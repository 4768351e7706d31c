"""The three views of texts as named arrays: how they travel between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_integrations.vectors.arrays import LexicalRows, M3Vectors, MultiVectorRows
from m3_integrations.vectors.modes import Mode

Tensors = dict[str, NDArray[Any]]
"""Arrays by name."""


def to_tensors(vectors: M3Vectors) -> Tensors:
    """Return vectors as arrays, of the modes that were computed alone.

    They are `dense` (n, d) float32; `lexical.offsets` (n + 1) int64, `lexical.indices` int32 and `lexical.values`
    float32; `multi_vector.offsets` (n + 1) int64 and `multi_vector.flat` (tokens, d) float32.
    """
    tensors: Tensors = {}
    if "dense" in vectors.modes:
        tensors["dense"] = np.ascontiguousarray(vectors.dense, dtype=np.float32)
    if "lexical" in vectors.modes:
        rows = vectors.lexical
        tensors |= {"lexical.offsets": rows.offsets, "lexical.indices": rows.indices, "lexical.values": rows.values}
    if "multi_vector" in vectors.modes:
        tokens = vectors.multi_vector
        tensors |= {"multi_vector.offsets": tokens.offsets, "multi_vector.flat": tokens.flat}
    return tensors


def modes_of(tensors: Mapping[str, object]) -> list[Mode]:
    """Return the modes whose arrays are among these."""
    names: dict[Mode, str] = {"dense": "dense", "lexical": "lexical.offsets", "multi_vector": "multi_vector.offsets"}
    return [mode for mode, name in names.items() if name in tensors]


def take_vectors(
    tensors: Tensors,
    n: int,
    modes: Sequence[Mode],
    *,
    dim: int = -1,
    token_dim: int = -1,
    vocabulary: Sequence[str] | None = None,
) -> M3Vectors:
    """Take the arrays of n texts' vectors out of tensors, and return the vectors.

    Args:
        tensors: As `to_tensors` made them; other arrays are left in it.
        n: How many texts.
        modes: Which modes.
        dim: The length of a dense vector; any if -1.
        token_dim: The length of a token vector; any if -1.
        vocabulary: The token of every id.

    Raises:
        ValueError: If an array is missing, or of another shape or type, or they do not fit together.
    """
    columns: dict[str, Any] = {}
    if "dense" in modes:
        columns["dense"] = take_array(tensors, "dense", np.float32, n, dim)
    if "lexical" in modes:
        offsets = _take_offsets(tensors, "lexical.offsets", n)
        indices = take_array(tensors, "lexical.indices", np.int32, -1)
        values = take_array(tensors, "lexical.values", np.float32, -1)
        try:
            columns["lexical"] = LexicalRows(offsets, indices, values, vocabulary)
            _check_rising(columns["lexical"])
        except ValueError as error:
            raise ValueError(f"lexical weights that do not fit together ({error})") from error
    if "multi_vector" in modes:
        offsets = _take_offsets(tensors, "multi_vector.offsets", n)
        flat = take_array(tensors, "multi_vector.flat", np.float32, -1, token_dim)
        try:
            columns["multi_vector"] = MultiVectorRows(offsets, flat)
        except ValueError as error:
            raise ValueError(f"multi-vectors that do not fit together ({error})") from error
    return M3Vectors(**columns)


def _take_offsets(tensors: Tensors, name: str, n: int) -> NDArray[np.int64]:
    offsets = take_array(tensors, name, np.int64, n + 1)
    if offsets.min() < 0 or offsets.max() > offsets[-1]:  # their differences may overflow
        raise ValueError(f"{name} that fall")
    return offsets


def take_array(tensors: Tensors, name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
    """Take an array out of tensors.

    Args:
        tensors: It is removed from these.
        name: What it is called.
        dtype: What its numbers must be.
        shape: What its shape must be; -1 for any length.

    Raises:
        ValueError: If it is missing, or of another shape or type.
    """
    array = tensors.pop(name, None)
    if array is None:
        raise ValueError(f"no {name}")
    is_right = array.dtype == dtype and array.ndim == len(shape)
    if not is_right or any(wanted not in {-1, there} for wanted, there in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} of shape {array.shape} and type {array.dtype}, not {shape} and {dtype.__name__}")
    return array


def _check_rising(rows: LexicalRows) -> None:
    """Refuse token ids that are negative, or do not rise within a text: scores are made by merging."""
    is_first = np.zeros(len(rows.indices) + 1, dtype=bool)
    is_first[rows.offsets] = True
    if (rows.indices < 0).any() or ((np.diff(rows.indices) <= 0) & ~is_first[1:-1]).any():
        raise ValueError("token ids must be 0 or more, and rise within a text")
