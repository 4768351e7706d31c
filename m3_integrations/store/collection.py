"""What the durable stores have in common: everything but the engine that keeps the points."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import numpy as np

from m3_integrations.store.engine import Ask, Engine
from m3_integrations.store.filters import Filter
from m3_integrations.store.format import StoreFormat
from m3_integrations.store.points import Point, as_payload, as_record, batches, point_id
from m3_integrations.store.pooling import pool_tokens, pooled_lengths
from m3_integrations.store.protocol import Hits, Record
from m3_integrations.store.validation import check_query, check_records
from m3_integrations.vectors import FloatArray, M3Vectors, Mode

_BATCH_BYTES: Final = 8 << 20
_SMALL_BATCH_BYTES: Final = 1 << 20
"""Outside the main thread, where an event loop may be waiting: engines hold the interpreter while they write."""

_MAX_IDS: Final = 1000
"""Ids looked up or deleted in one call of an engine."""


class CollectionStore:
    """A store over an engine. Safe to use from many threads, not from a process that was forked off the opener's."""

    def __init__(self, engine: Engine, format_: StoreFormat) -> None:
        self._engine = engine
        self._chosen = format_
        self._pid = os.getpid()
        self._creating = threading.Lock()
        self._is_closed = False

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the records have vectors of; empty before the first record."""
        return self._format().modes

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """The modes that are kept of what is added."""
        return self._chosen.kept_modes

    @property
    def fingerprint(self) -> str | None:
        """The model that the store is bound to; None before `bind`."""
        return self._format().fingerprint

    def bind(self, fingerprint: str) -> None:
        """Say which model the vectors are from; the first call decides.

        Raises:
            ValueError: If the store was bound to another model.
        """
        with self._usable(), self._creating:
            if self._format().fingerprint == fingerprint:
                return
            self._chosen.bound_to(fingerprint)
            # Another process may have bound it since it was opened here.
            bound = (self._engine.read_format() or self._chosen).bound_to(fingerprint)
            self._engine.bind(bound)
            self._chosen = bound

    def upsert(self, records: Sequence[Record]) -> None:
        """Add records, replacing those with the same ids; of two in one call the later one counts.

        Everything is checked before anything is written. It is then written in batches; each is durable, and seen by
        readers, at once or not at all.

        Raises:
            TypeError: If an id or a text is no string.
            ValueError: If a record has no vectors, or they are not finite or not of this store's modes and sizes, or
                its metadata are not what JSON can hold; then none is added.
            OSError: If the disk is full.
        """
        latest = list({record.id: record for record in records}.values())
        if not latest:
            return
        with self._usable():
            format_ = self._format()
        kept = [replace(record, vectors=self._kept(record)) for record in latest]
        vectors = check_records(kept, format_.shape)
        points = self._points(kept, format_.shaped_like(vectors), vectors)
        if not format_.modes:
            self._create(vectors)
            check_records(kept, self._chosen.shape)  # another thread or process may have been first, with other sizes
        is_main = threading.current_thread() is threading.main_thread()
        for batch in batches(points, _BATCH_BYTES if is_main else _SMALL_BATCH_BYTES):
            with self._usable():
                self._engine.upsert(batch)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete records; ids that are not there are passed over. Gives the number deleted."""
        deleted = 0
        for part in _parts([point_id(id_) for id_ in dict.fromkeys(ids)]):
            with self._usable():
                if self._format().modes:
                    there = list(self._engine.retrieve(part, with_payload=False, with_vectors=False))
                    deleted += len(there)
                    if there:
                        self._engine.delete(there)
        return deleted

    def delete_where(self, filter: Filter) -> int:  # noqa: A002
        """Delete the records that match. Gives the number deleted."""
        with self._usable():
            deleted = self.count(filter)
            if deleted:
                self._engine.delete_where(filter)
            return deleted

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Give the records of these ids that are there, in the order of the ids; the caller's own copies."""
        names = {id_: point_id(id_) for id_ in ids}
        found: dict[str, Point] = {}
        for part in _parts(list(names.values())):
            with self._usable():
                if self._format().modes:
                    found |= self._engine.retrieve(part, with_payload=True, with_vectors=with_vectors)
        return [as_record(found[names[id_]]) for id_ in ids if names[id_] in found]

    def records(self) -> Iterator[Record]:
        """Give all records without vectors, each once, in the order of the engine."""
        after = None
        with self._usable():
            if not self._format().modes:
                return
        while True:
            with self._usable():
                points, after = self._engine.scroll(after)
            yield from map(as_record, points)
            if after is None:
                return

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002
        """Give the number of records, or of those that match."""
        with self._usable():
            return self._engine.count(filter) if self._format().modes else 0

    def candidates(
        self, query: M3Vectors, limits: Mapping[Mode, int], filter: Filter | None = None  # noqa: A002
    ) -> dict[Mode, Hits]:  # fmt: skip
        """Give the best records by each of these modes alone; equal scores in the order of the ids.

        Args:
            query: The vectors of one text.
            limits: How many at most for "dense" and for "lexical". A text that shares no token is no lexical hit.
            filter: Only records that match.

        Raises:
            ValueError: For another mode, or a query that does not fit the records.
        """
        if unknown := set(limits) - {"dense", "lexical"}:
            raise ValueError(f"candidates come by dense or lexical scores, not by {', '.join(sorted(unknown))}")
        nothing = {mode: Hits([], np.empty(0, np.float32)) for mode in limits}
        with self._usable():
            if (shape := self._format().shape) is None:
                return nothing
            check_query(query, shape, list(limits))
            asks = [Ask(mode, query, n, filter) for mode, n in limits.items() if n > 0 and _can_ask(query, mode)]
            answers = self._engine.search(asks)
        return nothing | {ask.mode: _hits(ask.mode, found) for ask, found in zip(asks, answers, strict=True)}

    def scores(
        self, query: M3Vectors, ids: Sequence[str], modes: Sequence[Mode], known: Mapping[Mode, Hits] | None = None
    ) -> tuple[list[str], dict[Mode, FloatArray]]:
        """Give the exact raw scores of chosen records: those ids that are there, in order, and (n,) float32 a mode.

        They are exact for the vectors as they are stored: see the storage of token vectors.

        Args:
            query: The vectors of one text.
            ids: Of records; those that are not there are passed over.
            modes: What is compared.
            known: What `candidates` has just given for this query: taken over instead of asking the engine again, also
                where a record was deleted since.

        Raises:
            ValueError: For a query that does not fit the records.
        """
        taken = {mode: dict(zip(hits.ids, hits.scores.tolist(), strict=True)) for mode, hits in (known or {}).items()}
        by_id: dict[Mode, dict[str, float]] = {mode: dict(taken.get(mode, {})) for mode in modes}
        missing = {mode: [id_ for id_ in dict.fromkeys(ids) if id_ not in by_id[mode]] for mode in modes}
        with self._usable():
            if (shape := self._format().shape) is None:
                return [], {mode: np.empty(0, np.float32) for mode in modes}
            check_query(query, shape, modes)
            asks = [
                Ask(mode, query, len(others), ids=others)
                for mode, others in missing.items()
                if others and _can_ask(query, mode)
            ]
            for ask, found in zip(asks, self._engine.search(asks), strict=True):
                by_id[ask.mode] |= dict(found)
            if "dense" in by_id:  # every record has a dense vector, so the search has met all that are there
                there = set(by_id["dense"])
            else:
                there = {id_ for hits in taken.values() for id_ in hits}
                names = {point_id(id_): id_ for id_ in ids if id_ not in there}
                if names:
                    there |= {
                        names[point]
                        for point in self._engine.retrieve(list(names), with_payload=False, with_vectors=False)
                    }
        present = [id_ for id_ in ids if id_ in there]
        # A point that a search does not give shares no token with the query, or has no token vectors: it scores 0.
        columns = {m: np.array([by_id[m].get(id_, 0.0) for id_ in present], np.float32) for m in modes}
        if "multi_vector" in columns:
            columns["multi_vector"] /= max(len(query.multi_vector[0]), 1)  # the engine's sum becomes BGE-M3's mean
        return present, columns

    def optimize(self) -> None:
        """Build the indexes now. Blocks, for minutes where there is much; call it after a large import."""
        with self._usable():
            if self._format().modes:
                self._engine.optimize()

    def flush(self) -> None:
        """Return when everything is durable; it is in any case when an update returns."""
        with self._usable():
            if self._format().modes:
                self._engine.flush()

    def close(self) -> None:
        """Let go of the engine; using the store then raises. In a fork of the opener it does nothing."""
        if self._pid != os.getpid():  # a thread that the fork has not got may have held the lock
            return
        with self._engine.lock():
            if not self._is_closed:
                self._is_closed = True
                self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Hold the engine's lock; the process is looked at before it, as it may have been held at the fork."""
        if self._pid != os.getpid():
            raise RuntimeError(
                "this store was opened before the process forked: open it in the child, or use the 'spawn' start method"
            )
        with self._engine.lock():
            if self._is_closed:
                raise RuntimeError("this store was closed")
            yield

    def _create(self, vectors: M3Vectors) -> None:
        """Make room for records with vectors like these, unless somebody else has made it."""
        with self._usable(), self._creating:
            format_ = self._format()
            if not format_.modes:
                self._adopt(self._engine.create(format_.shaped_like(vectors)))

    def _format(self) -> StoreFormat:
        """Give the format; while there are no records, see whether somebody else has added some."""
        if not self._chosen.modes and (found := self._engine.read_format()) is not None:
            self._adopt(found)
        return self._chosen

    def _adopt(self, found: StoreFormat) -> None:
        """Take over the format of a store that somebody else may have made a moment ago."""
        if (found.multi_vector, found.token_pooling) != (self._chosen.multi_vector, self._chosen.token_pooling):
            raise ValueError(
                f"another process has made this store with multi_vector={found.multi_vector!r} and "
                f"token_pooling={found.token_pooling}: open it again"
            )
        if found.fingerprint is None or self._chosen.fingerprint is None:
            is_ours = found.fingerprint is None and self._chosen.fingerprint is not None
            found = replace(found, fingerprint=found.fingerprint or self._chosen.fingerprint)
            if is_ours:  # bound here before there was a place to write it down
                self._engine.bind(found)
        else:
            found.bound_to(self._chosen.fingerprint)
        self._chosen = found

    def _kept(self, record: Record) -> M3Vectors | None:
        """Give a record's vectors of the modes that are kept."""
        if record.vectors is None:
            return None
        modes = [mode for mode in record.vectors.modes if mode in self._chosen.kept_modes]
        if not modes:
            raise ValueError(f"record {record.id!r} has {', '.join(record.vectors.modes)} vectors only: none is kept")
        return record.vectors.select(modes)

    def _points(self, records: Sequence[Record], format_: StoreFormat, vectors: M3Vectors) -> list[Point]:
        """Give the records' points, with as many token vectors as are kept."""
        is_pooled = np.array([record.is_pooled for record in records])
        if "multi_vector" in vectors.modes:
            rows = vectors.multi_vector
            # What was pooled before, in another store, is not pooled by the factor again.
            factors = np.where(is_pooled, 1, format_.token_pooling)
            lengths = pooled_lengths(rows.lengths, factors, format_.max_tokens)
            is_pooled |= lengths < rows.lengths
            vectors = M3Vectors(
                dense=vectors.dense if "dense" in vectors.modes else None,
                lexical=vectors.lexical if "lexical" in vectors.modes else None,
                multi_vector=pool_tokens(rows, lengths),
            )
        return [
            Point(point_id(record.id), as_payload(replace(record, is_pooled=bool(pooled))), vectors[i])
            for i, (record, pooled) in enumerate(zip(records, is_pooled, strict=True))
        ]


def _can_ask(query: M3Vectors, mode: Mode) -> bool:
    """Say whether a query has anything to compare in a mode: engines refuse an empty vector."""
    if mode == "dense":
        return True
    return len(query.lexical[0] if mode == "lexical" else query.multi_vector[0]) > 0


def _hits(mode: Mode, found: Sequence[tuple[str, float]]) -> Hits:
    ranked = sorted((-score, id_) for id_, score in found if mode != "lexical" or score > 0)
    return Hits([id_ for _, id_ in ranked], np.array([-score for score, _ in ranked], np.float32))


def _parts(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _MAX_IDS):
        yield ids[start : start + _MAX_IDS]
