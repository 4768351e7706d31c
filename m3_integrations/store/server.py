"""A store on a Qdrant server or cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

try:
    from qdrant_client import QdrantClient, models

    from m3_integrations.store.server_errors import ask_server
except ModuleNotFoundError as error:
    if error.name not in {"qdrant_client", "grpc"}:
        raise
    raise ModuleNotFoundError(
        "a store on a Qdrant server needs qdrant-client: pip install 'm3-integrations[server]'", name=error.name
    ) from error

from m3_integrations.store.collection import CollectionStore
from m3_integrations.store.engine import Ask
from m3_integrations.store.filters import Filter
from m3_integrations.store.format import MultiVectorStorage, StoreFormat, choose_format
from m3_integrations.store.points import Point, point_id
from m3_integrations.store.qdrant_filters import Bound, index_paths, translate
from m3_integrations.store.qdrant_vectors import as_named, read_vectors
from m3_integrations.vectors import M3Vectors

_Answer = TypeVar("_Answer")

_PAGE: Final = 256
"""Records read at a time when all are."""

_POLL_S: Final = 0.5
"""How long to wait before asking again whether the server has built its indexes."""

_DATATYPES: Final = {
    "float16": models.Datatype.FLOAT16,
    "turbo8": models.Datatype.TURBO8,
    "turbo4": models.Datatype.TURBO4,
}


class ServerStore(CollectionStore):
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
        client: In the place of what the URL says: a client that is there already; such a store cannot be pickled.

    Raises:
        ConnectionError: If the server cannot be reached; later calls too.
        PermissionError: If it does not accept the key; later calls too.
        OSError: If it answers with another error; later calls too.
        ValueError: If the collection is none of this package's, or was made by a later version or with other
            settings.
    """

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
        self.url, self.collection = url, collection
        self._settings = {
            "api_key": api_key,
            "collection": collection,
            "prefer_grpc": prefer_grpc,
            "grpc_port": grpc_port,
            "timeout_s": timeout_s,
            "shard_number": shard_number,
            "replication_factor": replication_factor,
            "on_disk": on_disk,
            "multi_vector": multi_vector,
            "token_pooling": token_pooling,
        }
        self._is_ours = client is None
        client = client or QdrantClient(
            url=url,
            port=urlsplit(url).port or 6333,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout=timeout_s,
            check_compatibility=False,  # it would ask the server, and warn, before anything was asked of it
        )
        placement = {"shard_number": shard_number, "replication_factor": replication_factor}
        engine = _ServerEngine(client, url, collection, placement=placement, on_disk=on_disk)
        try:
            found = engine.read_format()
        except OSError:
            client.close()
            raise
        super().__init__(engine, choose_format(engine.where, found, multi_vector, token_pooling))

    def __repr__(self) -> str:
        return f"ServerStore({self.url!r}, collection={self.collection!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._is_ours:
            raise TypeError("a store over a client= cannot be pickled: open it by URL")
        return _reopen, (self.url, self._settings)


def _reopen(url: str, settings: Mapping[str, Any]) -> ServerStore:
    return ServerStore(url, **settings)


