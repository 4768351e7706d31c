"""A store on a Qdrant server or cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeVar, get_args

try:
    from qdrant_client import QdrantClient, models
except ModuleNotFoundError as error:
    if error.name != "qdrant_client":
        raise
    raise ModuleNotFoundError(
        "a store on a Qdrant server needs qdrant-client: pip install 'PATH_TO_THE_CLONE[qdrant]'", name=error.name
    ) from error

from m3_integrations.store.aliases import collection_of, move_alias
from m3_integrations.store.cluster import Cluster
from m3_integrations.store.packed import PackedPoints, pack_points
from m3_integrations.store.points import MultiVectorStorage, StoreFormat, choose_format
from m3_integrations.store.qdrant import Among, Found, QdrantStore
from m3_integrations.vectors import M3Vectors, Mode

_Answer = TypeVar("_Answer")

_PAGE: Final = 256
"""The records in a page of `_scroll`."""

_TERMS: Final = "terms"
"""The payload's key that most filters use."""

_POLL_S: Final = 0.5
"""The wait before the server is asked again whether its indexes are built."""

_INDEXED: Final = models.CollectionStatus.GREEN

_DATATYPES: Final = {
    "float16": models.Datatype.FLOAT16,
    "turbo8": models.Datatype.TURBO8,
    "turbo4": models.Datatype.TURBO4,
}

ReadConsistency = int | Literal["majority", "quorum", "all"]
"""The replicas of a shard that must agree on the answer to a read: a number, or a share of them."""


