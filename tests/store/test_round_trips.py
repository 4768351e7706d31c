"""How often a search asks a server, and that it answers as every other store."""

import os
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from m3_integrations import Searcher, Store, open_store
from m3_integrations.search import SearchMode
from m3_integrations.store.point_ids import hashed_point_id
from m3_integrations.store.server import ServerStore
from tests.fakes import FakeEncoder
from tests.store.grpc_server import GrpcServer, grpc_server
from tests.test_search import make_texts

pytestmark = pytest.mark.enable_socket

MODES: list[SearchMode] = ["dense", "lexical", "dense+lexical", "multi_vector", "all"]


@pytest.fixture
def served() -> Iterator[tuple[GrpcServer, Store]]:
    with grpc_server() as (server, port), open_store("http://127.0.0.1:1", grpc_port=port) as store:
        yield server, store


def fill(store: Store) -> Searcher:
    random = np.random.default_rng(0)
    searcher = Searcher(FakeEncoder(), store)
    searcher.add(
        make_texts(random, 200),
        ids=[f"r{i}" for i in range(200)],
        metadatas=[{"size": i % 7} for i in range(200)],
    )
    return searcher


@pytest.mark.parametrize("mode", MODES)
def test_a_search_asks_a_server_twice(mode: SearchMode, served: tuple[GrpcServer, Store]) -> None:
    server, store = served
    searcher = fill(store)
    searcher.search("blue train", mode=mode)
    server.calls.clear()
    found = searcher.search("keys vault museum", k=4, mode=mode, filter={"size": {"$ne": 3}}, pool_size=16)
    assert len(found) == 4
    assert server.calls == ["QueryBatch", "Get" if mode in {"dense", "lexical"} else "QueryBatch"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options", [{}, {"filter": {"size": 2}}, {"k": 150, "weights": (0.1, 0.1, 1)}, {"fusion": "rrf"}]
)
def test_a_server_answers_as_the_memory(
    mode: SearchMode, options: dict[str, Any], served: tuple[GrpcServer, Store]
) -> None:
    far, near = fill(served[1]), fill(open_store())
    for query in ("keys vault museum", "tea", "rain rain code blue 17"):
        found, wanted = (searcher.search(query, mode=mode, **options) for searcher in (far, near))
        assert [(hit.id, hit.text, hit.metadata) for hit in found] == [
            (hit.id, hit.text, hit.metadata) for hit in wanted
        ]
        np.testing.assert_allclose([h.score for h in found], [h.score for h in wanted], atol=1e-3)


def test_a_best_record_that_was_not_expected_is_read_by_a_third_call(
    served: tuple[GrpcServer, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, store = served
    searcher = fill(store)
    wanted = searcher.search("keys vault museum")
    monkeypatch.setattr("m3_integrations.search.searcher.likely_best", lambda *_: [wanted[2].id])
    server.calls.clear()
    assert searcher.search("keys vault museum") == wanted
    assert server.calls == ["QueryBatch", "QueryBatch", "Get"]


def test_a_record_deleted_after_it_was_scored_is_passed_over(
    served: tuple[GrpcServer, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, store = served
    searcher = fill(store)
    best, *others = searcher.search("keys vault museum", k=5)
    answer = server.QueryBatch

    def without_the_best(request: Any, context: Any) -> Any:
        found = answer(request, context)
        records = found.result[-1].result
        kept = [point for point in records if point.payload["id"].string_value != best.id]
        if not request.query_points[-1].HasField("query"):  # the records that come along with the scores
            del records[:]
            records.extend(kept)
            server.local.delete("m3", [hashed_point_id(best.id)])
        return found

    monkeypatch.setattr(server, "QueryBatch", without_the_best)
    assert searcher.search("keys vault museum", k=4) == others


def check_same(one: Store, other: Store) -> None:
    """Compare what two stores over one collection return."""
    ids = [f"r{i}" for i in range(0, 200, 3)]
    for found, wanted in zip(one.get(ids, with_vectors=True), other.get(ids, with_vectors=True), strict=True):
        assert (found.id, found.text, found.metadata) == (wanted.id, wanted.text, wanted.metadata)
        assert found.vectors is not None
        assert wanted.vectors is not None
        np.testing.assert_array_equal(found.vectors.dense, wanted.vectors.dense)
        np.testing.assert_array_equal(found.vectors.lexical.values, wanted.vectors.lexical.values)
        np.testing.assert_array_equal(found.vectors.multi_vector.flat, wanted.vectors.multi_vector.flat)
    for mode in MODES:
        searchers = (Searcher(FakeEncoder(), each) for each in (one, other))
        hits = (each.search("keys vault", mode=mode, filter={"size": 2}) for each in searchers)
        for hit, wanted_hit in zip(*hits, strict=True):
            assert (hit.id, hit.text, hit.metadata) == (wanted_hit.id, wanted_hit.text, wanted_hit.metadata)


def test_packed_calls_and_the_clients_own_return_the_same(served: tuple[GrpcServer, Store]) -> None:
    server, store = served
    fill(store)
    check_same(store, ServerStore("local", client=server.local))


@pytest.mark.server
def test_a_real_server_returns_the_same_by_grpc_and_by_rest() -> None:
    url, key, name = os.environ["QDRANT_URL"], os.environ.get("QDRANT_API_KEY"), f"test-{uuid.uuid4()}"
    with open_store(url, api_key=key, collection=name) as packed:
        fill(packed)
        with open_store(url, api_key=key, collection=name, prefer_grpc=False) as plain:
            check_same(packed, plain)
    client = QdrantClient(url=url, api_key=key, check_compatibility=False)
    client.delete_collection(name)
    client.close()
