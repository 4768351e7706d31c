"""A store on a Qdrant server or cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

try:
    from grpc import RpcError, StatusCode
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
except ModuleNotFoundError as error:
    if error.name not in {"qdrant_client", "grpc"}:
        raise
    raise ModuleNotFoundError(
        "a store on a Qdrant server needs qdrant-client: pip install 'PATH_TO_THE_CLONE[qdrant]'", name=error.name
    ) from error

from m3_integrations.store.packed import PackedPoints, pack_points
from m3_integrations.store.points import MultiVectorStorage, StoreFormat, choose_format, point_id
from m3_integrations.store.qdrant import Among, Found, QdrantStore
from m3_integrations.vectors import M3Vectors, Mode

_Answer = TypeVar("_Answer")

_PAGE: Final = 256
"""Records read at a time when all are."""

_TERMS: Final = "terms"
"""The payload's key that most filters ask for."""

_POLL_S: Final = 0.5
"""How long to wait before asking again whether the server has built its indexes."""

_DATATYPES: Final = {
    "float16": models.Datatype.FLOAT16,
    "turbo8": models.Datatype.TURBO8,
    "turbo4": models.Datatype.TURBO4,
}

_FORBIDDEN: Final = {401, 403, StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}
_SILENT: Final = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}


class ServerStore(QdrantStore):
    """A store in a collection of a Qdrant server or cluster; many processes may have it open.

    What an `upsert` or a delete returned from is durable and seen by every reader. The server builds its indexes by
    itself. A pickled store opens the collection again, with its settings: the API key is in the pickle.

    Args:
        url: Of the server; `https://` with TLS. Its port is the one for REST, 6333 unless it says another.
        api_key: Of the server.
        collection: Its name. Made with the first record if it is not there.
        prefer_grpc: Whether to talk by gRPC, which takes larger batches.
        grpc_port: Of gRPC.
        timeout_s: How long to wait for an answer.
        shard_number: Into how many shards a new collection is cut; the server decides if None.
        replication_factor: How many nodes hold each shard of a new collection; the server decides if None.
        on_disk: Whether dense vectors and the lexical index of a new collection are read from disk.
        multi_vector: How token vectors of a new collection are kept; "float16" by default. They are on disk always.
        token_pooling: How many neighbouring tokens share a token vector of a new collection; 1 by default.
        client: An open client, used instead of what the URL says and left open; such a store cannot be pickled.

    Raises:
        ConnectionError: If the server cannot be reached; later calls too.
        PermissionError: If it does not accept the key; later calls too.
        OSError: If it answers with another error; later calls too. Also if `optimize` cannot end.
        ValueError: If the collection is none of this package's, or was made by a later version or with other
            settings.
    """

    _point_type = models.PointStruct
    _sparse_type = models.SparseVector
    _filter_type = models.Filter.model_validate

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        collection: str = "m3",
        prefer_grpc: bool = True,
        grpc_port: int = 6334,
        timeout_s: int = 60,
        shard_number: int | None = None,
        replication_factor: int | None = None,
        on_disk: bool = False,
        multi_vector: MultiVectorStorage | None = None,
        token_pooling: int | None = None,
        client: QdrantClient | None = None,
    ) -> None:
        arguments = locals()  # by their names: a pickle opens the store with them again
        self._given = {name: value for name, value in arguments.items() if name not in {"self", "__class__"}}
        self.url, self.collection = url, collection
        self._where = f"collection {collection!r}"
        self._lock = contextlib.nullcontext()  # the client is safe to use from many threads
        self._placement = {"shard_number": shard_number, "replication_factor": replication_factor}
        self._on_disk = on_disk
        self._grpc_port = grpc_port if prefer_grpc else None
        self._indexed_paths: set[str] = set()
        self._is_ours = client is None
        self._client = client or QdrantClient(
            url=url,
            port=urlsplit(url).port or 6333,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout=timeout_s,
            check_compatibility=False,  # it would ask the server, and warn, before anything was asked of it
        )
        self._points: Any = PackedPoints.of(self._client) or self._client  # the calls with many numbers
        self._holds_interpreter = self._points is self._client
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
            raise TypeError("a store over a client= cannot be pickled: open it by URL")
        return partial(ServerStore, **self._given), ()

    def _ask(self, call: Callable[..., _Answer], *args: Any, **kwargs: Any) -> _Answer:
        """Return what a call of the client returns, and raise built-in errors, whatever the transport.

        Raises:
            ConnectionError: If no server answers.
            PermissionError: If it does not accept the key.
            OSError: If it answers with another error.
        """
        try:
            return call(self.collection, *args, **kwargs)
        except (ResponseHandlingException, UnexpectedResponse, RpcError) as error:
            raise _as_os_error(error, self.url, self._grpc_port) from error

    def _read_format(self) -> StoreFormat | None:
        if not self._ask(self._client.collection_exists):
            return None
        info = self._ask(self._client.get_collection)
        self._indexed_paths = set(info.payload_schema)
        return StoreFormat.from_dict(self._where, info.config.metadata)

    def _write_format(self, format_: StoreFormat) -> None:
        if format_.modes:  # without, the collection is not there yet
            self._ask(self._client.update_collection, metadata=format_.to_dict())

    def _create_engine(self, format_: StoreFormat) -> StoreFormat:
        try:
            self._ask(
                self._client.create_collection,
                vectors_config=_dense_config(format_, self._on_disk),
                sparse_vectors_config=_sparse_config(format_, self._on_disk),
                metadata=format_.to_dict(),
                on_disk_payload=True,
                **self._placement,
            )
        except (OSError, ValueError) as error:
            there = self._read_format()  # by another process, a moment ago
            if there is None:
                raise
            if not there.modes:
                raise ValueError(f"{self._where} has no vectors") from error
            return there
        return format_

    def _index(self, path: str) -> None:
        index = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=False, range=True)
        # Whoever may only read searches without the index, more slowly.
        with contextlib.suppress(PermissionError):
            self._ask(self._client.create_payload_index, path, field_schema=index, wait=True)

    def _unindex(self, path: str) -> None:
        self._ask(self._client.delete_payload_index, path, wait=True)

    def _pack(self, payloads: Sequence[dict[str, Any]], vectors: M3Vectors, rows: Sequence[int]) -> Any:
        if isinstance(self._points, PackedPoints):
            return pack_points(payloads, vectors, rows)
        return super()._pack(payloads, vectors, rows)

    def _write(self, points: Any, size_bytes: int) -> None:  # noqa: ARG002
        if _TERMS not in self._indexed_paths:  # also where whoever made the collection did not get as far
            index = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD)
            self._ask(self._client.create_payload_index, _TERMS, field_schema=index, wait=True)
            self._indexed_paths.add(_TERMS)
        self._ask(self._points.upsert, points, wait=True)

    def _overwrite(self, payloads: Mapping[Any, dict[str, Any]]) -> None:
        operations = [
            models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload=payload, points=[id_]))
            for id_, payload in payloads.items()
        ]
        if operations:
            self._ask(self._client.batch_update_points, operations, wait=True)

    def _delete(self, *, points: list[Any] | None = None, where: Any = None) -> None:
        chosen = models.FilterSelector(filter=where) if points is None else models.PointIdsList(points=points)
        self._ask(self._client.delete, chosen, wait=True)

    def _retrieve(self, points: list[Any], *, with_payload: bool = False, with_vectors: bool = False) -> Sequence[Any]:
        return self._ask(self._points.retrieve, points, with_payload=with_payload, with_vectors=with_vectors)

    def _scroll(self, after: Any) -> tuple[list[models.Record], Any]:
        return self._ask(self._client.scroll, limit=_PAGE, offset=after, with_payload=True)

    def _count(self, where: Any) -> int:
        return self._ask(self._client.count, count_filter=where, exact=True).count

    def _search(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], *, where: Any = None, among: Among | None = None
    ) -> Found:
        return self._query(named, limits, where, among or {}, ())[0]

    def _search_among(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], among: Among, likely: Sequence[str]
    ) -> tuple[Found, Sequence[Any]]:
        return self._query(named, limits, None, among, likely)

    def _query(
        self, named: Mapping[Mode, Any], limits: Mapping[Mode, int], where: Any, among: Among, likely: Sequence[str]
    ) -> tuple[Found, Sequence[Any]]:
        """Search in every mode, and read likely records, in one call."""
        if not named:
            return {}, []
        asked = {mode: {point_id(id_): id_ for id_ in ids} for mode, ids in among.items()}
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
        if likely:
            points = [point_id(id_) for id_ in likely]
            requests.append(models.QueryRequest(filter=_one_of(points), limit=len(points), with_payload=True))
        answers = self._ask(self._points.query_batch_points, requests)
        records = answers.pop().points if likely else []
        found: Found = {}
        for mode, answer in zip(named, answers, strict=True):
            ids = [asked[mode][str(hit.id)] if asked else (hit.payload or {})["id"] for hit in answer.points]
            found[mode] = [(id_, hit.score) for id_, hit in zip(ids, answer.points, strict=True)]
        return found, records

    def _optimize(self) -> None:
        """Wait until the server, which indexes by itself, has nothing left to do."""
        while (info := self._ask(self._client.get_collection)).status != models.CollectionStatus.GREEN:
            if info.status == models.CollectionStatus.RED:
                raise OSError(f"the Qdrant server at {self.url} cannot index {self._where}: {info.optimizer_status}")
            time.sleep(_POLL_S)

    def _flush(self) -> None:
        """Do nothing: the server answers an update when it is durable."""

    def _close(self) -> None:
        if self._is_ours:
            self._client.close()


