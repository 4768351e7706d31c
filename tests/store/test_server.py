"""A store on a Qdrant server.

The conformance suite runs over qdrant-client's local mode, and over a real server where there is one:

    docker run --rm -p 6333:6333 -p 6334:6334 qdrant/qdrant:v1.19.0
    QDRANT_URL=http://localhost:6333 pytest tests/store -m server

`tests/store/real.py` names the variables for a cluster. Servers from 1.18 on are meant.
"""

import pickle
import re
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from grpc import RpcError, StatusCode
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from m3_integrations import M3Encoder, open_store
from m3_integrations.langchain import M3HybridRetriever
from m3_integrations.llama_index import M3HybridRetriever as NodeRetriever
from m3_integrations.store import cluster, matches, served, server
from m3_integrations.store.server import ServerStore
from tests.store.oracle import add, records, vectors
from tests.store.real import open_real, real_client


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What clients were opened with; all of them see the one collection of a local mode."""
    local, settings = QdrantClient(":memory:"), list[dict[str, Any]]()
    monkeypatch.setattr(cluster, "QdrantClient", lambda **given: (settings.append(given), local)[1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(served, "is_m3_serve", lambda _: False)
    return settings


def test_a_url_opens_a_server_with_its_settings(asked: list[dict[str, Any]], random: np.random.Generator) -> None:
    store = open_store("https://host.example:7000", api_key="k", prefer_grpc=False, timeout_s=5, collection="c")
    assert isinstance(store, ServerStore)
    wanted = {"url": "https://host.example:7000", "port": 7000, "api_key": "k", "prefer_grpc": False, "timeout": 5}
    assert {name: asked[0][name] for name in wanted} == wanted
    assert "api_key" not in repr(store)
    open_store("http://host.example")
    assert (asked[1]["port"], asked[1]["prefer_grpc"], asked[1]["api_key"]) == (6333, True, None)


def test_a_collection_is_made_with_what_was_asked(monkeypatch: pytest.MonkeyPatch, random: np.random.Generator) -> None:
    client, made = QdrantClient(":memory:"), dict[str, Any]()
    create = client.create_collection
    monkeypatch.setattr(client, "create_collection", lambda name, **given: (made.update(given), create(name, **given)))
    store = ServerStore("x", client=client, shard_number=3, replication_factor=2, on_disk=True, multi_vector="turbo8")
    add(store, records(random, ["a"]))
    assert (made["shard_number"], made["replication_factor"]) == (3, 2)
    dense, tokens = made["vectors_config"]["dense"], made["vectors_config"]["multi_vector"]
    assert (dense.size, dense.distance, dense.on_disk) == (8, models.Distance.DOT, True)
    assert (tokens.datatype, tokens.on_disk, tokens.hnsw_config.m) == (models.Datatype.TURBO8, True, 0)
    assert made["sparse_vectors_config"]["lexical"].index.on_disk is True


def test_another_process_finds_what_the_first_has_made(random: np.random.Generator) -> None:
    client = QdrantClient(":memory:")
    first, second = ServerStore("x", client=client), ServerStore("x", client=client)
    first.bind("one")
    second.bind("two")  # nothing is there yet
    assert second.count() == 0
    add(first, records(random, ["a"]))
    third = ServerStore("x", client=client)
    assert (third.count(), third.fingerprint, third.modes) == (1, "one", ("dense", "lexical", "multi_vector"))
    with pytest.raises(ValueError, match="of the model one, not of two"):
        third.bind("two")
    with pytest.raises(ValueError, match="of the model one, not of two"):
        add(second, records(random, ["b"]))
    assert third.count() == 1


def test_a_model_is_written_down_whoever_makes_the_collection(random: np.random.Generator) -> None:
    client = QdrantClient(":memory:")
    first, second = ServerStore("x", client=client), ServerStore("x", client=client)
    first.bind("one")  # there is no collection yet to write it into
    add(second, records(random, ["a"]))
    add(first, records(random, ["b"]))
    assert ServerStore("x", client=client).fingerprint == "one"


def test_of_two_processes_that_bind_the_first_decides(random: np.random.Generator) -> None:
    client = QdrantClient(":memory:")
    add(ServerStore("x", client=client), records(random, ["a"]))
    first, second = ServerStore("x", client=client), ServerStore("x", client=client)
    first.bind("one")
    with pytest.raises(ValueError, match="of the model one, not of two"):
        second.bind("two")
    assert ServerStore("x", client=client).fingerprint == "one"


def test_what_was_not_made_here_is_refused_and_left_as_it_is() -> None:
    client = QdrantClient(":memory:")
    client.create_collection("m3", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT))
    with pytest.raises(ValueError, match="collection 'm3' is not a store of this package"):
        ServerStore("x", client=client)
    assert client.get_collection("m3").config.metadata is None
    client.create_collection("later", metadata={"format": "m3_integrations store", "version": 4}, vectors_config={})
    with pytest.raises(ValueError, match="format version 4"):
        ServerStore("x", client=client, collection="later")


class Watched(QdrantClient):
    """A client that knows whether it was closed."""

    is_closed = False

    def close(self, *args: Any, **kwargs: Any) -> None:
        self.is_closed = True
        super().close(*args, **kwargs)


def test_a_client_is_closed_by_whoever_opened_it(monkeypatch: pytest.MonkeyPatch, random: np.random.Generator) -> None:
    given = Watched(":memory:")
    with ServerStore("x", client=given) as store:
        add(store, records(random, ["a"]))
    with pytest.raises(ValueError, match="multi_vector"):
        ServerStore("x", client=given, multi_vector="turbo8")
    assert not given.is_closed
    assert given.count("m3").count == 1

    made = list[Watched]()
    monkeypatch.setattr(cluster, "QdrantClient", lambda **_: (made.append(Watched(":memory:")), made[-1])[1])  # type: ignore[func-returns-value]
    ServerStore("http://x").close()
    for settings in ({"multi_vector": "turbo9"}, {"token_pooling": 0}):
        with pytest.raises(ValueError, match="must be"):
            ServerStore("http://x", **settings)
    monkeypatch.setattr(Watched, "collection_exists", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ServerStore("http://x")
    assert [client.is_closed for client in made] == [True] * 4


def test_indexes_that_the_server_cannot_build_end_the_wait(
    monkeypatch: pytest.MonkeyPatch, random: np.random.Generator
) -> None:
    client = QdrantClient(":memory:")
    store = ServerStore("x", client=client)
    add(store, records(random, ["a"]))
    info = client.get_collection("m3")
    statuses = [models.CollectionStatus.YELLOW, models.CollectionStatus.GREY, models.CollectionStatus.RED]
    monkeypatch.setattr(server, "_POLL_S", 0.0)
    monkeypatch.setattr(client, "get_collection", lambda _: info.model_copy(update={"status": statuses.pop(0)}))
    with pytest.raises(OSError, match="cannot index collection 'm3'"):
        store.optimize()
    assert statuses == []


def test_whoever_may_only_read_searches_ranges_too(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, added = QdrantClient(":memory:"), records(random, [f"r{i}" for i in range(30)])
    add(ServerStore("x", client=client), added)
    refusal = UnexpectedResponse(403, "Forbidden", b"read-only", httpx.Headers())
    monkeypatch.setattr(client, "create_payload_index", lambda *_, **__: raise_(refusal))
    store = ServerStore("x", client=client)
    assert store.count({"size": {"$lt": 2}}) == sum(matches({"size": {"$lt": 2}}, r.metadata) for r in added)


def raise_(error: Exception) -> None:
    raise error


def test_ranges_over_wide_tables_are_indexed_once_and_nothing_else_is(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, indexed = QdrantClient(":memory:"), list[str]()
    monkeypatch.setattr(client, "create_payload_index", lambda _, path, **__: indexed.append(path))
    store = ServerStore("x", client=client)
    wide = [{"size": row, "day": "2024-05-01", **{f"n{i}": i for i in range(20)}} for row in range(30)]
    store.upsert([f"r{i}" for i in range(30)], [""] * 30, wide, vectors(random, 30))
    for _ in range(2):
        store.count({"$or": [{"size": {"$lt": 2}}, {"$not": {"day": {"$gte": "2024-05-01"}}}]})
    assert indexed == ["terms", "dates.kday", "numbers.ksize"]


@pytest.mark.enable_socket
def test_a_server_that_does_not_answer_is_an_error() -> None:
    for prefer_grpc in (True, False):
        with pytest.raises(ConnectionError, match="no Qdrant server answers at http://localhost:9") as refused:
            open_store("http://localhost:9", prefer_grpc=prefer_grpc, grpc_port=8, timeout_s=2)
        assert ("the gRPC port is 8" in str(refused.value)) is prefer_grpc


class GrpcError(RpcError):  # type: ignore[misc]
    def __init__(self, code: StatusCode, words: str = "said over grpc") -> None:
        self._code, self._words = code, words

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str:
        return self._words


READ_ONLY = "Forbidden: Global manage access is required"
"""What servers answer to a change with a read-only key."""
WRITE = "Forbidden: Write access to collection m3 is required"
"""And with a token for reading one collection."""


def answered(status: int, words: str = "said over http") -> UnexpectedResponse:
    return UnexpectedResponse(status, "reason", words.encode(), httpx.Headers())


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (answered(401), PermissionError, "at x does not accept the API key: said over http"),
        (
            answered(403, READ_ONLY),
            PermissionError,
            f"allows only reading from the Qdrant server at x: {READ_ONLY}",
        ),
        (
            GrpcError(StatusCode.PERMISSION_DENIED, WRITE),
            PermissionError,
            f"allows only reading from the Qdrant server at x: {WRITE}",
        ),
        (
            GrpcError(StatusCode.PERMISSION_DENIED, "Invalid API key"),
            PermissionError,
            "does not accept the API key: Inv",
        ),
        (GrpcError(StatusCode.UNAUTHENTICATED), PermissionError, "at x does not accept the API key: said over grpc"),
        (GrpcError(StatusCode.UNAVAILABLE), ConnectionError, "no Qdrant server answers at x: said over grpc"),
        (ResponseHandlingException(OSError("refused")), ConnectionError, "no Qdrant server answers at x: refused"),
        (answered(507), OSError, "at x answered 507: said over http"),
        (GrpcError(StatusCode.RESOURCE_EXHAUSTED), OSError, "answered StatusCode.RESOURCE_EXHAUSTED: said over grpc"),
    ],
)
def test_a_servers_errors_are_built_in_ones_whenever_they_come(
    error: Exception, kind: type[OSError], message: str, monkeypatch: pytest.MonkeyPatch, random: np.random.Generator
) -> None:
    monkeypatch.setattr(cluster, "_FIRST_WAIT_S", 0.0)
    client = QdrantClient(":memory:")
    store = ServerStore("x", client=client)
    add(store, records(random, ["a"]))

    def fail(*_: object, **__: object) -> None:
        raise error

    uses: dict[str, Callable[[], object]] = {
        "upsert": lambda: add(store, records(random, ["b"])),
        "count": store.count,
        "scroll": lambda: list(store.records()),
    }
    for method, use in uses.items():
        with monkeypatch.context() as patch:
            patch.setattr(client, method, fail)
            with pytest.raises(OSError, match=re.escape(message)) as caught:
                use()
            assert type(caught.value) is kind
    assert store.count() == 1
    monkeypatch.setattr(client, "collection_exists", fail)
    with pytest.raises(kind, match=re.escape(message)):
        ServerStore("x", client=client)


def test_an_index_that_was_not_made_with_the_collection_is_made_later(
    monkeypatch: pytest.MonkeyPatch, random: np.random.Generator
) -> None:
    client, made = QdrantClient(":memory:"), list[str]()
    store = ServerStore("x", client=client)

    def fail(*_: object, **__: object) -> None:
        raise answered(500)

    with monkeypatch.context() as patch:
        patch.setattr(client, "create_payload_index", fail)
        with pytest.raises(OSError, match="answered 500"):
            add(store, records(random, ["a"]))
    monkeypatch.setattr(client, "create_payload_index", lambda _, key, **__: made.append(key))
    add(store, records(random, ["a"]))
    assert "terms" in made


def test_retrievers_over_a_url_pickle(asked: list[dict[str, Any]]) -> None:
    encoder = M3Encoder("tiny", device="cpu")
    retriever = M3HybridRetriever(encoder=encoder, store=open_store("http://host.example", api_key="k"), k=1)
    retriever.add_texts(["Rotate the keys once a year.", "The museum is closed on Mondays."], ids=["keys", "museum"])
    (found,) = pickle.loads(pickle.dumps(retriever)).invoke("how often are keys rotated?")
    assert found.id == "keys"
    nodes = NodeRetriever(encoder=encoder, store=retriever.store, similarity_top_k=1)
    (node,) = pickle.loads(pickle.dumps(nodes)).retrieve("when is the museum closed?")
    assert node.node.node_id == "museum"
    assert [given["api_key"] for given in asked] == ["k"] * 3


def test_retrievers_over_a_folder_refuse_to_pickle(tmp_path: Any) -> None:
    with open_store(tmp_path / "s") as store:
        for made in (M3HybridRetriever, NodeRetriever):
            with pytest.raises(TypeError, match=r"use a store on a server, open_store\('http"):
                pickle.dumps(made(encoder=M3Encoder("tiny", device="cpu"), store=store))


@pytest.mark.server
@pytest.mark.enable_socket
@pytest.mark.parametrize("prefer_grpc", [True, False])
def test_a_real_server_answers_by_grpc_and_by_rest(prefer_grpc: bool, random: np.random.Generator) -> None:
    name = f"test-{uuid.uuid4()}"
    with open_real(collection=name, prefer_grpc=prefer_grpc) as store:
        store.bind("one")
        add(store, records(random, [f"r{i}" for i in range(120)]))
        store.optimize()
        with pickle.loads(pickle.dumps(store)) as other:
            assert (other.count(), other.fingerprint) == (120, "one")
    client = real_client()
    client.delete_collection(name)
    client.close()
