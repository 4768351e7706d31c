"""Replacing the texts of a source: unchanged texts keep their vectors, and texts that the source lost are deleted."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from m3_integrations.search.adding import IncompleteAddError, check_added
from m3_integrations.search.searcher import Searcher
from m3_integrations.store import Record, Store, matches, parse_filter
from m3_integrations.store.values import is_same
from m3_integrations.vectors import M3Vectors

_NAMESPACE: Final = uuid.UUID("5f0d1b5e-0c62-4c1b-9b57-0a6d5a3a7c11")
"""The namespace of the ids that are made here, UUIDs of version 5. With another one every text is stored twice."""
_SOURCES_AT_ONCE: Final = 500
"""The most sources in one filter."""
_COPIED_AT_ONCE: Final = 50
"""The most records that are read with their vectors at a time: bounds the memory."""


def replace_sources(
    searcher: Searcher,
    texts: Iterable[str],
    *,
    source_key: str,
    ids: Iterable[str | None],
    metadatas: Iterable[Mapping[str, Any] | None],
    show_progress: bool = False,
) -> list[str]:
    """Add texts, and delete the other records of their sources.

    A text is not encoded again if a record of these sources, or the record with its id, has the same text: its vectors
    are kept, even if its id or its metadata changed. Old records are deleted last, so a call that fails midway leaves
    too many records, which the next call deletes.

    Args:
        searcher: Encodes and holds the texts.
        texts: All texts of their sources, encoded as documents.
        source_key: The key of the metadata under which a text's source stands.
        ids: One per text. None makes an id from the source, the text, and the number of equal texts before it: the same
            call makes the same ids.
        metadatas: One per text.
        show_progress: Whether to draw a progress bar.

    Returns:
        The ids.

    Raises:
        TypeError: For the reasons of `Searcher.add`, or if source_key is not a string.
        ValueError: For the reasons of `Searcher.add`, or if a source is neither a string nor an integer, or two texts
            have the same id. Then nothing was changed.
        IncompleteAddError: For the reasons of `Searcher.add`.
    """
    if not isinstance(source_key, str):
        raise TypeError(f"source_key must be a string, got {source_key!r}")
    given = list(ids)
    named, texts, kept = check_added(texts, given, metadatas)
    given = [None if id_ is None else name for id_, name in zip(given, named, strict=True)]
    sources = [_source(each, source_key, i) for i, each in enumerate(kept)]
    chosen = _ids(sources, texts, given)
    searcher.store.bind(searcher.encoder.fingerprint)  # raises if the store has another model's vectors
    old = records_of(searcher, chosen, source_key, sources)
    add_unless_known(searcher, old, chosen, texts, kept, show_progress=show_progress)
    wanted, replaced = set(chosen), set(sources)
    # A filter also matches a list that contains the source; such a record is not of this source alone.
    searcher.store.delete([r.id for r in old if r.id not in wanted and _is_of(r, source_key, replaced)])
    return chosen


def add_unless_known(
    searcher: Searcher,
    known: Sequence[Record],
    ids: Sequence[str],
    texts: Sequence[str],
    metadatas: Sequence[Mapping[str, Any]],
    *,
    show_progress: bool,
) -> None:
    """Add texts, and encode only those that no known record has.

    A text that a known record has gets the record's vectors. A text that is stored with the same id and metadata is
    not written again.

    Args:
        searcher: Encodes and holds the texts; its store is bound to its encoder's model.
        known: Records of the store, without vectors.
        ids: One per text, all different.
        texts: Encoded as documents.
        metadatas: One per text, checked.
        show_progress: Whether to draw a progress bar.

    Raises:
        IncompleteAddError: For the reasons of `Searcher.add`; `error.ids` are the ids of all these texts.
    """
    fresh, moved = _split(known, ids, texts, metadatas)
    left = {ids[row] for row in (*fresh, *moved)}
    try:
        fresh += _copy_vectors(searcher.store, moved, ids, texts, metadatas)
        left = {ids[row] for row in fresh}
        searcher.add(
            [texts[row] for row in fresh],
            ids=[ids[row] for row in fresh],
            metadatas=[metadatas[row] for row in fresh],
            show_progress=show_progress,
        )
    except BaseException as error:
        part = error.__cause__ if not isinstance(error, Exception) else error
        if isinstance(part, IncompleteAddError):  # it knows only the fresh texts: add the others
            left -= set(part.added)
            part.ids, part.added = list(ids), [id_ for id_ in ids if id_ not in left]
        elif moved and isinstance(error, Exception):
            raise IncompleteAddError(ids, [id_ for id_ in ids if id_ not in left]) from error
        raise


def records_of(searcher: Searcher, ids: Sequence[str], key: str, sources: Iterable[str | int]) -> list[Record]:
    """Return the records with these ids and the records with one of these sources under a key, without vectors."""
    store = searcher.store
    found = {record.id: record for record in store.get(ids)}
    distinct = list(dict.fromkeys(sources))
    for start in range(0, len(distinct), _SOURCES_AT_ONCE):
        some = {key: {"$in": distinct[start : start + _SOURCES_AT_ONCE]}}
        found |= {record.id: record for record in matching_records(store, searcher.encoder.dim, some)}
    return list(found.values())


def matching_records(store: Store, dim: int, filter: Mapping[str, Any]) -> list[Record]:  # noqa: A002
    """Return all records that match a filter, without vectors, in any order.

    Args:
        store: The store of the records.
        dim: The length of its dense vectors.
        filter: A filter as `parse_filter` describes it.
    """
    parsed = parse_filter(filter)
    n = store.count(parsed)
    if n == 0:
        return []
    anything = M3Vectors(dense=np.zeros((1, dim), dtype=np.float32))
    ids = store.candidates(anything, {"dense": n}, parsed)["dense"].ids
    if len(ids) == n:
        return store.get(ids)
    return [record for record in store.records() if matches(parsed, record.metadata)]  # an index may miss some


def _source(metadata: Mapping[str, Any], key: str, row: int) -> str | int:
    if key.startswith("$"):
        raise ValueError(f"source_key must be a key that filters can name, without '$' at its beginning, got {key!r}")
    source = metadata.get(key)
    if isinstance(source, bool) or not isinstance(source, str | int):
        raise ValueError(  # noqa: TRY004 - the value may be missing
            f"the metadata of text {row} must have its source, a string or an integer, under {key!r}, got {source!r}"
        )
    return source


def _ids(sources: Sequence[str | int], texts: Sequence[str], given: Sequence[str | None]) -> list[str]:
    seen: Counter[tuple[str | int, str]] = Counter()
    ids: list[str] = []
    for source, text, id_ in zip(sources, texts, given, strict=True):
        name = json.dumps([source, text, seen[source, text]])
        ids.append(str(uuid.uuid5(_NAMESPACE, name)) if id_ is None else id_)
        seen[source, text] += 1
    if twice := [id_ for id_, n in Counter(ids).items() if n > 1]:
        raise ValueError(f"every text needs its own id, got {twice[0]!r} twice")
    return ids


def _is_of(record: Record, key: str, sources: set[str | int]) -> bool:
    source = record.metadata.get(key)
    return isinstance(source, str | int) and source in sources


def _split(
    old: Sequence[Record], ids: Sequence[str], texts: Sequence[str], metadatas: Sequence[Mapping[str, Any]]
) -> tuple[list[int], dict[int, str]]:
    """Return the rows to encode, and the rows to store with the vectors of a record that has their text.

    The second result maps the row to the id of that record. A row that is stored already, with the same id, text and
    metadata, is in neither result.
    """
    by_id = {record.id: record for record in old}
    by_text = {record.text: record.id for record in old}
    fresh: list[int] = []
    moved: dict[int, str] = {}
    for row, (id_, text) in enumerate(zip(ids, texts, strict=True)):
        there = by_id.get(id_)
        if text not in by_text:
            fresh.append(row)
        elif there is None or there.text != text or not is_same(there.metadata, metadatas[row]):
            moved[row] = by_text[text]
    return fresh, moved


def _copy_vectors(
    store: Store,
    moved: Mapping[int, str],
    ids: Sequence[str],
    texts: Sequence[str],
    metadatas: Sequence[Mapping[str, Any]],
) -> list[int]:
    """Store rows with the vectors of the records that have their texts, and return the rows whose record is gone."""
    gone: list[int] = []
    waiting = list(moved)
    for start in range(0, len(waiting), _COPIED_AT_ONCE):
        rows = waiting[start : start + _COPIED_AT_ONCE]
        read = store.get(list({moved[row]: None for row in rows}), with_vectors=True)
        by_text = {record.text: record for record in read}
        gone += [row for row in rows if texts[row] not in by_text]  # the record was deleted or changed meanwhile
        rows = [row for row in rows if texts[row] in by_text]
        records = [by_text[texts[row]] for row in rows]
        if records:
            store.upsert(
                [ids[row] for row in rows],
                [texts[row] for row in rows],
                [metadatas[row] for row in rows],
                M3Vectors.concatenate([record.vectors for record in records if record.vectors is not None]),
                is_pooled=np.array([record.is_pooled for record in records]),
            )
    return gone