class ServerStore(QdrantStore):
    """A store in a collection of a Qdrant server or cluster; many processes may have it open.

    When `upsert` or a delete returns, every reader sees its changes, and they survive the end of the server's
    processes: they are in the write-ahead log of `write_consistency_factor` replicas. The server flushes this log to
    the disk every 5 s, unless its `flush_interval_sec` is set. So a power cut of all nodes with a record may lose its
    changes since the last flush. Readers may see records of one batch in different shards a moment apart.

    Reads, upserts and deletes by id are tried again, for some 8 s and at most `timeout_s`, if a node stops, restarts or
    does not have its shards yet; also at another node of `url`. If two processes write one record at the same moment,
    the later try wins. A delete by filter is not repeated after it was sent, because it could delete what another
    process added meanwhile. Binding to a model is not repeated either.

    The server builds its indexes by itself. A pickled store opens the collection again with its settings: the API key
    is in the pickle.

    Args:
        url: The URL of the server; `https://` for TLS. Its port is the port for REST, 6333 if it has none. For a
            cluster the URLs of several nodes: if one does not answer, another is asked.
        api_key: The API key of the server.
        collection: The name of the collection, or an alias of it. If it does not exist, it is made with the first
            record. A store that is open keeps its collection if the alias is moved to another one.
        prefer_grpc: Whether to use gRPC, which takes larger batches.
        grpc_port: The port for gRPC; a list has one port for each URL.
        timeout_s: The time to wait for an answer; after this time a call is not tried again.
        shard_number: The number of shards of a new collection; the server decides if None.
        replication_factor: The number of nodes that have each shard of a new collection; the server decides if None.
        write_consistency_factor: The number of replicas that must have an update of a new collection before it returns,
            at least 1; the server decides if None, which is 1.
        read_consistency: The number of replicas of each shard that must agree on the answer of a search or a look-up,
            or "majority", "quorum" or "all" of them; one if None. A count always asks one replica.
        on_disk: Whether dense vectors and the lexical index of a new collection are read from disk.
        multi_vector: The way to keep token vectors in a new collection; "float16" by default. They are always on disk.
        token_pooling: The number of neighbouring tokens that share a token vector in a new collection; 1 by default.
        client: An open client, used instead of the URL and not closed; such a store cannot be pickled.

    Raises:
        ConnectionError: If no node can be reached; later calls too.
        PermissionError: If the key is not accepted, or may not write; later calls too.
        OSError: If the server answers with another error; later calls too. Also if `optimize` cannot end.
        ValueError: If the collection was not made by this package, or was made by a later version or with other
            settings; if there are not as many ports as URLs, or a setting is out of range.
    """

    _point_type = models.PointStruct
    _sparse_type = models.SparseVector
    _filter_type = models.Filter.model_validate

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        api_key: str | None = None,
        collection: str = "m3",
        prefer_grpc: bool = True,
        grpc_port: int | Sequence[int] = 6334,
        timeout_s: int = 60,
        shard_number: int | None = None,
        replication_factor: int | None = None,
        write_consistency_factor: int | None = None,
        read_consistency: ReadConsistency | None = None,
        on_disk: bool = False,
        multi_vector: MultiVectorStorage | None = None,
        token_pooling: int | None = None,
        client: QdrantClient | None = None,
    ) -> None:
        arguments = locals()  # a pickle opens the store again with these
        self._given = {name: value for name, value in arguments.items() if name not in {"self", "__class__"}}
        self.url, self.collection = url, collection
        self.opened_collection = collection  # another one, if `collection` is an alias of it
        self._where = f"collection {collection!r}"
        self._lock = contextlib.nullcontext()  # the client is safe to use from many threads
        self._placement: dict[str, Any] = {
            "shard_number": shard_number,
            "replication_factor": replication_factor,
            "write_consistency_factor": write_consistency_factor,
        }
        for name, value in self._placement.items():
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        self._reads: dict[str, Any] = {"consistency": _consistency(read_consistency)}
        self._on_disk = on_disk
        self._indexed_paths: set[str] = set()
        self._is_ours = client is None
        urls = [url] if isinstance(url, str) else list(url)
        ports = [grpc_port] * len(urls) if isinstance(grpc_port, int) else list(grpc_port)
        if not urls or len(ports) != len(urls):
            raise ValueError(f"grpc_port must be one port, or one for each URL, got {len(ports)} for {len(urls)} URLs")
        grpc_ports = ports if prefer_grpc else None
        if client is None:
            self._cluster = Cluster.connect(urls, api_key=api_key, grpc_ports=grpc_ports, timeout_s=timeout_s)
        else:
            self._cluster = Cluster(urls, [client], timeout_s, grpc_ports)
        self._is_packed = PackedPoints.of(self._cluster.clients[0]) is not None
        self._holds_interpreter = not self._is_packed
        try:
            found = self._read_format()
            super().__init__(choose_format(self._where, found, multi_vector, token_pooling))
        except BaseException:
            self._close()
            raise

    def __repr__(self) -> str:
        return f"ServerStore({self.url!r}, collection={self.collection!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._given["client"] is not None:
            raise TypeError("a store that was opened with client= cannot be pickled: open it with a URL")
        return partial(ServerStore, **self._given), ()

    def _ask(self, call: Callable[[QdrantClient, str], _Answer], *, is_repeatable: bool = True) -> _Answer:
        """Return what a call of a client with the collection's name returns; errors are those of `Cluster.ask`."""
        return self._cluster.ask(lambda client: call(client, self.opened_collection), is_repeatable=is_repeatable)

    def switch(self, collection: str) -> str:
        """Let the alias that opened this store name another collection, and return the name of its own.

        Whoever opens the alias from now on has the new collection. This and other open stores keep the old one.

        Raises:
            OSError: If the server refuses: the name is no alias, or the key may not change it (PermissionError).
        """
        self._ask(lambda client, _: move_alias(client, self.collection, collection))
        return self.opened_collection

    def _read_format(self) -> StoreFormat | None:
        if not self._ask(lambda client, name: client.collection_exists(name)):
            return None
        with contextlib.suppress(PermissionError):  # a key for one collection may not list aliases
            self.opened_collection = self._ask(lambda client, _: collection_of(client, self.collection))
        info = self._ask(lambda client, name: client.get_collection(name))
        self._indexed_paths = set(info.payload_schema)
        return StoreFormat.from_dict(self._where, info.config.metadata)

    def _write_format(self, format_: StoreFormat) -> None:
        if format_.modes:  # without modes the collection does not exist yet
            # Not repeated: another process may have bound the collection to its model meanwhile.
            self._ask(
                lambda client, name: client.update_collection(name, metadata=format_.to_dict()), is_repeatable=False
            )

    def _create_engine(self, format_: StoreFormat) -> StoreFormat:
        try:
            self._ask(
                lambda client, name: client.create_collection(
                    name,
                    vectors_config=_dense_config(format_, self._on_disk),
                    sparse_vectors_config=_sparse_config(format_, self._on_disk),
                    metadata=format_.to_dict(),
                    on_disk_payload=True,
                    **self._placement,
                )
            )
        except (OSError, ValueError) as error:
            there = self._read_format()  # made by another process, or by a try whose answer was lost
            if there is None:
                raise
            if not there.modes:
                raise ValueError(f"{self._where} has no vectors") from error
            return there
        return format_

    def _index(self, path: str) -> None:
        index = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=False, range=True)
        # With a key that may only read, searches work without the index, only slower.
        with contextlib.suppress(PermissionError):
            self._ask(lambda client, name: client.create_payload_index(name, path, field_schema=index, wait=True))

    def _unindex(self, path: str) -> None:
        self._ask(lambda client, name: client.delete_payload_index(name, path, wait=True))

    def _pack(self, payloads: Sequence[dict[str, Any]], vectors: M3Vectors, rows: Sequence[int]) -> Any:
        if self._is_packed:
            return pack_points(payloads, vectors, rows, self._format.point_id)
        return super()._pack(payloads, vectors, rows)

    def _write(self, points: Any, size_bytes: int) -> None:  # noqa: ARG002
        if _TERMS not in self._indexed_paths:  # the process that made the collection may have been killed before this
            index = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD)
            self._ask(lambda client, name: client.create_payload_index(name, _TERMS, field_schema=index, wait=True))
            self._indexed_paths.add(_TERMS)
        self._ask(lambda client, name: _with_numbers(client).upsert(name, points, wait=True))

    def _overwrite(self, payloads: Mapping[Any, dict[str, Any]]) -> None:
        operations = [
            models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload=payload, points=[id_]))
            for id_, payload in payloads.items()
        ]
        if operations:
            # Not repeated: another process may have written these records again meanwhile.
            self._ask(lambda client, name: client.batch_update_points(name, operations, wait=True), is_repeatable=False)

    def _delete(self, *, points: list[Any] | None = None, where: Any = None) -> None:
        chosen = models.FilterSelector(filter=where) if points is None else models.PointIdsList(points=points)
        # By filter not repeated: it may match records that another process added after the first try.
        self._ask(lambda client, name: client.delete(name, chosen, wait=True), is_repeatable=points is not None)

    def _retrieve(self, points: list[Any], *, with_payload: bool = False, with_vectors: bool = False) -> Sequence[Any]:
        wanted = {"with_payload": with_payload, "with_vectors": with_vectors, **self._reads}
        return self._ask(lambda client, name: _with_numbers(client).retrieve(name, points, **wanted))

    def _scroll(self, after: Any) -> tuple[list[models.Record], Any]:
        page = {"limit": _PAGE, "offset": after, "with_payload": True, **self._reads}
        return self._ask(lambda client, name: client.scroll(name, **page))

    def _count(self, where: Any) -> int:
        return self._ask(lambda client, name: client.count(name, count_filter=where, exact=True)).count

    def _search(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], *, where: Any = None, among: Among | None = None
    ) -> Found:
        return self._query(named, limits, where, among or {}, ())[0]

    def _search_among(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], among: Among, likely: Iterable[str]
    ) -> tuple[Found, Sequence[Any]]:
        return self._query(named, limits, None, among, likely)

    def _query(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], where: Any, among: Among, likely: Iterable[str]
    ) -> tuple[Found, Sequence[Any]]:
        """Search in every mode and read the likely records, in one call."""
        if not named:
            return {}, []
        asked = {mode: {self._format.point_id(id_): id_ for id_ in ids} for mode, ids in among.items()}
        requests = [
            models.QueryRequest(
                query=vector,
                using=mode,
                filter=_one_of(list(asked[mode])) if asked else where,
                limit=limits[mode],
                with_payload=False if asked else models.PayloadSelectorInclude(include=["id"]),
                params=models.SearchParams(hnsw_ef=max(128, limits[mode]), exact=bool(asked)),
            )
            for mode, vector in named.items()
        ]
        if points := [self._format.point_id(id_) for id_ in likely]:
            requests.append(models.QueryRequest(filter=_one_of(points), limit=len(points), with_payload=True))
        answers = self._ask(
            lambda client, name: _with_numbers(client).query_batch_points(name, requests, **self._reads)
        )
        records = answers.pop().points if points else []
        found: Found = {}
        for mode, answer in zip(named, answers, strict=True):
            ids = [asked[mode][str(hit.id)] if asked else (hit.payload or {})["id"] for hit in answer.points]
            found[mode] = [(id_, hit.score) for id_, hit in zip(ids, answer.points, strict=True)]
        return found, records

    def _optimize(self) -> None:
        """Wait until the server, which indexes by itself, has built all indexes."""
        while (info := self._ask(lambda client, name: client.get_collection(name))).status != _INDEXED:
            if info.status == models.CollectionStatus.RED:
                raise OSError(f"the Qdrant server at {self.url} cannot index {self._where}: {info.optimizer_status}")
            time.sleep(_POLL_S)

    def _flush(self) -> None:
        """Return at once: an update is in the server's write-ahead log when it returns; the server flushes this log."""

    def _close(self) -> None:
        if self._is_ours:
            self._cluster.close()


