"""Vectors are checked before an engine sees them: engines accept what is not finite or of another size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3_integrations.store.protocol import Record
from m3_integrations.vectors import FloatArray, M3Vectors, Mode


def check_records(records: Sequence[Record], stored: M3Vectors | None) -> M3Vectors:
    """Give the vectors of all records together, if they are sound and fit those that are stored already.

    Raises:
        TypeError: If an id or a text is no string.
        ValueError: If a record has no vectors, or they are not finite or of other modes or sizes.
    """
    parts: list[M3Vectors] = []
    for record in records:
        if not isinstance(record.id, str) or not isinstance(record.text, str):
            raise TypeError(
                f"a record's id and text must be strings, got {record.id!r} and {type(record.text).__name__}"
            )
        if record.vectors is None or len(record.vectors) != 1:
            raise ValueError(f"record {record.id!r} needs the vectors of one text")
        parts.append(record.vectors)
        _check_same(f"record {record.id!r}", record.vectors, stored if stored is not None else parts[0])
    vectors = M3Vectors.concatenate(parts)
    _check_finite(vectors)
    return vectors


def check_query(query: M3Vectors, stored: M3Vectors, modes: Sequence[Mode]) -> None:
    """Raise ValueError if a query is not one text, or has not these modes in the stored sizes, or is not finite."""
    if len(query) != 1:
        raise ValueError(f"query must hold one text, got {len(query)}")
    absent = [mode for mode in modes if mode not in stored.modes]
    if absent:
        raise ValueError(f"the records have no {', '.join(absent)} vectors, only {', '.join(stored.modes)}")
    _check_same("the query", query.select(modes), stored.select(modes))
    _check_finite(query.select(modes))


def _check_same(what: str, vectors: M3Vectors, stored: M3Vectors) -> None:
    if vectors.modes != stored.modes:
        raise ValueError(f"{what} has {', '.join(vectors.modes)} vectors, the store {', '.join(stored.modes)}")
    for mode in vectors.modes:
        size, expected = _width(vectors, mode), _width(stored, mode)
        if size != expected:
            raise ValueError(f"{what} has {mode} vectors of length {size}, the store of length {expected}")


def _values(vectors: M3Vectors, mode: Mode) -> FloatArray:
    if mode == "dense":
        return vectors.dense
    return vectors.lexical.values if mode == "lexical" else vectors.multi_vector.flat


def _width(vectors: M3Vectors, mode: Mode) -> int:
    return 0 if mode == "lexical" else _values(vectors, mode).shape[1]


def _check_finite(vectors: M3Vectors) -> None:
    for mode in vectors.modes:
        if not np.isfinite(_values(vectors, mode)).all():
            raise ValueError(f"{mode} vectors hold values that are not finite")
