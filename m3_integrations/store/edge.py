"""A store in a folder: Qdrant Edge, the engine of the Qdrant server, in this process."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import qdrant_edge as edge

from m3_integrations.store.edge_config import RESCORED, as_config, as_filter, load_shard
from m3_integrations.store.edge_folder import StoreFolder
from m3_integrations.store.edge_ids import RememberedIds
from m3_integrations.store.edge_log import end_with_small_change, sync_log, trim_log
from m3_integrations.store.edge_optimizing import Optimizer
from m3_integrations.store.edge_size import allocated_bytes
from m3_integrations.store.points import IDS_IN_POINTS, MultiVectorStorage, StoreFormat, choose_format
from m3_integrations.store.qdrant import Among, Found, QdrantStore
from m3_integrations.store.syncing import sync_tree
from m3_integrations.vectors import Mode

_LOG = logging.getLogger(__name__)

_DUE_AT: Final = 20_000  # up to about so many records, a search without an index takes a few milliseconds
_MANY: Final = 2500  # from this many records on `optimize` takes seconds, in another process

_IS_LOG_ENOUGH: Final = sys.platform == "linux"
"""Whether syncing a file covers writes through a memory map, which the engine uses for its log: known of Linux."""

_MAX_LOGGED_BYTES: Final = 16 << 20
"""The most bytes that are only in the log. Opening after a crash applies them again, mostly in half a second."""

_NO_HANDLES: Final = (errno.EMFILE, errno.ENFILE)  # too many open files: no sync was tried, so no data are lost


class EdgeStore(QdrantStore):
    """A store in a folder, durable, for one process at a time.

    When `upsert` or a delete returns, its changes are in the engine's log and the log is on the disk: they survive the
    end of the process and a power cut. Dense vectors and lexical weights are kept as float32, token vectors as
    `multi_vector` says.

    Dense vectors are also kept with 8 bits a number, which moves a score by up to 0.001 with 1,024 numbers and 0.002
    with 384. The dense mode compares those of every record, or after `optimize` of those that its graph leads to, and
    then scores twice as many candidates as it returns exactly. An older store gets them from `optimize`.

    A folder that is not writable, such as one on a read-only disk, is opened for reading: the engine works on a copy of
    its files in the system's folder for temporary files.

    The engine blocks the interpreter while it works, some milliseconds for a batch or a search. On Linux, other threads
    and event loops run while the log is synced; on other systems, and after every 16 MB, they wait for the sync too.

    Args:
        folder: The folder; made if it does not exist.
        multi_vector: The way to keep token vectors in a new store. "float16" by default.
        token_pooling: The number of neighbouring tokens that share a token vector in a new store. 1 by default.

    Raises:
        NotADirectoryError: If the folder is a file.
        ValueError: If something else is in the folder, a later version made it, or it was made with other settings.
        BlockingIOError: If it is open already, in this process or another.
        OSError: If under 2 MB of the disk are free, or 160 after a crash; in memory (tmpfs) reserved files count.
        PermissionError: If the folder is read-only; raised by the methods that change records.
    """

    _point_type = edge.Point
    _sparse_type = edge.SparseVector
    _filter_type = staticmethod(as_filter)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        multi_vector: MultiVectorStorage | None = None,
        token_pooling: int | None = None,
    ) -> None:
        self._place = StoreFolder(folder)
        self.folder = self._place.path
        self._lock = threading.RLock()
        self._optimizer: Optimizer | None = None
        self._has_optimized = threading.Condition(self._lock)
        self._shard: edge.EdgeShard | None = None
        self._indexed_paths: set[str] = set()
        self._n_unindexed, self._has_said_due = 0, False
        self._n_logged_bytes = _MAX_LOGGED_BYTES  # a crash may have left changes in the log: the first change flushes
        self._broken_by: Exception | None = None
        self._is_log_enough = _IS_LOG_ENOUGH
        try:
            super().__init__(self._open(multi_vector, token_pooling))
        except BaseException:
            self._place.unlock()
            raise
        self._remembered = RememberedIds(self._format)

    def __repr__(self) -> str:
        return f"EdgeStore({str(self.folder)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a store in a folder cannot be pickled because only one process can have it open: use a store on a server, "
            "open_store('http://...'), which every process can open"
        )

    def _open(self, multi_vector: MultiVectorStorage | None, token_pooling: int | None) -> StoreFormat:
        """Open the engine in the folder if there is one, and return the store's format."""
        found, engine = self._place.read(), self._place.engine
        format_ = choose_format(str(self.folder), found, multi_vector, token_pooling, IDS_IN_POINTS)
        if found is None:
            self._write_format(format_)
        if (engine / "segments").is_dir():
            self._place.make_ready()
            self._is_log_enough = _IS_LOG_ENOUGH and self._place.renew_log()
            self._load(format_)
        elif format_.modes:
            raise ValueError(f"{self.folder} lacks its folder {engine.name}/segments with the records: restore it")
        return format_

    def _read_format(self) -> StoreFormat:
        return self._format  # no other process can have the folder open

    def _write_format(self, format_: StoreFormat) -> None:
        if not self._place.is_read_only:  # a read-only store works on a copy, whose format is not kept
            self._place.write(format_)

    def _create_engine(self, format_: StoreFormat) -> StoreFormat:
        self._place.check_writable()
        self._place.check_disk(0)
        self._place.discard_unfinished()
        self._place.unfinished.mkdir()
        shard = edge.EdgeShard.create(str(self._place.unfinished), as_config(format_))
        shard.update(edge.UpdateOperation.create_field_index("terms", edge.KeywordIndexParams()))
        shard.flush()
        shard.close()
        self._place.write(format_)
        self._place.finish()
        self._load(format_)
        return format_

    def _index(self, path: str) -> None:
        with suppress(OSError):  # searches work without the index, only slower; a change raises its own error
            self._place.check_disk(0)
            index = edge.IntegerIndexParams(lookup=False, range=True)
            self._update(edge.UpdateOperation.create_field_index(path, index))

    def _index_all(self, paths: set[str]) -> None:
        if self._optimizer is None:
            super()._index_all(paths)

    def _unindex(self, path: str) -> None:
        self._update(edge.UpdateOperation.delete_field_index(path))

    def _write(self, points: list[Any], size_bytes: int) -> None:
        self._place.check_writable()
        self._place.check_disk(size_bytes)
        self._update(edge.UpdateOperation.upsert_points(points), size_bytes=size_bytes)
        self._n_unindexed += len(points)
        if self._n_unindexed > _DUE_AT and not self._has_said_due:
            self._has_said_due = True
            said = "%s holds about %d records without an index: call optimize() once, which may take minutes"
            _LOG.warning(said, self.folder, self._n_unindexed)

    def _overwrite(self, payloads: Mapping[Any, dict[str, Any]]) -> None:
        size_bytes = sum(len(payload["text"]) for payload in payloads.values())
        self._place.check_disk(size_bytes)
        operations = [edge.UpdateOperation.overwrite_payload([id_], each) for id_, each in payloads.items()]
        self._update(*operations, size_bytes=size_bytes)

    def _delete(self, *, points: list[Any] | None = None, where: Any = None) -> None:
        self._place.check_writable()
        make = edge.UpdateOperation
        self._update(make.delete_points_by_filter(where) if points is None else make.delete_points(points))

    def _retrieve(
        self, points: list[Any], *, with_payload: bool = False, with_vectors: bool = False
    ) -> list[edge.Record]:
        return self._opened().retrieve(points, with_payload, with_vectors)

    def _scroll(self, after: Any) -> tuple[list[edge.Record], Any]:
        place = after and uuid.UUID(str(after))
        return self._opened().scroll(edge.ScrollRequest(offset=place, limit=256, with_payload=True))

    def _count(self, where: Any) -> int:
        return self._opened().count(edge.CountRequest(exact=True, filter=where))

    def _search(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], *, where: Any = None, among: Among | None = None
    ) -> Found:
        if not named:
            return {}
        remembered = self._remembered
        remembered.make_room()
        asked = {mode: {remembered.point_of(id_) for id_ in ids} for mode, ids in (among or {}).items()}
        requests = [
            edge.QueryRequest(
                limit=limits[mode],
                query=edge.Query.Nearest(vector, using=mode),
                filter=edge.Filter(must=[edge.HasIdCondition(asked[mode])]) if asked else where,
                with_payload=False,
                params=edge.SearchParams(hnsw_ef=max(128, limits[mode]), exact=bool(asked), quantization=RESCORED),
            )
            for mode, vector in named.items()
        ]
        answers: list[list[Any]] = self._opened().query_batch(edge.QueryBatchRequest(requests))
        found = [[(hit.id, hit.score) for hit in answer] for answer in answers]  # `hit.id` makes a UUID every time
        if unknown := remembered.unknown(point for hits in found for point, _ in hits):
            records: list[Any] = self._opened().retrieve(unknown, edge.PayloadSelector.Include(["id"]), False)
            remembered.add((record.id, record.payload["id"]) for record in records)
        ids = remembered.ids
        return {
            mode: [(ids[point.int], score) for point, score in hits] for mode, hits in zip(named, found, strict=True)
        }

    def optimize(self) -> None:
        """Build the indexes now, as `Store.optimize`.

        With 2,500 records or more another process does it, on a copy of the files. Searches go on, and changes wait.

        Raises:
            OSError: If the disk is full, the engine fails, or the store is closed meanwhile. The store is as before.
        """
        optimizer = Optimizer(self._place)
        try:
            with self._usable(is_change=True):
                if not self.modes:
                    return
                self._place.check_writable()
                self._place.check_disk(2 * sum(map(allocated_bytes, self._place.engine.rglob("*"))))
                if (n_records := self._count(None)) < _MANY:
                    self._optimize()
                    return
                self._flush()
                self._optimizer = optimizer
            is_there = optimizer.run(self._format, n_records)
            with self._lock:
                if self._is_closed:
                    raise optimizer.failed("it was stopped")
                self._optimizer = None  # changes still wait for the lock, and `_flush` writes again
                if is_there:
                    self._take_optimized(optimizer.copy)
                else:
                    self._optimize()
        finally:
            with self._lock:
                self._optimizer = None if self._optimizer is optimizer else self._optimizer
                self._has_optimized.notify_all()
            optimizer.discard()

    def _optimize(self) -> None:
        self._opened().optimize()
        self._flush()
        self._n_unindexed, self._has_said_due = 0, False

    def _take_optimized(self, copy: Path) -> None:
        """Go on with the optimised copy of the engine's files."""
        shard, self._shard = self._opened(), None
        try:
            shard.close()
            self._place.take(copy)
            self._n_unindexed, self._has_said_due = 0, False
        finally:
            self._load(self._format)

    def _await_turn(self) -> None:
        self._has_optimized.wait_for(lambda: self._optimizer is None)

    def _flush(self) -> None:
        if self._optimizer is not None:  # everything was written before, and the files are being copied
            return
        shard = self._opened()
        if self._broken_by is not None:
            raise self._unwritable(self._broken_by)
        try:
            if _IS_LOG_ENOUGH:
                sync_log(self._place.log)  # first: after a crash the log's changes are applied again, partial ones too
                sync_tree(self._place.engine)  # shortens `shard.flush()`, which blocks the interpreter
            shard.flush()
        except Exception as error:  # the engine raises Exception itself, no subclass
            raise self._failed(error) from error
        self._n_logged_bytes = 0

    def _close(self) -> None:
        shard, self._shard = self._shard, None
        try:
            if self._optimizer is not None:
                self._optimizer.stop()
                self._has_optimized.wait_for(lambda: self._optimizer is None, timeout=10.0)
            if shard is not None:
                try:
                    shard.flush()
                    with suppress(OSError):  # the disk is full: the log is not trimmed
                        self._place.check_disk(0)
                        end_with_small_change(shard, self._place.log)
                finally:
                    shard.close()
                if not self._place.is_read_only and self._broken_by is None:
                    sync_tree(self._place.engine)
                    trim_log(self._place.log)
        except Exception as error:  # as above
            raise self._failed(error) from error
        finally:
            self._place.unlock()

    def _opened(self) -> edge.EdgeShard:
        if self._shard is None:
            raise RuntimeError("there are no records yet")  # callers check this first
        return self._shard

    def _load(self, format_: StoreFormat) -> None:
        self._shard = load_shard(self._place, format_)
        self._indexed_paths = set(self._shard.info().payload_schema)

    def _update(self, *operations: edge.UpdateOperation, size_bytes: int = 0) -> None:
        """Apply operations to the engine, and return when they are durable."""
        shard = self._opened()
        if self._broken_by is not None:
            raise self._unwritable(self._broken_by)
        try:
            for operation in operations:
                shard.update(operation)
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise self._unwritable(error) from error  # the engine raises Exception itself for every error
        self._n_logged_bytes += size_bytes + 1000
        if not self._is_log_enough or self._n_logged_bytes >= _MAX_LOGGED_BYTES:
            self._flush()
            return
        try:
            sync_log(self._place.log)  # enough to be durable; the engine's many other files are synced by `_flush`
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> OSError:
        """Note that a sync failed. The next one would succeed, although the system has dropped the unwritten data."""
        if getattr(error, "errno", None) not in _NO_HANDLES:
            self._broken_by = error
        return self._unwritable(error)

    def _unwritable(self, error: Exception) -> OSError:
        return OSError(
            f"the engine could not write to {self.folder}: {error}. Earlier changes are safe; a part of this change "
            "may be stored. Remove the cause, close the store and open it again"
        )
