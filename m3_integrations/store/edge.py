"""A store in a folder: Qdrant Edge, the engine of the Qdrant server, in this process."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

import qdrant_edge as edge

from m3_integrations.store.edge_config import as_config
from m3_integrations.store.folder import StoreFolder, sync_log, sync_tree
from m3_integrations.store.log import last_change, restore_log, trim_log
from m3_integrations.store.points import MultiVectorStorage, StoreFormat, choose_format, point_id
from m3_integrations.store.qdrant import Among, Found, QdrantStore
from m3_integrations.vectors import Mode

_LOG = logging.getLogger(__name__)

_DUE_AT: Final = 20_000
"""Up to about here a search that looks at every record takes a few milliseconds."""

_RESERVE_BYTES: Final = 128 << 20
"""Disk space that is left alone: the engine maps its files, and a page that finds no room kills the process."""

_NOBODY: Final = uuid.UUID(int=0)  # no record has it, as `point_id` makes others

_PAGE: Final = 256  # records read at a time when all are

_IS_LOG_ENOUGH: Final = sys.platform == "linux"
"""Where a file's sync is known to cover what was written through a memory map, as the engine writes its log."""

_MAX_LOGGED_BYTES: Final = 16 << 20
"""So much may be in the log alone: it is done again when the store is opened after a crash, mostly in half a second."""

_MAX_REMEMBERED: Final = 1 << 16
"""Records whose ids are remembered, at some 400 bytes each; with more all are forgotten."""

_NO_HANDLES: Final = (errno.EMFILE, errno.ENFILE)
"""Too many open files: nothing was tried, and so nothing is lost."""


def _as_filter(part: Mapping[str, Any]) -> Any:
    """Return a filter that `translate` has made, or a condition of one, in the engine's types."""
    if "nested" in part:
        return edge.NestedCondition(part["nested"]["key"], _as_filter(part["nested"]["filter"]))
    if "match" in part:
        return edge.FieldCondition(part["key"], match=edge.MatchAny(**part["match"]))
    if "range" in part:
        return edge.FieldCondition(part["key"], range=edge.RangeFloat(**part["range"]))
    clauses: dict[str, Any] = {clause: [_as_filter(each) for each in parts] for clause, parts in part.items()}
    return edge.Filter(**clauses)