class _ServerEngine:
    """A collection of a server. The client is safe to use from many threads."""

    def __init__(
        self, client: QdrantClient, url: str, name: str, *, placement: Mapping[str, Any], on_disk: bool
    ) -> None:
        self._client = client
        self._url = url
        self._name = name
        self._placement = placement
        self._on_disk = on_disk
        self._format: StoreFormat | None = None
        self._indexed_keys: set[str] = set()
        self.where = f"collection {name!r}"

    def _ask(self, call: Callable[..., _Answer], *args: Any, **kwargs: Any) -> _Answer:
        return ask_server(self._url, call, self._name, *args, **kwargs)

    def lock(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def read_format(self) -> StoreFormat | None:
        if not self._ask(self._client.collection_exists):
            return None
        info = self._ask(self._client.get_collection)
        self._indexed_keys = set(info.payload_schema)
        self._format = StoreFormat.from_dict(self.where, info.config.metadata)
        return self._format

    def create(self, format_: StoreFormat) -> StoreFormat:
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
            there = self.read_format()  # by another process, a moment ago
            if there is None:
                raise
            if not there.modes:
                raise ValueError(f"{self.where} has no vectors") from error
            return there
        self._format = format_
        return format_

    def bind(self, format_: StoreFormat) -> None:
        if self._format is not None:
            self._ask(self._client.update_collection, metadata=format_.to_dict())
            self._format = format_

    def upsert(self, points: Sequence[Point]) -> None:
        if "terms" not in self._indexed_keys:  # also where whoever made the collection did not get as far
            self._index("terms", models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD))
        for key in index_paths(points):
            if key not in self._indexed_keys:
                self._index(
                    key, models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=False, range=True)
                )
        self._ask(
            self._client.upsert,
            [
                models.PointStruct(id=point.id, vector=_named(point.vectors), payload=dict(point.payload))
                for point in points
                if point.vectors
            ],
            wait=True,
        )

    def delete(self, ids: Sequence[str]) -> None:
        self._ask(self._client.delete, models.PointIdsList(points=list(ids)), wait=True)

    def delete_where(self, filter_: Filter) -> None:
        self._ask(self._client.delete, models.FilterSelector(filter=translate(_WORDS, filter_)), wait=True)

    def retrieve(self, ids: Sequence[str], *, with_payload: bool, with_vectors: bool) -> dict[str, Point]:
        found = self._ask(self._client.retrieve, list(ids), with_payload=with_payload, with_vectors=with_vectors)
        format_ = self._format or StoreFormat()
        return {
            str(record.id): Point(
                str(record.id),
                record.payload or {},
                read_vectors(format_, record.vector) if with_vectors else None,  # type: ignore[arg-type]
            )
            for record in found
        }

    def scroll(self, after: Any) -> tuple[list[Point], Any]:
        found, after = self._ask(self._client.scroll, limit=_PAGE, offset=after, with_payload=True)
        return [Point(str(record.id), record.payload or {}) for record in found], after

    def count(self, filter_: Filter | None) -> int:
        where = None if filter_ is None else translate(_WORDS, filter_)
        return self._ask(self._client.count, count_filter=where, exact=True).count

    def search(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        if not asks:
            return []
        answers = self._ask(self._client.query_batch_points, [_request(ask) for ask in asks])
        return [
            [(names[str(hit.id)] if names else (hit.payload or {})["id"], hit.score) for hit in answer.points]
            for names, answer in zip(map(_names, asks), answers, strict=True)
        ]

    def optimize(self) -> None:
        """Wait until the server, which indexes by itself, has nothing left to do."""
        while self._ask(self._client.get_collection).status != models.CollectionStatus.GREEN:
            time.sleep(_POLL_S)

    def flush(self) -> None:
        """Do nothing: the server answers an update when it is durable."""

    def close(self) -> None:
        self._client.close()

    def _index(self, key: str, schema: Any) -> None:
        self._ask(self._client.create_payload_index, key, field_schema=schema, wait=True)
        self._indexed_keys.add(key)


class _ServerWords:
    """The parts of a filter as the server's client spells them."""

    def join(self, must: Sequence[Any] = (), should: Sequence[Any] = (), must_not: Sequence[Any] = ()) -> models.Filter:
        return models.Filter(must=list(must) or None, should=list(should) or None, must_not=list(must_not) or None)

    def any_term(self, terms: list[str]) -> models.FieldCondition:
        return models.FieldCondition(key="terms", match=models.MatchAny(any=terms))

    def bound(self, key: str, bound: Bound, value: int) -> models.FieldCondition:
        return models.FieldCondition(key=key, range=models.Range(**{bound: float(value)}))

    def nested(self, key: str, filter_: models.Filter) -> models.NestedCondition:
        return models.NestedCondition(nested=models.Nested(key=key, filter=filter_))


_WORDS: Final = _ServerWords()


def _request(ask: Ask) -> models.QueryRequest:
    return models.QueryRequest(
        query=_named(ask.query.select([ask.mode]))[ask.mode],
        using=ask.mode,
        filter=_where(ask),
        limit=ask.limit,
        with_payload=models.PayloadSelectorInclude(include=["id"]) if ask.ids is None else False,
        params=models.SearchParams(hnsw_ef=max(128, ask.limit), exact=ask.ids is not None),
    )


def _names(ask: Ask) -> dict[str, str]:
    """Give the records' ids by those of their points, where an ask has ids."""
    return {point_id(id_): id_ for id_ in ask.ids or ()}


def _where(ask: Ask) -> models.Filter | None:
    if ask.ids is not None:
        return models.Filter(must=[models.HasIdCondition(has_id=list(_names(ask)))])
    return None if ask.filter is None else translate(_WORDS, ask.filter)


def _named(vectors: M3Vectors) -> dict[str, Any]:
    named = as_named(vectors)
    if "lexical" in named:
        indices, values = named["lexical"]
        named["lexical"] = models.SparseVector(indices=indices, values=values)
    return {name: value.tolist() if name != "lexical" else value for name, value in named.items()}


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
