"""`MemoryStore`: an exact store in numpy, lost when the process ends. Tests compare other engines with its answers."""

from __future__ import annotations

import copy
import heapq
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from m3_integrations.scoring import raw_scores, top_rows
from m3_integrations.store.columns import check_columns, check_ids
from m3_integrations.store.filters import FilterLike, matches, parse_filter
from m3_integrations.store.protocol import (
    Hits,
    Record,
    Store,
    check_model,
    check_query,
    check_vectors,
    deletion_filter,
)
from m3_integrations.store.values import check_metadata
from m3_integrations.vectors import MODES, FloatArray, IntArray, LexicalWeights, M3Vectors, Mode, offsets_of

_Mask = NDArray[np.bool_]

_MERGED_BYTES: Final = 64 << 20
"""Blocks are merged up to this size, or up to a quarter of all data, so that a merge never doubles the memory."""


_PAGE: Final = 256
"""Records of a page."""


class MemoryStore(Store):
    """Records in numpy arrays. Every search scores every record, so its results are exact.

    Many threads may use it at a time. It cannot be pickled; a server store can.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sizes: dict[Mode, int] = {}  # vector length by mode, set by the first record
        self._blocks: list[_Block] = []
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
        raise TypeError("a store in memory cannot be pickled: use a store on a server, which every process can open")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the records have vectors of; empty before the first record."""
        return tuple(self._sizes)

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
        """Bind the store to a model, as `Store.bind` describes."""
        with self._usable():
            check_model(self._fingerprint, fingerprint)
            self._fingerprint = fingerprint

    def upsert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]],
        vectors: M3Vectors,
        *,
        is_pooled: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add records, or replace those with the same ids, as `Store.upsert` describes.

        The store keeps the arrays without copying them, unless an id comes twice: do not change them afterwards.
        """
        ids, texts, metadatas, flags, chosen = check_columns(ids, texts, metadatas, vectors, is_pooled)
        if not chosen:
            return
        kept = {i: check_metadata(metadatas[i], f"record {ids[i]!r}") for i in chosen}
        added = [Record(ids[i], texts[i], metadata, None, bool(flags[i])) for i, metadata in kept.items()]
        with self._usable():
            sizes = check_vectors("what is added", vectors, self._sizes)
            self._forget([self._row_of[record.id] for record in added if record.id in self._row_of])
            rows = np.arange(self._next_row, self._next_row + len(added))
            self._next_row += len(added)
            if self._next_row > len(self._is_alive):
                self._is_alive = np.concatenate([self._is_alive, np.zeros(self._next_row, dtype=bool)])
            self._is_alive[rows] = True
            self._sizes = sizes
            self._records.update(zip(rows.tolist(), added, strict=True))
            self._row_of.update(zip((record.id for record in added), rows.tolist(), strict=True))
            self._blocks.append(_Block(rows, vectors if len(chosen) == len(ids) else vectors.take(np.array(chosen))))
            self._tidy()
            self._version += 1

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the records with these ids, and return how many there were; unknown ids are skipped."""
        ids = check_ids(ids)
        with self._usable():
            rows = {self._row_of[id_] for id_ in ids if id_ in self._row_of}
            self._forget(list(rows))
            self._tidy()
            self._version += 1
            return len(rows)

    def delete_where(self, filter: FilterLike) -> int:  # noqa: A002
        """Delete the records that match, and return how many there were, as `Store.delete_where` describes."""
        parsed = deletion_filter(filter)
        with self._usable():
            return self.delete([self._records[row].id for row in self._matching(parsed)])

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Return copies of the records with these ids, in the given order; unknown ids are skipped."""
        ids = check_ids(ids)
        with self._usable():
            rows = [self._row_of[id_] for id_ in ids if id_ in self._row_of]
            return [self._copy(row, with_vectors=with_vectors) for row in rows]

    def records(self) -> Iterator[Record]:
        """Return copies of all records, without vectors, in the order they were added."""
        with self._usable():
            return iter([self._copy(row, with_vectors=False) for row in self._records])

    def page(self, after: str | None = None) -> tuple[list[Record], str | None]:
        """Return a page of records in the order of their ids, as `Store.page` describes."""
        with self._usable():
            left = self._row_of if after is None else (id_ for id_ in self._row_of if id_ > after)
            ids = heapq.nsmallest(_PAGE, left)  # the order of ids does not change with the records
            return self.get(ids), ids[-1] if len(ids) == _PAGE else None

    def rows(self, filter: FilterLike = None) -> dict[int, Record]:  # noqa: A002
        """Return the records that match, or all, by their rows. They are the store's own objects: do not change them.

        Rows rise in the order of adding. A record that is replaced gets a new row.
        """
        with self._usable():
            return {row: self._records[row] for row in self._matching(filter)}

    def count(self, filter: FilterLike = None) -> int:  # noqa: A002
        """Return the number of records, or of those that match."""
        with self._usable():
            return len(self._matching(filter))

    def candidates(
        self, query: M3Vectors, limits: Mapping[Mode, int], filter: FilterLike = None  # noqa: A002
    ) -> dict[Mode, Hits]:  # fmt: skip
        """Return the best records by each mode, as `Store.candidates`; equal scores in the order of adding."""
        if unknown := set(limits) - {"dense", "lexical"}:
            raise ValueError(f"candidates are found by dense or lexical scores, got {', '.join(sorted(unknown))}")
        with self._usable():
            if not self._blocks:
                return {mode: Hits([], np.empty(0, np.float32)) for mode in limits}
            check_query(query, self._sizes, list(limits))
            blocks, eligible = list(self._blocks), self._is_alive.copy()
            if parse_filter(filter) is not None:
                eligible[:] = False
                eligible[self._matching(filter)] = True
        # Without the lock: blocks never change, so that searches run beside each other and beside changes.
        best = {mode: _best(blocks, query, mode, n, eligible) for mode, n in limits.items()}
        with self._usable():
            if all(row in self._records for rows, _ in best.values() for row in rows):
                return {mode: Hits([self._records[row].id for row in rows], of) for mode, (rows, of) in best.items()}
            return self.candidates(query, limits, filter)  # a record was deleted or replaced meanwhile

    def scores(
        self,
        query: M3Vectors,
        ids: Sequence[str],
        modes: Sequence[Mode],
        known: Mapping[Mode, Hits] | None = None,  # noqa: ARG002
    ) -> tuple[list[str], dict[Mode, FloatArray]]:
        """Return the exact raw scores of chosen records, as `Store.scores` describes; `known` is not used."""
        with self._usable():
            found = [id_ for id_ in ids if id_ in self._row_of]
            rows = np.array([self._row_of[id_] for id_ in found], dtype=np.int64)
            result = {mode: np.zeros(len(found), dtype=np.float32) for mode in modes}
            if self._sizes:
                check_query(query, self._sizes, modes)
            blocks = list(self._blocks)
        for block in blocks:  # without the lock, as in candidates
            here = np.flatnonzero((rows >= block.rows[0]) & (rows <= block.rows[-1]))
            if not len(here):
                continue
            local = np.searchsorted(block.rows, rows[here])
            for mode, values in raw_scores(query, block.vectors, modes, local).items():
                result[mode][here] = values
        return found, result

    def optimize(self) -> None:
        """Put all records into one block now."""
        with self._usable():
            self._merge(0)

    def flush(self) -> None:
        """Do nothing: memory has nothing to make durable."""
        with self._usable():
            pass

    def close(self) -> None:
        """Release all records."""
        with self._lock:
            self._blocks, self._records, self._row_of, self._sizes = [], {}, {}, {}
            self._is_closed = True

    def _usable(self) -> threading.RLock:
        if self._is_closed:
            raise RuntimeError("this store was closed")
        return self._lock

    def _matching(self, filter: FilterLike) -> list[int]:  # noqa: A002
        parsed = parse_filter(filter)
        return [row for row, record in self._records.items() if matches(parsed, record.metadata)]

    def _copy(self, row: int, *, with_vectors: bool) -> Record:
        record = self._records[row]
        vectors = None
        if with_vectors:
            block = next(block for block in self._blocks if block.rows[0] <= row <= block.rows[-1])
            vectors = block.vectors.take(np.searchsorted(block.rows, [row]))
        return Record(record.id, record.text, copy.deepcopy(record.metadata), vectors, record.is_pooled)

    def _forget(self, rows: Sequence[int]) -> None:
        for row in rows:
            del self._row_of[self._records.pop(row).id]
        self._is_alive[rows] = False

    def _tidy(self) -> None:
        """Drop the vectors of deleted records once they are more than half, and merge small blocks from the end.

        This keeps the number of blocks small, and copies each record only a few times.
        """
        if sum(len(block.rows) for block in self._blocks) > 2 * len(self._records):
            self._blocks = self._drop_deleted(self._blocks)
        limit = max(_MERGED_BYTES, sum(block.size_bytes for block in self._blocks) // 4)
        start, n_rows, size_bytes = len(self._blocks), 0, 0
        for block in reversed(self._blocks):
            size_bytes += block.size_bytes
            if size_bytes > limit or (n_rows and len(block.rows) >= 2 * n_rows):
                break
            start -= 1
            n_rows += len(block.rows)
        if len(self._blocks) - start > 1:
            self._merge(start)

    def _merge(self, start: int) -> None:
        """Merge the blocks from start on into one, without deleted records."""
        merged = self._drop_deleted(self._blocks[start:])
        if len(merged) > 1:
            rows = np.concatenate([block.rows for block in merged])
            merged = [_Block(rows, M3Vectors.concatenate([block.vectors for block in merged]))]
        self._blocks[start:] = merged

    def _drop_deleted(self, blocks: Sequence[_Block]) -> list[_Block]:
        """Return the blocks without deleted records; a block without deleted records is not copied."""
        kept: list[_Block] = []
        for block in blocks:
            alive = np.flatnonzero(self._is_alive[block.rows])
            if len(alive) == len(block.rows):
                kept.append(block)
            elif len(alive):
                kept.append(_Block(block.rows[alive], block.vectors.take(alive)))
        return kept


class _Block:
    """The vectors of some records; a block never changes. `rows` rise, and row i belongs to the i-th text's vectors."""

    def __init__(self, rows: IntArray, vectors: M3Vectors) -> None:
        self.rows = rows
        self.vectors = vectors
        self.size_bytes = vectors.nbytes

    def leg(self, query: M3Vectors, mode: Mode) -> FloatArray:
        """Return the raw scores of all n records of the block, (n,) float32."""
        if mode == "lexical":
            return self._lexical(query.lexical[0])
        return raw_scores(query, self.vectors, [mode])[mode]

    @cached_property
    def _postings(self) -> tuple[NDArray[np.int32], IntArray, FloatArray]:
        """Token ids in rising order, and for each the position of its record and its weight, (weights,) each."""
        lexical = self.vectors.lexical
        order = np.argsort(lexical.indices, kind="stable")
        positions = np.repeat(np.arange(len(lexical)), lexical.lengths)
        return lexical.indices[order], positions[order], lexical.values[order]

    def _lexical(self, query: LexicalWeights) -> FloatArray:
        """Return the values of `lexical_scores`, (n,) float32, from only the postings of the query's tokens."""
        tokens, positions, weights = self._postings
        starts = np.searchsorted(tokens, query.indices)
        counts = np.searchsorted(tokens, query.indices, side="right") - starts
        offsets = offsets_of(counts)
        touched = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
        products = np.repeat(query.values, counts).astype(np.float64) * weights[touched]
        return np.bincount(positions[touched], weights=products, minlength=len(self.rows)).astype(np.float32)


def _best(
    blocks: Sequence[_Block], query: M3Vectors, mode: Mode, n: int, eligible: _Mask
) -> tuple[list[int], FloatArray]:
    """Return the rows of the n best eligible records and their scores, best first; equal ones in the rows' order."""
    scores = np.concatenate([block.leg(query, mode) for block in blocks])
    rows = np.concatenate([block.rows for block in blocks])
    keep = np.flatnonzero(eligible[rows] & (scores > 0) if mode == "lexical" else eligible[rows])
    best = keep[top_rows(scores[keep], n)]
    return rows[best].tolist(), scores[best]
