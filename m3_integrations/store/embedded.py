"""A store in a folder: Qdrant Edge, the engine of the Qdrant server, in this process."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

import qdrant_edge as edge

from m3_integrations.store.collection import CollectionStore
from m3_integrations.store.edge_types import as_config, as_filter, as_request, as_vectors
from m3_integrations.store.engine import Ask
from m3_integrations.store.filters import Filter
from m3_integrations.store.folder import StoreFolder
from m3_integrations.store.format import MultiVectorStorage, StoreFormat, choose_format
from m3_integrations.store.points import Point
from m3_integrations.store.qdrant_filters import index_paths
from m3_integrations.store.qdrant_vectors import read_vectors

_LOG = logging.getLogger(__name__)

_DUE_AT: Final = 20_000
"""Up to about here a search that looks at every record takes a few milliseconds."""

_RESERVE_BYTES: Final = 128 << 20
"""Disk space that is left alone: the engine maps its files, and a page that finds no room kills the process."""

_PAGE: Final = 256
"""Records read at a time when all are."""

_MAX_REMEMBERED: Final = 1 << 16
"""Records whose ids are remembered, at some 300 bytes each; more are read again."""


class EmbeddedStore(CollectionStore):
    """A store in a folder, durable, for one process at a time.

    What an `upsert` or a delete returned from survives the end of the process and of the machine. Dense vectors and
    lexical weights are kept as float32, token vectors as told. Searching looks at every record until `optimize`.

    The engine holds the interpreter while it works, also while it waits for the disk at the end of each batch: where
    the disk is slow or busy, other threads and event loops of the process stand still for so long.

    Args:
        folder: Made if it is not there.
        multi_vector: How token vectors are kept; for a new store. "float16" by default.
        token_pooling: How many neighbouring tokens share a token vector; for a new store. 1 by default.

    Raises:
        NotADirectoryError: If the folder is a file.
        ValueError: If something else is in the folder, a later version of this package made it, or it was made with
            other settings.
        BlockingIOError: If it is open already, in this process or another.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        multi_vector: MultiVectorStorage | None = None,
        token_pooling: int | None = None,
    ) -> None:
        place = StoreFolder(folder)
        try:
            found = place.read()
            format_ = choose_format(str(place.path), found, multi_vector, token_pooling)
            if found is None:
                place.write(format_)
            engine = _EdgeEngine(place, format_)
        except BaseException:
            place.unlock()
            raise
        super().__init__(engine, format_)
        self.folder = place.path

    def __repr__(self) -> str:
        return f"EmbeddedStore({str(self.folder)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a store in a folder cannot be pickled, as one process has it open: use a server store, "
            "open_store('http://...'), which every process can open"
        )


