"""A store in memory: exact, in numpy, gone with the process. The other engines are held to its answers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from m3_integrations.scoring import raw_scores, top_rows
from m3_integrations.store.filters import Filter, matches
from m3_integrations.store.protocol import Hits, Record
from m3_integrations.store.validation import check_query, check_records
from m3_integrations.vectors import MODES, FloatArray, IntArray, LexicalWeights, M3Vectors, Mode

_Mask = NDArray[np.bool_]


class MemoryStore:
    """Records in numpy arrays. Every search looks at every record, so what it finds is exact.

    Metadata may hold any values; they are copied on the way in and out. Safe to use from many threads. It cannot be
    pickled: a server store can.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._shape: M3Vectors | None = None  # no texts: the modes and sizes that the first record decided
        self._segments: list[_Segment] = []
        self._is_alive = np.zeros(1024, dtype=bool)  # by row
        self._records: dict[int, Record] = {}  # by row; rows rise in the order of insertion
        self._row_of: dict[str, int] = {}
        self._next_row = 0
        self._fingerprint: str | None = None
        self._is_closed = False
        self._version = 0

    def __len__(self) -> int:
        return len(self._records)

    def __bool__(self) -> bool:
        return True  # an empty store is still a store

    def __repr__(self) -> str:
        return f"MemoryStore({len(self)} records)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a store in memory cannot be pickled: use a server store, which every process can open")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the records have vectors of; empty before the first record."""
        return self._shape.modes if self._shape is not None else ()

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """All modes."""
        return MODES

    @property
    def fingerprint(self) -> str | None:
        """The model that the store is bound to; None before `bind`."""
        return self._fingerprint

    @property
    def version(self) -> int:
        """A number that changes with every change of the records."""
        return self._version

    def bind(self, fingerprint: str) -> None:
        """Say which model the vectors are from; the first call decides.

        Raises:
            ValueError: If the store was bound to another model.
        """
        with self._usable():
            if self._fingerprint not in {None, fingerprint}:
                raise ValueError(
                    f"this store holds vectors of the model {self._fingerprint}, not of {fingerprint}: vectors of two "
                    "models cannot be compared, so use the model it was filled with, or another store"
                )
            self._fingerprint = fingerprint

    def upsert(self, records: Sequence[Record]) -> None:
        """Add records, replacing those with the same ids; of two in one call the later one counts.

        Raises:
            ValueError: If a record has no vectors, or they are not finite or not of this store's modes and sizes;
                then none is added.
        """
        latest = list({record.id: record for record in records}.values())
        if not latest:
            return
        with self._usable():
            vectors = check_records(latest, self._shape)
            rows = np.arange(self._next_row, self._next_row + len(latest))
            copies = [Record(r.id, r.text, copy.deepcopy(dict(r.metadata)), None, r.is_pooled) for r in latest]
            self._forget([self._row_of[r.id] for r in latest if r.id in self._row_of])
            self._next_row += len(latest)
            if self._next_row > len(self._is_alive):
                self._is_alive = np.concatenate([self._is_alive, np.zeros(self._next_row, dtype=bool)])
            self._is_alive[rows] = True
            self._shape = vectors[:0]
            self._records.update(zip(rows.tolist(), copies, strict=True))
            self._row_of.update(zip((r.id for r in latest), rows.tolist(), strict=True))
            self._segments.append(_Segment(rows, vectors))
            self._tidy()
            self._version += 1

    def delete(self, ids: Sequence[str]) -> int:
        """Delete records; ids that are not there are passed over. Gives the number deleted."""
        with self._usable():
            rows = {self._row_of[id_] for id_ in ids if id_ in self._row_of}
            self._forget(list(rows))
            self._tidy()
            self._version += 1
            return len(rows)

    def delete_where(self, filter: Filter) -> int:  # noqa: A002
        """Delete the records that match. Gives the number deleted."""
        with self._usable():
            return self.delete([record.id for record in self._records.values() if matches(filter, record.metadata)])

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Give the records of these ids that are there, in the order of the ids; the caller's own copies."""
        with self._usable():
            rows = [self._row_of[id_] for id_ in ids if id_ in self._row_of]
            return [self._copy(row, with_vectors=with_vectors) for row in rows]

    def records(self) -> Iterator[Record]:
        """Give all records without vectors, in the order they were added; the caller's own copies."""
        with self._usable():
            return iter([self._copy(row, with_vectors=False) for row in self._records])

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002
        """Give the number of records, or of those that match."""
        with self._usable():
            return len(self._matching(filter))

    def candidates(
        self, query: M3Vectors, limits: Mapping[Mode, int], filter: Filter | None = None  # noqa: A002
    ) -> dict[Mode, Hits]:  # fmt: skip
        """Give the best records by each of these modes alone; equal scores in the order of insertion.

        Args:
            query: The vectors of one text.
            limits: How many at most for "dense" and for "lexical". A text that shares no token is no lexical hit.
            filter: Only records that match.

        Raises:
            ValueError: For another mode, or a query that does not fit the records.
        """
        if unknown := set(limits) - {"dense", "lexical"}:
            raise ValueError(f"candidates come by dense or lexical scores, not by {', '.join(sorted(unknown))}")
        with self._usable():
            if self._shape is None or not self._segments:
                return {mode: Hits([], np.empty(0, np.float32)) for mode in limits}
            check_query(query, self._shape, list(limits))
            eligible = self._is_alive
            if filter is not None:
                eligible = np.zeros_like(self._is_alive)
                eligible[self._matching(filter)] = True
            return {mode: self._best(query, mode, n, eligible) for mode, n in limits.items()}

    def scores(
        self,
        query: M3Vectors,
        ids: Sequence[str],
        modes: Sequence[Mode],
        known: Mapping[Mode, Hits] | None = None,  # noqa: ARG002
    ) -> tuple[list[str], dict[Mode, FloatArray]]:
        """Give the exact raw scores of chosen records: those ids that are there, in order, and (n,) float32 a mode.

        Args:
            query: The vectors of one text.
            ids: Of records; those that are not there are passed over.
            modes: What is compared.
            known: Not used: scoring again costs little here.

        Raises:
            ValueError: For a query that does not fit the records.
        """
        with self._usable():
            found = [id_ for id_ in ids if id_ in self._row_of]
            rows = np.array([self._row_of[id_] for id_ in found], dtype=np.int64)
            result = {mode: np.zeros(len(found), dtype=np.float32) for mode in modes}
            if self._shape is not None:
                check_query(query, self._shape, modes)
            for segment in self._segments:
                here = np.flatnonzero((rows >= segment.rows[0]) & (rows <= segment.rows[-1]))
                if not len(here):
                    continue
                local = np.searchsorted(segment.rows, rows[here])
                for mode, values in raw_scores(query, segment.vectors, modes, local).items():
                    result[mode][here] = values
            return found, result

    def optimize(self) -> None:
        """Put all records into one block now."""
        with self._usable():
            self._merge(0)

    def flush(self) -> None:
        """Do nothing: there is nothing to write."""
        with self._usable():
            pass

    def close(self) -> None:
        """Let go of all records."""
        with self._lock:
            self._segments, self._records, self._row_of, self._shape = [], {}, {}, None
            self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _usable(self) -> threading.RLock:
        if self._is_closed:
            raise RuntimeError("this store was closed")
        return self._lock

    def _matching(self, filter: Filter | None) -> list[int]:  # noqa: A002
        return [row for row, record in self._records.items() if matches(filter, record.metadata)]

    def _copy(self, row: int, *, with_vectors: bool) -> Record:
        record = self._records[row]
        vectors = None
        if with_vectors:
            segment = next(s for s in self._segments if s.rows[0] <= row <= s.rows[-1])
            vectors = segment.vectors[int(np.searchsorted(segment.rows, row))]
        return Record(record.id, record.text, copy.deepcopy(record.metadata), vectors, record.is_pooled)

    def _best(self, query: M3Vectors, mode: Mode, n: int, eligible: _Mask) -> Hits:
        scores = np.concatenate([segment.leg(query, mode) for segment in self._segments])
        rows = np.concatenate([segment.rows for segment in self._segments])
        keep = np.flatnonzero(eligible[rows] & (scores > 0) if mode == "lexical" else eligible[rows])
        best = keep[top_rows(scores[keep], n)]
        return Hits([self._records[row].id for row in rows[best].tolist()], scores[best])

    def _forget(self, rows: Sequence[int]) -> None:
        for row in rows:
            del self._row_of[self._records.pop(row).id]
        self._is_alive[rows] = False

    def _tidy(self) -> None:
        """Merge small blocks into larger ones, so that there are few and each record is moved a few times only."""
        if sum(len(segment.rows) for segment in self._segments) > 2 * len(self._records):
            self._merge(0)
        start = len(self._segments) - 1
        size = len(self._segments[start].rows) if self._segments else 0
        while start > 0 and len(self._segments[start - 1].rows) < 2 * size:
            start -= 1
            size += len(self._segments[start].rows)
        if start < len(self._segments) - 1:
            self._merge(start)

    def _merge(self, start: int) -> None:
        """Put the blocks from start on into one, without the records that were deleted."""
        merged = self._segments[start:]
        if not merged:
            return
        rows = np.concatenate([segment.rows for segment in merged])
        alive = np.flatnonzero(self._is_alive[rows])
        vectors = M3Vectors.concatenate([segment.vectors for segment in merged]).take(alive)
        self._segments[start:] = [_Segment(rows[alive], vectors)] if len(alive) else []


