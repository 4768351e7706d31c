"""Checks of the columns that a caller passes: the ids, texts and metadata of records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3_integrations.store.values import check_value
from m3_integrations.vectors import M3Vectors
from m3_integrations.vectors.texts import refuse_table


class Columns(NamedTuple):
    """The columns of n records.

    Attributes:
        ids: n ids.
        texts: n texts.
        metadatas: n mappings, not checked.
        is_pooled: (n,) bool.
        rows: The rows to write: of equal ids only the last row, at the position of the first.
    """

    ids: list[str]
    texts: list[str]
    metadatas: list[Mapping[str, Any]]
    is_pooled: NDArray[np.bool_]
    rows: list[int]


def check_columns(
    ids: Iterable[str],
    texts: Iterable[str],
    metadatas: Iterable[Mapping[str, Any]],
    vectors: M3Vectors,
    is_pooled: NDArray[np.bool_] | None,
) -> Columns:
    """Return the columns as lists: a data frame's column would be read by its labels, not by position.

    Raises:
        TypeError: If a column is one string or a table, or an id or a text is not a string.
        ValueError: If the columns differ in length, or an id or a text is not valid Unicode.
    """
    refuse_table(metadatas, "metadatas", "pass one mapping for each record, such as df.to_dict('records')")
    ids, texts, metadatas = _listed(ids, "ids"), _listed(texts, "texts"), list(metadatas)
    columns: dict[str, Sized] = {"texts": texts, "metadatas": metadatas, "vectors": vectors}
    if is_pooled is not None:
        columns["is_pooled"] = is_pooled
    for name, column in columns.items():
        if len(column) != len(ids):
            raise ValueError(f"every id needs one row of each column, got {len(ids)} ids and {len(column)} {name}")
    for id_, text in zip(ids, texts, strict=True):
        if not isinstance(id_, str) or not isinstance(text, str):
            raise TypeError(f"a record's id and text must be strings, got {id_!r} and {type(text).__name__}")
        check_value(id_, "a record's id")
        check_value(text, f"the text of record {id_!r}")
    flags = np.zeros(len(ids), bool) if is_pooled is None else np.array(is_pooled, bool)
    return Columns(ids, texts, metadatas, flags, list({id_: row for row, id_ in enumerate(ids)}.values()))


def check_ids(ids: Iterable[str]) -> list[str]:
    """Return ids as a list, so that a generator is read once, after checking that they are strings of valid Unicode.

    Raises:
        TypeError: If ids is one string or a table, or an id is not a string.
        ValueError: If an id is not valid Unicode.
    """
    ids = _listed(ids, "ids")
    for i, id_ in enumerate(ids):
        if not isinstance(id_, str):
            raise TypeError(f"ids must be strings, got {id_!r} at position {i}")
        check_value(id_, f"the id at position {i}")
    return ids


def _listed(column: Iterable[str], name: str) -> list[str]:
    if isinstance(column, str):
        raise TypeError(f"{name} must be a sequence of strings, got the string {column!r:.80}: pass [{column!r:.80}]")
    refuse_table(column, name)
    return list(column)
