"""The shared part of the two stores over Qdrant: everything except the calls of the engine or the server.

Long because every primitive of a store is here, and after them every call that an engine must answer.
"""

from __future__ import annotations

import os
import threading
import uuid
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations.store.columns import check_columns, check_ids
from m3_integrations.store.filters import Filter, FilterLike, parse_filter
from m3_integrations.store.points import (
    HASHED_IDS,
    StoreFormat,
    as_payload,
    as_record,
    batches,
    name_vectors,
    pool_vectors,
    renewed_payload,
)
from m3_integrations.store.protocol import (
    Hits,
    Record,
    Store,
    check_query,
    check_vectors,
    deletion_filter,
)
from m3_integrations.store.terms import integer_paths, range_paths, translate
from m3_integrations.vectors import FloatArray, M3Vectors, Mode

_BATCH_BYTES: Final = 8 << 20
_SMALL_BATCH_BYTES: Final = 1 << 20
"""For threads other than the main one: an event loop may wait, and most engines block the interpreter in writes."""

_MAX_INDEXED: Final = 17
"""The most indexes that are made when records are added: the terms, and 16 paths of numbers and dates. With more paths,
a path is indexed when a filter first compares it, which takes some 12 microseconds a record. Each index makes every
change slower."""

_MAX_IDS: Final = 1000
"""The most ids that are read or deleted in one call of an engine."""

Among = Mapping[Mode, Sequence[str]]
"""The ids of records by mode."""
Found = dict[Mode, list[tuple[str, float]]]
"""Ids with their raw scores by mode."""