class _Segment:
    """Some records' vectors, never changed: rows rise, and the position of a row is the position of its vectors."""

    def __init__(self, rows: IntArray, vectors: M3Vectors) -> None:
        self.rows = rows
        self.vectors = vectors

    def leg(self, query: M3Vectors, mode: Mode) -> FloatArray:
        """Give the raw scores of all records here: (n,) float32."""
        if mode == "lexical":
            return self._lexical(query.lexical[0])
        return raw_scores(query, self.vectors, [mode])[mode]

    @cached_property
    def _postings(self) -> tuple[NDArray[np.int32], IntArray, FloatArray]:
        """Every token's records and weights: token ids rising, positions and weights beside them."""
        lexical = self.vectors.lexical
        order = np.argsort(lexical.indices, kind="stable")
        positions = np.repeat(np.arange(len(lexical)), lexical.lengths)
        return lexical.indices[order], positions[order], lexical.values[order]

    def _lexical(self, query: LexicalWeights) -> FloatArray:
        """Read only the postings of the query's tokens; equal to `lexical_scores`."""
        tokens, positions, weights = self._postings
        starts, ends = np.searchsorted(tokens, query.indices), np.searchsorted(tokens, query.indices, side="right")
        touched = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)] or [np.empty(0, int)])
        products = np.repeat(query.values, ends - starts).astype(np.float64) * weights[touched]
        return np.bincount(positions[touched], weights=products, minlength=len(self.rows)).astype(np.float32)