class EdgeStore(QdrantStore):
    """A store in a folder, durable, for one process at a time.

    What an `upsert` or a delete returned from survives the end of the process and of the machine: it is in the engine's
    log, and the log is on the disk. Dense vectors and lexical weights are kept as float32, token vectors as told.
    Searching looks at every record until `optimize`.

    A folder in which nothing may be written, such as one on a read-only disk, is opened for reading: the engine works
    on a copy of its files in the system's folder for temporary files.

    The engine holds the interpreter while it works, some milliseconds for a batch or a search. On Linux other threads
    and event loops run on while the log waits for the disk; elsewhere, and at every 16 MB, the engine itself waits.

    Args:
        folder: Made if it is not there.
        multi_vector: How token vectors are kept; for a new store. "float16" by default.
        token_pooling: How many neighbouring tokens share a token vector; for a new store. 1 by default.

    Raises:
        NotADirectoryError: If the folder is a file.
        ValueError: If something else is in the folder, a later version made it, or it was made with other settings.
        BlockingIOError: If it is open already, in this process or another.
        PermissionError: If the folder is read-only, by whatever changes records.
    """

    _point_type = edge.Point
    _sparse_type = edge.SparseVector
    _filter_type = staticmethod(_as_filter)

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
        self._shard: edge.EdgeShard | None = None
        self._indexed_paths: set[str] = set()
        self._names: dict[int, str] = {}  # the records' ids by the numbers of their UUIDs, which hash in C
        self._points: dict[str, Any] = {}  # and the other way round
        self._n_unindexed, self._has_said_due = 0, False
        self._n_logged_bytes = _MAX_LOGGED_BYTES  # what a crash left in the log: the first change writes it out
        self._broken_by: Exception | None = None
        self._is_log_enough = _IS_LOG_ENOUGH
        try:
            super().__init__(self._open(multi_vector, token_pooling))
        except BaseException:
            self._place.unlock()
            raise

    def __repr__(self) -> str:
        return f"EdgeStore({str(self.folder)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a store in a folder cannot be pickled, as one process has it open: use a server store, "
            "open_store('http://...'), which every process can open"
        )

    def _open(self, multi_vector: MultiVectorStorage | None, token_pooling: int | None) -> StoreFormat:
        """Open what is in the folder, and return its format."""
        found, engine = self._place.read(), self._place.engine
        format_ = choose_format(str(self.folder), found, multi_vector, token_pooling)
        if found is None:
            self._write_format(format_)
        if engine.exists():
            restore_log(self._place.log)
            self._is_log_enough = _IS_LOG_ENOUGH and self._place.renew_log()
            self._load()
        elif format_.modes:
            raise ValueError(f"{self.folder} has lost its folder {engine.name!r} with the records: restore it")
        return format_

    def _read_format(self) -> StoreFormat:
        return self._format  # nobody else has the folder open

    def _write_format(self, format_: StoreFormat) -> None:
        if not self._place.is_read_only:  # it is of the copy then
            self._place.write(format_)

    def _create_engine(self, format_: StoreFormat) -> StoreFormat:
        self._check_writable()
        self._check_disk(0)
        self._place.discard_unfinished()
        self._place.unfinished.mkdir()
        shard = edge.EdgeShard.create(str(self._place.unfinished), as_config(format_))
        shard.update(edge.UpdateOperation.create_field_index("terms", edge.KeywordIndexParams()))
        shard.flush()
        shard.close()
        self._place.write(format_)
        self._place.finish()
        self._load()
        return format_

    def _index(self, path: str) -> None:
        with suppress(OSError):  # a search answers without the index, more slowly; a change fails by itself
            self._check_disk(0)
            index = edge.IntegerIndexParams(lookup=False, range=True)
            self._update(edge.UpdateOperation.create_field_index(path, index))

    def _unindex(self, path: str) -> None:
        self._update(edge.UpdateOperation.delete_field_index(path))

    def _write(self, points: list[Any], size_bytes: int) -> None:
        self._check_writable()
        self._check_disk(size_bytes)
        self._update(edge.UpdateOperation.upsert_points(points), size_bytes=size_bytes)
        self._n_unindexed += len(points)
        if self._n_unindexed > _DUE_AT and not self._has_said_due:
            self._has_said_due = True
            _LOG.warning(
                "%s holds about %d records that are not indexed: call optimize() once, when it may take minutes",
                self.folder,
                self._n_unindexed,
            )

    def _overwrite(self, payloads: Mapping[Any, dict[str, Any]]) -> None:
        size_bytes = sum(len(payload["text"]) for payload in payloads.values())
        self._check_disk(size_bytes)
        operations = [edge.UpdateOperation.overwrite_payload([id_], each) for id_, each in payloads.items()]
        self._update(*operations, size_bytes=size_bytes)

    def _delete(self, *, points: list[Any] | None = None, where: Any = None) -> None:
        self._check_writable()
        make = edge.UpdateOperation
        self._update(make.delete_points_by_filter(where) if points is None else make.delete_points(points))

    def _retrieve(
        self, points: list[Any], *, with_payload: bool = False, with_vectors: bool = False
    ) -> list[edge.Record]:
        return self._opened().retrieve(points, with_payload, with_vectors)

    def _scroll(self, after: Any) -> tuple[list[edge.Record], Any]:
        place = after and uuid.UUID(str(after))
        return self._opened().scroll(edge.ScrollRequest(offset=place, limit=_PAGE, with_payload=True))

    def _count(self, where: Any) -> int:
        return self._opened().count(edge.CountRequest(exact=True, filter=where))

    def _search(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], *, where: Any = None, among: Among | None = None
    ) -> Found:
        if not named:
            return {}
        if len(self._names) > _MAX_REMEMBERED:
            self._names, self._points = {}, {}
        asked = {mode: {self._point_of(id_) for id_ in ids} for mode, ids in (among or {}).items()}
        requests = [
            edge.QueryRequest(
                limit=limits[mode],
                query=edge.Query.Nearest(vector, using=mode),
                filter=edge.Filter(must=[edge.HasIdCondition(asked[mode])]) if asked else where,
                with_payload=False,
                params=edge.SearchParams(hnsw_ef=max(128, limits[mode]), exact=bool(asked)),
            )
            for mode, vector in named.items()
        ]
        answers: list[list[Any]] = self._opened().query_batch(edge.QueryBatchRequest(requests))
        found = [[(hit.id.int, hit.score) for hit in answer] for answer in answers]  # an id is a new UUID every time
        if unknown := {point for hits in found for point, _ in hits} - self._names.keys():
            self._read_names(unknown)
        names = self._names
        return {mode: [(names[point], score) for point, score in hits] for mode, hits in zip(named, found, strict=True)}

    def _point_of(self, name: str) -> Any:
        """Return a record's point, which is a UUID, and remember it."""
        if name not in self._points:
            self._points[name] = point = uuid.UUID(point_id(name))
            self._names[point.int] = name
        return self._points[name]

    def _read_names(self, unknown: set[int]) -> None:
        """Learn whose points these are: that takes as long as finding them, and never changes."""
        points: list[Any] = [uuid.UUID(int=number) for number in unknown]
        records: list[Any] = self._opened().retrieve(points, edge.PayloadSelector.Include(["id"]), False)
        for point, name in [(record.id, record.payload["id"]) for record in records]:
            self._names[point.int], self._points[name] = name, point

    def _optimize(self) -> None:
        self._check_writable()
        shard = self._opened()
        self._check_disk(2 * sum(file.stat().st_blocks * 512 for file in self._place.engine.rglob("*")))
        shard.optimize()
        self._flush()
        self._n_unindexed, self._has_said_due = 0, False

    def _flush(self) -> None:
        shard = self._opened()
        try:
            if _IS_LOG_ENOUGH:
                sync_log(self._place.log)  # first of all: what it says is done again, also where it was done by half
                sync_tree(self._place.engine)  # which leaves less to wait for in the call that holds the interpreter
            shard.flush()
        except Exception as error:  # the engine raises the base class itself
            raise self._failed(error) from error
        self._n_logged_bytes = 0

    def _close(self) -> None:
        shard, self._shard = self._shard, None
        try:
            if shard is not None:
                try:
                    self._settle(shard)
                finally:
                    shard.close()
                if not self._place.is_read_only and self._broken_by is None:
                    sync_tree(self._place.engine)
                    trim_log(self._place.log)
        except Exception as error:  # as above
            raise self._failed(error) from error
        finally:
            self._place.unlock()

    def _settle(self, shard: edge.EdgeShard) -> None:
        """Write everything out, and end the log with a change that is small enough to stay in it."""
        shard.flush()
        last = last_change(self._place.log)
        if last is not None and not last.is_small:
            with suppress(OSError):  # no room: the log stays as it is
                self._check_disk(0)
                shard.update(edge.UpdateOperation.delete_points([_NOBODY]))
                shard.flush()

    def _opened(self) -> edge.EdgeShard:
        if self._shard is None:
            raise RuntimeError("there are no records yet")  # our own mistake: the caller sees to it
        return self._shard

    def _load(self) -> None:
        self._shard = edge.EdgeShard.load(str(self._place.engine))
        self._indexed_paths = set(self._shard.info().payload_schema)

    def _update(self, *operations: edge.UpdateOperation, size_bytes: int = 0) -> None:
        """Change the engine, and return when the change is durable."""
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
            self._flush()
            return
        try:
            sync_log(self._place.log)  # and not the many files that the changes in it change: those now and then
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> OSError:
        """Note that a sync failed: the system forgets what it could not write, and the next sync would succeed."""
        if getattr(error, "errno", None) not in _NO_HANDLES:
            self._broken_by = error
        return self._unwritable(error)

    def _unwritable(self, error: Exception) -> OSError:
        return OSError(
            f"the engine could not write to {self.folder}: {error}. What was acknowledged before is safe; this "
            "change may be there in part. Remove the cause, close the store and open it again"
        )

    def _check_writable(self) -> None:
        if self._place.is_read_only:
            raise PermissionError(
                errno.EACCES, "the store was opened for reading, as nothing may be written there", str(self.folder)
            )

    def _check_disk(self, size_bytes: int) -> None:
        free = shutil.disk_usage(self._place.engine.parent).free
        needed = 2 * size_bytes + _RESERVE_BYTES
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{needed >> 20} MB of free disk are needed, {free >> 20} MB are there: nothing was written",
                str(self.folder),
            )