class QdrantStore(Store):
    """A store over a Qdrant engine. Safe to use from many threads, but not in a fork of the process that opened it.

    A record is a point: its UUID is made by `StoreFormat.point_id`, its payload by `as_payload`, and its vectors are
    named after the modes. An engine's method that changes something returns when the change is durable.
    """

    _point_type: ClassVar[Any]  # makes the engine's point from id, vector and payload
    _sparse_type: ClassVar[Any]  # makes the engine's sparse vector from indices and values
    _filter_type: ClassVar[Any]  # makes the engine's filter from the result of `translate`
    _lock: AbstractContextManager[object]  # excludes other threads, if the engine needs that
    _indexed_paths: set[str]  # the paths of the payloads that have an index
    _holds_interpreter = True  # whether writing a batch blocks other threads

    def __init__(self, format_: StoreFormat) -> None:
        self._format = format_
        self._pid = os.getpid()
        self._creating = threading.Lock()
        self._is_closed = False
        self._renew()

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the records have vectors of; empty before the first record."""
        return self._current_format().modes

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """The modes that the store keeps."""
        return self._format.kept_modes

    @property
    def format(self) -> StoreFormat:
        """The format of the store."""
        return self._current_format()

    @property
    def fingerprint(self) -> str | None:
        """The model that the store is bound to; None before `bind`."""
        return self._current_format().fingerprint

    def bind(self, fingerprint: str) -> None:
        """Record which model the vectors are from, as `Store.bind`."""
        with self._usable(), self._creating:
            if self._current_format().fingerprint == fingerprint:
                return
            self._format.bound_to(fingerprint)
            # Another process may have bound the store after this one opened it.
            bound = (self._read_format() or self._format).bound_to(fingerprint)
            self._write_format(bound)
            self._format = bound

    def upsert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]],
        vectors: M3Vectors,
        *,
        is_pooled: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add records, or replace those with the same ids, as `Store.upsert`.

        They are written in batches. Each batch becomes durable and visible to readers as a whole, or not at all.

        Raises:
            OSError: If the disk is full.
            PermissionError: If the store is not writable.
        """
        ids, texts, metadatas, flags, rows = check_columns(ids, texts, metadatas, vectors, is_pooled)
        if not rows:
            return
        with self._usable():
            stored = self._current_format().sizes
        kept = [mode for mode in self.kept_modes if mode in vectors.modes]
        if not kept:
            raise ValueError(
                f"the store keeps {', '.join(self.kept_modes)} vectors, but the records have only "
                f"{', '.join(vectors.modes)}"
            )
        vectors = vectors.select(kept)
        sizes = check_vectors("what is added", vectors, stored)
        vectors, flags = pool_vectors(vectors, flags, self._format.of_sizes(sizes))
        payloads = [as_payload(ids[i], texts[i], metadatas[i], is_pooled=bool(flags[i])) for i in rows]
        if not stored:
            self._create(sizes)
            # Another thread or process may have added the first records meanwhile, with other sizes.
            check_vectors("what is added", vectors, self._format.sizes)
        is_alone = threading.current_thread() is threading.main_thread() or not self._holds_interpreter
        max_bytes = _BATCH_BYTES if is_alone else _SMALL_BATCH_BYTES
        for batch, size_bytes in batches(payloads, np.array(rows), vectors, max_bytes):
            points = self._pack(payloads[batch], vectors, rows[batch])
            with self._usable(is_change=True):
                if len(self._indexed_paths | (paths := integer_paths(payloads[batch]))) <= _MAX_INDEXED:
                    self._index_all(paths)
                self._write(points, size_bytes)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the records with these ids, and return how many there were; unknown ids are skipped."""
        ids = check_ids(ids)
        deleted = 0
        for part in self._parts(ids):
            with self._usable(is_change=True):
                there = self._retrieve(part) if self._current_format().modes else []
                if there:
                    self._delete(points=[point.id for point in there])
            deleted += len(there)
        return deleted

    def delete_where(self, filter: FilterLike) -> int:  # noqa: A002
        """Delete the records that match, and return how many there were, as `Store.delete_where`."""
        parsed = deletion_filter(filter)
        with self._usable(is_change=True):
            deleted = self.count(parsed)
            if deleted:
                self._delete(where=self._condition(parsed))
            return deleted

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Return copies of the records with these ids, in the given order; unknown ids are skipped."""
        ids = check_ids(ids)
        found: dict[str, Any] = {}
        for part in self._parts(ids):
            with self._usable():
                if self._current_format().modes:
                    points = self._retrieve(part, with_payload=True, with_vectors=with_vectors)
                    found |= {point.payload["id"]: point for point in points}
        format_ = self._format if with_vectors else None
        return [as_record(found[id_], format_) for id_ in ids if id_ in found]

    def page(self, after: str | None = None) -> tuple[list[Record], str | None]:
        """Return the next records, as `Store.page`, in the order of the engine."""
        try:
            place = None if after is None else str(uuid.UUID(after))
        except ValueError as error:
            raise ValueError(f"no page returned the place {after!r}") from error
        with self._usable():
            if not self._current_format().modes:
                return [], None
            points, place = self._scroll(place)
        return list(map(as_record, points)), None if place is None else str(place)

    def count(self, filter: FilterLike = None) -> int:  # noqa: A002
        """Return the number of records, or of those that match."""
        parsed = parse_filter(filter)
        with self._usable():
            return self._count(self._condition(parsed)) if self._current_format().modes else 0

    def candidates(
        self, query: M3Vectors, limits: Mapping[Mode, int], filter: FilterLike = None  # noqa: A002
    ) -> dict[Mode, Hits]:  # fmt: skip
        """Return the best records by each mode, as `Store.candidates`; records with equal scores are sorted by id."""
        if unknown := set(limits) - {"dense", "lexical"}:
            raise ValueError(f"candidates are found by dense or lexical scores, got {', '.join(sorted(unknown))}")
        hits = {mode: Hits([], np.empty(0, np.float32)) for mode in limits}
        parsed = parse_filter(filter)
        with self._usable():
            if not (stored := self._current_format().sizes):
                return hits
            check_query(query, stored, list(limits))
            (named,) = name_vectors(query, [mode for mode, n in limits.items() if n > 0], [0], self._sparse_type)
            found = self._search(named, limits, where=self._condition(parsed))
        for mode, scored in found.items():
            ranked = sorted((-score, id_) for id_, score in scored if mode != "lexical" or score > 0)
            hits[mode] = Hits([id_ for _, id_ in ranked], np.array([-score for score, _ in ranked], np.float32))
        return hits

    def scores(
        self, query: M3Vectors, ids: Sequence[str], modes: Sequence[Mode], known: Mapping[Mode, Hits] | None = None
    ) -> tuple[list[str], dict[Mode, FloatArray]]:
        """Return the exact raw scores of chosen records, as `Store.scores`."""
        present, columns, _ = self.scores_and_records(query, ids, modes, known)
        return present, columns

    def scores_and_records(
        self,
        query: M3Vectors,
        ids: Sequence[str],
        modes: Sequence[Mode],
        known: Mapping[Mode, Hits] | None = None,
        likely: Iterable[str] = (),
    ) -> tuple[list[str], dict[Mode, FloatArray], list[Record]]:
        """Return exact raw scores, and records that came along, as `Store.scores_and_records`.

        They are exact for the stored vectors, which may be rounded: see `MultiVectorStorage`. The engine is not asked
        for known scores again, even if the record was deleted meanwhile.
        """
        taken = {mode: dict(zip(hits.ids, hits.scores.tolist(), strict=True)) for mode, hits in (known or {}).items()}
        by_id = {mode: dict(taken.get(mode, {})) for mode in modes}
        missing = {mode: [id_ for id_ in dict.fromkeys(ids) if id_ not in by_id[mode]] for mode in modes}
        with self._usable():
            if not (stored := self._current_format().sizes):
                return [], {mode: np.empty(0, np.float32) for mode in modes}, []
            check_query(query, stored, modes)
            (named,) = name_vectors(query, [mode for mode in modes if missing[mode]], [0], self._sparse_type)
            limits = {mode: len(others) for mode, others in missing.items()}
            found, points = self._search_among(named, limits, missing, likely)
            for mode, hits in found.items():
                by_id[mode] |= hits
            if "dense" in by_id:  # every record has a dense vector, so the search has returned all existing ones
                there = set(by_id["dense"])
            else:
                there = {id_ for hits in taken.values() for id_ in hits}
                others = {self._format.point_id(id_): id_ for id_ in ids if id_ not in there}
                if others:
                    there |= {others[str(point.id)] for point in self._retrieve(list(others))}
        present = [id_ for id_ in ids if id_ in there]
        # A point that a search did not return shares no token with the query or has no token vectors: its score is 0.
        columns = {m: np.array([by_id[m].get(id_, 0.0) for id_ in present], np.float32) for m in modes}
        if "multi_vector" in columns:
            columns["multi_vector"] /= max(len(query.multi_vector[0]), 1)  # the engine's sum becomes BGE-M3's mean
        return present, columns, [as_record(point) for point in points]

    def optimize(self) -> None:
        """Build the indexes now; call it after a large import. Blocks until they are built, which may take minutes."""
        with self._usable():
            if self._current_format().modes:
                self._optimize()

    def flush(self) -> None:
        """Return when everything is durable. Every update is durable when it returns, even without this call."""
        with self._usable():
            if self._current_format().modes:
                self._flush()

    def close(self) -> None:
        """Release the engine; using the store afterwards raises RuntimeError. In a fork it does nothing."""
        if self._pid != os.getpid():  # at the fork another thread may have held the lock, which is never released here
            return
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._close()

    def _parts(self, ids: Sequence[str]) -> Iterator[list[str]]:
        """Yield the UUIDs of these records' points, at most `_MAX_IDS` at a time."""
        points = list(map(self._format.point_id, dict.fromkeys(ids)))
        for start in range(0, len(points), _MAX_IDS):
            yield points[start : start + _MAX_IDS]

    def _pack(self, payloads: Sequence[dict[str, Any]], vectors: M3Vectors, rows: Sequence[int]) -> Any:
        """Return records as points for `_write`; `rows` has the row of each record in the vectors."""
        named = name_vectors(vectors, vectors.modes, rows, self._sparse_type)
        return [
            self._point_type(id=self._format.point_id(payload["id"]), vector=each, payload=payload)
            for payload, each in zip(payloads, named, strict=True)
        ]

    def _search_among(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], among: Among, likely: Iterable[str]  # noqa: ARG002
    ) -> tuple[Found, Sequence[Any]]:  # fmt: skip
        """Search among records; return the likely ones' points too if that takes no further call."""
        return self._search(named, limits, among=among), []

    def _condition(self, filter_: Filter | None) -> Any:
        """Return a filter in the engine's type, and index the numbers and dates that it compares."""
        if filter_ is None:
            return None
        compared = {path: has for path, has in range_paths(filter_).items() if path not in self._indexed_paths}
        # A key that no record has, perhaps misspelt, gets no index: an index makes every later change slower.
        self._index_all({path for path, has in compared.items() if self._count(self._filter_type(translate(has)))})
        return self._filter_type(translate(filter_))

    def _index_all(self, paths: set[str]) -> None:
        for path in sorted(paths - self._indexed_paths):
            self._index(path)
            self._indexed_paths.add(path)

    def _renew(self) -> None:
        """Rewrite the payloads of version 1 as version 2 has them; an interrupted rewrite continues."""
        if self._format.version > 1:
            return
        if self._format.modes:
            after = None
            while True:
                points, after = self._scroll(after)
                renewed = {point.id: renewed_payload(point.payload) for point in points}
                self._overwrite({id_: payload for id_, payload in renewed.items() if payload is not None})
                if after is None:
                    break
            for path in self._indexed_paths - {"terms"}:  # version 1 kept numbers in another form
                self._unindex(path)
            self._indexed_paths &= {"terms"}
        self._format = replace(self._format, version=HASHED_IDS)
        self._write_format(self._format)

    @contextmanager
    def _usable(self, *, is_change: bool = False) -> Iterator[None]:
        """Hold the engine's lock. The process is checked first: in a fork the lock may never be released.

        Args:
            is_change: Whether records will be changed, which some engines cannot do at any time.
        """
        if self._pid != os.getpid():
            raise RuntimeError(
                "this store was opened before the process forked: open it in the child, or use the 'spawn' start method"
            )
        with self._lock:
            if is_change:
                self._await_turn()
            if self._is_closed:
                raise RuntimeError("this store was closed")
            yield

    def _await_turn(self) -> None:
        """Return when the engine can change records. The lock is held, and may be released while this waits."""

    def _create(self, sizes: Mapping[Mode, int]) -> None:
        """Create the engine for records with vectors of these sizes, unless another thread or process has."""
        with self._usable(), self._creating:
            format_ = self._current_format()
            if not format_.modes:
                self._adopt(self._create_engine(format_.of_sizes(sizes)))

    def _current_format(self) -> StoreFormat:
        """Return the format. If there were no records, read it again: another process may have added some."""
        if not self._format.modes and (found := self._read_format()) is not None:
            self._adopt(found)
        return self._format

    def _adopt(self, found: StoreFormat) -> None:
        """Use the format of a store that another process may have made meanwhile."""
        bound = self._format.adopt(found)
        if bound != found:  # this store was bound before there was a collection to write it into
            self._write_format(bound)
        self._format = bound
        self._renew()

    @abstractmethod
    def _read_format(self) -> StoreFormat | None:
        """Return the format in the folder or collection; None if there is none yet."""

    @abstractmethod
    def _write_format(self, format_: StoreFormat) -> None:
        """Write the format into the folder or collection, if there is one."""

    @abstractmethod
    def _create_engine(self, format_: StoreFormat) -> StoreFormat:
        """Create the engine for points of this format, and return the format that it has then."""

    @abstractmethod
    def _index(self, path: str) -> None:
        """Index the integers at this path of the payloads."""

    @abstractmethod
    def _unindex(self, path: str) -> None:
        """Drop an index."""

    @abstractmethod
    def _write(self, points: Any, size_bytes: int) -> None:
        """Add the points of `_pack`, replacing those with the same ids."""

    @abstractmethod
    def _overwrite(self, payloads: Mapping[Any, dict[str, Any]]) -> None:
        """Replace the payloads of points."""

    @abstractmethod
    def _delete(self, *, points: list[Any] | None = None, where: Any = None) -> None:
        """Delete the points with these ids, or those that match."""

    @abstractmethod
    def _retrieve(self, points: list[Any], *, with_payload: bool = False, with_vectors: bool = False) -> Sequence[Any]:
        """Return the existing ones of these points."""

    @abstractmethod
    def _scroll(self, after: Any) -> tuple[Sequence[Any], Any]:
        """Return the next points with their payloads, and the place to go on from; None at the end."""

    @abstractmethod
    def _count(self, where: Any) -> int:
        """Return the number of points that match, or of all points if where is None."""

    @abstractmethod
    def _search(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], *, where: Any = None, among: Among | None = None
    ) -> Found:
        """Return the ids and raw scores of one search in every mode; a multi-vector score is the sum of the maxima.

        Args:
            named: The vectors to search with, by mode.
            limits: The most points, by mode.
            where: Search only points that match; all if None.
            among: Search only the points of these records, by mode, and score each of them exactly.
        """

    @abstractmethod
    def _optimize(self) -> None:
        """Build the indexes."""

    @abstractmethod
    def _flush(self) -> None:
        """Return when everything is durable."""

    @abstractmethod
    def _close(self) -> None:
        """Release the engine."""
