"""Vectors as named arrays: the form in which processes send them to each other."""

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
    """Return the arrays of the modes that were computed.

    They are `dense` (n, d) float32; `lexical.offsets` (n + 1,) int64, `lexical.indices` (tokens,) int32 and
    `lexical.values` (tokens,) float32; `multi_vector.offsets` (n + 1,) int64 and `multi_vector.flat` (tokens, d)
    float32.
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
    """Return the modes that these tensors hold."""
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
    """Remove the arrays of n texts' vectors from tensors, and return them as vectors.

    Args:
        tensors: The arrays that `to_tensors` returned; other arrays stay in it.
        n: The number of texts.
        modes: The modes to read.
        dim: The length of a dense vector; any if -1.
        token_dim: The length of a token vector; any if -1.
        vocabulary: The token of every id.

    Raises:
        ValueError: If an array is missing or has another shape or type, or if the arrays contradict each other.
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
    if offsets.min() < 0 or offsets.max() > offsets[-1]:  # with such values the differences could overflow int64
        raise ValueError(f"{name} that fall")
    return offsets


def take_array(tensors: Tensors, name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
    """Remove an array from tensors and return it.

    Args:
        tensors: The arrays by name.
        name: The name of the array.
        dtype: The dtype it must have.
        shape: The shape it must have; -1 allows any length.

    Raises:
        ValueError: If it is missing, or has another shape or dtype.
    """
    array = tensors.pop(name, None)
    if array is None:
        raise ValueError(f"no {name}")
    is_right = array.dtype == dtype and array.ndim == len(shape)
    if not is_right or any(wanted not in {-1, there} for wanted, there in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} of shape {array.shape} and type {array.dtype}, not {shape} and {dtype.__name__}")
    return array


def _check_rising(rows: LexicalRows) -> None:
    """Raise ValueError if token ids are negative or do not rise within a text: `lexical_scores` needs sorted ids."""
    is_first = np.zeros(len(rows.indices) + 1, dtype=bool)
    is_first[rows.offsets] = True
    if (rows.indices < 0).any() or ((np.diff(rows.indices) <= 0) & ~is_first[1:-1]).any():
        raise ValueError("token ids must be 0 or more, and rise within a text")