def _one_of(points: list[Any]) -> models.Filter:
    return models.Filter(must=[models.HasIdCondition(has_id=points)])


def _as_os_error(error: Any, url: str, grpc_port: int | None) -> OSError:
    """Return the built-in error for one of qdrant-client's or grpc's."""
    if isinstance(error, UnexpectedResponse):
        status, said = error.status_code, error.content.decode(errors="replace")[:300]
    elif isinstance(error, RpcError):
        status, said = error.code(), error.details() or ""
    else:
        return ConnectionError(f"no Qdrant server answers at {url}: {error}")
    if status in _SILENT:
        hint = "" if grpc_port is None else f" (gRPC has port {grpc_port} here: see grpc_port= and prefer_grpc=False)"
        return ConnectionError(f"no Qdrant server answers at {url}: {said}{hint}")
    if status in _FORBIDDEN:
        return PermissionError(f"the Qdrant server at {url} does not accept the API key: {said}")
    return OSError(f"the Qdrant server at {url} answered {status}: {said}")


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
            # No graph: token vectors score candidates, they do not find them.
            hnsw_config=models.HnswConfigDiff(m=0),
        )
    return config


def _sparse_config(format_: StoreFormat, on_disk: bool) -> dict[str, models.SparseVectorParams]:
    if "lexical" not in format_.modes:
        return {}
    return {"lexical": models.SparseVectorParams(index=models.SparseIndexParams(on_disk=on_disk))}