def _with_numbers(client: QdrantClient) -> Any:
    """Return the `PackedPoints` of a client with gRPC, else the client itself; both have the calls with vectors."""
    return PackedPoints.of(client) or client


def _one_of(points: list[Any]) -> models.Filter:
    return models.Filter(must=[models.HasIdCondition(has_id=points)])


def _consistency(asked: ReadConsistency | None) -> int | models.ReadConsistencyType | None:
    if isinstance(asked, str) and asked in get_args(get_args(ReadConsistency)[1]):
        return models.ReadConsistencyType(asked)
    if asked is None or (type(asked) is int and asked >= 1):
        return asked
    raise ValueError(f"read_consistency must be at least 1, 'majority', 'quorum' or 'all', got {asked!r}")


def _dense_config(format_: StoreFormat, on_disk: bool) -> dict[str, models.VectorParams]:
    config: dict[str, models.VectorParams] = {}
    if "dense" in format_.modes:
        config["dense"] = models.VectorParams(size=format_.dense_dim, distance=models.Distance.DOT, on_disk=on_disk)
    if "multi_vector" in format_.modes:
        config["multi_vector"] = models.VectorParams(
            size=format_.token_dim,
            distance=models.Distance.DOT,
            on_disk=True,
            datatype=_DATATYPES[format_.multi_vector],
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            # No graph index: token vectors only score candidates.
            hnsw_config=models.HnswConfigDiff(m=0),
        )
    return config


def _sparse_config(format_: StoreFormat, on_disk: bool) -> dict[str, models.SparseVectorParams]:
    if "lexical" not in format_.modes:
        return {}
    return {"lexical": models.SparseVectorParams(index=models.SparseIndexParams(on_disk=on_disk))}