class _EdgeEngine:
    """Qdrant Edge, which holds the interpreter during calls."""

    def __init__(self, folder: StoreFolder, format_: StoreFormat) -> None:
        self._folder = folder
        self._format = format_
        self._lock = threading.RLock()
        self._shard: edge.EdgeShard | None = None
        self._indexed_keys: set[str] = set()
        self._record_ids: dict[edge.PointId, str] = {}
        self._n_unindexed = 0
        self._has_said_due = False
        if folder.engine.exists():
            self._load()
        elif format_.modes:
            raise ValueError(f"{folder.path} has lost its folder {folder.engine.name!r} with the records: restore it")

    def lock(self) -> threading.RLock:
        return self._lock

    def read_format(self) -> StoreFormat | None:
        return self._format

    def create(self, format_: StoreFormat) -> StoreFormat:
        self._check_disk(0)
        self._folder.discard_unfinished()
        self._folder.unfinished.mkdir()
        shard = edge.EdgeShard.create(str(self._folder.unfinished), as_config(format_))
        shard.update(edge.UpdateOperation.create_field_index("terms", edge.KeywordIndexParams()))
        shard.flush()
        shard.close()
        self._folder.write(format_)
        self._folder.finish()
        self._load()
        self._format = format_  # last: what failed before it can be tried again
        return format_

    def bind(self, format_: StoreFormat) -> None:
        self._folder.write(format_)
        self._format = format_

    def upsert(self, points: Sequence[Point]) -> None:
        self._check_disk(sum(point.nbytes for point in points))
        self._index_keys(points)
        self._update(
            edge.UpdateOperation.upsert_points(
                [
                    edge.Point(point.id, as_vectors(point.vectors), dict(point.payload))
                    for point in points
                    if point.vectors
                ]
            )
        )
        self._n_unindexed += len(points)
        if self._n_unindexed > _DUE_AT and not self._has_said_due:
            self._has_said_due = True
            _LOG.warning(
                "%s holds about %d records that are not indexed: call optimize() once, when it may take minutes",
                self._folder.path,
                self._n_unindexed,
            )

    def delete(self, ids: Sequence[str]) -> None:
        self._update(edge.UpdateOperation.delete_points(list(ids)))

    def delete_where(self, filter_: Filter) -> None:
        self._update(edge.UpdateOperation.delete_points_by_filter(as_filter(filter_)))

    def retrieve(self, ids: Sequence[str], *, with_payload: bool, with_vectors: bool) -> dict[str, Point]:
        found = self._opened().retrieve(list(ids), with_payload, with_vectors)
        return {
            str(record.id): Point(
                str(record.id),
                record.payload or {},
                read_vectors(self._format, record.vector) if with_vectors else None,  # type: ignore[arg-type]
            )
            for record in found
        }

    def scroll(self, after: Any) -> tuple[list[Point], Any]:
        found, after = self._opened().scroll(edge.ScrollRequest(offset=after, limit=_PAGE, with_payload=True))
        return [Point(str(record.id), record.payload or {}) for record in found], after

    def count(self, filter_: Filter | None) -> int:
        where = None if filter_ is None else as_filter(filter_)
        return self._opened().count(edge.CountRequest(exact=True, filter=where))

    def search(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        if not asks:
            return []
        answers = self._opened().query_batch(edge.QueryBatchRequest([as_request(ask) for ask in asks]))
        found = [[(hit.id, hit.score) for hit in answer] for answer in answers]  # each look at an id makes a new UUID
        self._remember([point for ask, hits in zip(asks, found, strict=True) if ask.ids is None for point, _ in hits])
        return [
            [(self._record_ids[point] if ask.ids is None else str(point), score) for point, score in hits]
            for ask, hits in zip(asks, found, strict=True)
        ]

    def _remember(self, points: Sequence[edge.PointId]) -> None:
        """See to it that the points' record ids are known; they never change, and reading them is slow."""
        unknown = [point for point in points if point not in self._record_ids]
        if len(self._record_ids) + len(unknown) > _MAX_REMEMBERED:
            self._record_ids.clear()
            unknown = list(points)
        if unknown:
            read = self._opened().retrieve(unknown, edge.PayloadSelector.Include(["id"]), False)
            self._record_ids |= {record.id: (record.payload or {})["id"] for record in read}

    def optimize(self) -> None:
        shard = self._opened()
        self._check_disk(2 * sum(file.stat().st_blocks * 512 for file in self._folder.engine.rglob("*")))
        shard.optimize()
        shard.flush()
        self._n_unindexed, self._has_said_due = 0, False

    def flush(self) -> None:
        self._opened().flush()

    def close(self) -> None:
        if self._shard is not None:
            self._shard.flush()
            self._shard.close()
            self._shard = None
        self._folder.unlock()

    def _opened(self) -> edge.EdgeShard:
        if self._shard is None:
            raise RuntimeError("there are no records yet")  # our own mistake: the caller sees to it
        return self._shard

    def _load(self) -> None:
        self._shard = edge.EdgeShard.load(str(self._folder.engine))
        self._indexed_keys = set(self._shard.info().payload_schema)

    def _update(self, *operations: edge.UpdateOperation) -> None:
        shard = self._opened()
        try:
            for operation in operations:
                shard.update(operation)
            shard.flush()
        except Exception as error:
            if type(error) is not Exception:
                raise
            # The engine raises the base class itself, whatever went wrong.
            raise OSError(
                f"the engine could not write to {self._folder.path}: {error}. What was acknowledged before is safe; "
                "this change may be there in part. Remove the cause, close the store and open it again"
            ) from error

    def _index_keys(self, points: Iterable[Point]) -> None:
        """Index the numbers under every key that is new; strings and booleans share one index that is there."""
        new = [path for path in index_paths(points) if path not in self._indexed_keys]
        if new:
            index = edge.IntegerIndexParams(lookup=False, range=True)
            self._update(*(edge.UpdateOperation.create_field_index(key, index) for key in new))
            self._indexed_keys.update(new)

    def _check_disk(self, size_bytes: int) -> None:
        free = shutil.disk_usage(self._folder.path).free
        needed = 2 * size_bytes + _RESERVE_BYTES
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{needed >> 20} MB of free disk are needed, {free >> 20} MB are there: nothing was written",
                str(self._folder.path),
            )
