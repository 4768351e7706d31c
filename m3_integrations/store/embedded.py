"""A store in a folder: Qdrant Edge, the engine of the Qdrant server, in this process."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import qdrant_edge as edge

from m3_integrations.store.collection import CollectionStore
from m3_integrations.store.edge_types import as_config, as_filter, as_request, as_vectors
from m3_integrations.store.engine import Ask
from m3_integrations.store.filters import Filter
from m3_integrations.store.folder import StoreFolder, sync_log, sync_tree
from m3_integrations.store.format import MultiVectorStorage, StoreFormat, choose_format
from m3_integrations.store.points import Point, point_id
from m3_integrations.store.qdrant_filters import index_paths
from m3_integrations.store.qdrant_vectors import read_vectors

_LOG = logging.getLogger(__name__)

_DUE_AT: Final = 20_000
"""Up to about here a search that looks at every record takes a few milliseconds."""

_RESERVE_BYTES: Final = 128 << 20
"""Disk space that is left alone: the engine maps its files, and a page that finds no room kills the process."""

_PAGE: Final = 256
"""Records read at a time when all are."""

_IS_LOG_ENOUGH: Final = sys.platform == "linux"
"""Where a file's sync is known to cover what was written through a memory map, as the engine writes its log."""

_MAX_LOGGED_BYTES: Final = 16 << 20
"""So much may be in the log alone: it is done again when the store is opened after a crash, mostly in half a second."""

_MAX_REMEMBERED: Final = 1 << 16
"""Records whose ids are remembered, at some 400 bytes each; with more all are forgotten."""

_NO_HANDLES: Final = (errno.EMFILE, errno.ENFILE)
"""Too many open files: nothing was tried, and so nothing is lost."""


class EmbeddedStore(CollectionStore):
    """A store in a folder, durable, for one process at a time.

    What an `upsert` or a delete returned from survives the end of the process and of the machine: it is in the engine's
    log, and the log is on the disk. Dense vectors and lexical weights are kept as float32, token vectors as told.
    Searching looks at every record until `optimize`.

    The engine holds the interpreter while it works, some milliseconds for a batch or a search. On Linux other threads
    and event loops run on while the log waits for the disk; elsewhere, and at every 16 MB, the engine itself waits.

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
        self._names: dict[edge.PointId, str] = {}  # the records' ids, and the other way round
        self._points: dict[str, edge.PointId] = {}
        self._n_unindexed = 0
        self._has_said_due = False
        self._n_logged_bytes = _MAX_LOGGED_BYTES  # what a crash left in the log: the first change writes it out
        self._broken_by: Exception | None = None
        self._is_log_enough = _IS_LOG_ENOUGH
        if folder.engine.exists():
            self._is_log_enough = _IS_LOG_ENOUGH and folder.renew_log()
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
        size_bytes = sum(point.nbytes for point in points)
        self._check_disk(size_bytes)
        adding = edge.UpdateOperation.upsert_points(
            [edge.Point(point.id, as_vectors(point.vectors), dict(point.payload)) for point in points if point.vectors]
        )
        # Numbers are indexed under every key that has any; strings and booleans share one index that is there.
        keys = [path for path in index_paths(points) if path not in self._indexed_keys]
        self._update(*map(_index, keys), adding, size_bytes=size_bytes)
        self._indexed_keys.update(keys)
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
        if len(self._names) > _MAX_REMEMBERED:
            self._names.clear()
            self._points.clear()
        among = [None if ask.ids is None else {self._point(id_): id_ for id_ in ask.ids} for ask in asks]
        answers = self._opened().query_batch(edge.QueryBatchRequest(list(map(as_request, asks, among))))
        found = [[(hit.id, hit.score) for hit in answer] for answer in answers]  # each look at an id makes a new UUID
        self._read_names([p for names, hits in zip(among, found, strict=True) if names is None for p, _ in hits])
        return [
            [((self._names if names is None else names)[point], score) for point, score in hits]
            for names, hits in zip(among, found, strict=True)
        ]

    def _point(self, id_: str) -> edge.PointId:
        return self._points.get(id_) or uuid.UUID(point_id(id_))

    def _read_names(self, points: Sequence[edge.PointId]) -> None:
        """Learn whose points these are: that takes as long as finding them, and never changes."""
        if unknown := [point for point in points if point not in self._names]:
            for record in self._opened().retrieve(unknown, edge.PayloadSelector.Include(["id"]), False):
                name = (record.payload or {})["id"]
                self._names[record.id], self._points[name] = name, record.id

    def optimize(self) -> None:
        shard = self._opened()
        self._check_disk(2 * sum(file.stat().st_blocks * 512 for file in self._folder.engine.rglob("*")))
        shard.optimize()
        self.flush()
        self._n_unindexed, self._has_said_due = 0, False

    def flush(self) -> None:
        shard = self._opened()
        try:
            if _IS_LOG_ENOUGH:
                sync_log(self._folder.log)  # first of all: what it says is done again, also where it was done by half
                sync_tree(self._folder.engine)  # which leaves less to wait for in the call that holds the interpreter
            shard.flush()
        except Exception as error:  # the engine raises the base class itself
            raise self._failed(error) from error
        self._n_logged_bytes = 0

    def close(self) -> None:
        shard, self._shard = self._shard, None
        try:
            if shard is not None:
                try:
                    shard.flush()
                finally:
                    shard.close()
        except Exception as error:  # as above
            raise self._failed(error) from error
        finally:
            self._folder.unlock()

    def _opened(self) -> edge.EdgeShard:
        if self._shard is None:
            raise RuntimeError("there are no records yet")  # our own mistake: the caller sees to it
        return self._shard

    def _load(self) -> None:
        self._shard = edge.EdgeShard.load(str(self._folder.engine))
        self._indexed_keys = set(self._shard.info().payload_schema)

    def _update(self, *operations: edge.UpdateOperation, size_bytes: int = 0) -> None:
        shard = self._opened()
        if self._broken_by is not None:
            raise self._unwritable(self._broken_by)
        try:
            for operation in operations:
                shard.update(operation)
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise self._unwritable(error) from error  # the engine raises the base class itself, whatever went wrong
        self._n_logged_bytes += size_bytes + 1000
        if not self._is_log_enough or self._n_logged_bytes >= _MAX_LOGGED_BYTES:
            self.flush()
            return
        try:
            sync_log(self._folder.log)  # and not the many files that the changes in it change: those now and then
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> OSError:
        """Note that a sync failed: the system forgets what it could not write, and the next sync would succeed."""
        if getattr(error, "errno", None) not in _NO_HANDLES:
            self._broken_by = error
        return self._unwritable(error)

    def _unwritable(self, error: Exception) -> OSError:
        return OSError(
            f"the engine could not write to {self._folder.path}: {error}. What was acknowledged before is safe; this "
            "change may be there in part. Remove the cause, close the store and open it again"
        )

    def _check_disk(self, size_bytes: int) -> None:
        free = shutil.disk_usage(self._folder.path).free
        needed = 2 * size_bytes + _RESERVE_BYTES
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{needed >> 20} MB of free disk are needed, {free >> 20} MB are there: nothing was written",
                str(self._folder.path),
            )


def _index(key: str) -> edge.UpdateOperation:
    return edge.UpdateOperation.create_field_index(key, edge.IntegerIndexParams(lookup=False, range=True))
