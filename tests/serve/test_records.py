"""Search, explanations and records over a store equal what `Searcher` does."""

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from m3_integrations import M3Encoder, Searcher, open_store
from m3_integrations.serve import Limits, create_app
from m3_integrations.store.memory import MemoryStore
from tests.engine.gate import Gate as Passes
from tests.serve.conftest import serving, wait_until

pytestmark = pytest.mark.enable_socket

RECORDS = [
    {"id": "a", "text": "the stone bridge over the water", "metadata": {"year": 2024, "tags": ["x", "y"]}},
    {"id": "b", "text": "seven letters", "metadata": {"year": 2021}},
    {"id": "c", "text": "the key to the bridge", "metadata": {"year": 2023}},
]


@pytest.fixture
def searcher(served: M3Encoder) -> Searcher:
    return Searcher(served, open_store())


@pytest.fixture
def client(searcher: Searcher, served: M3Encoder) -> Iterator[httpx.Client]:
    gate = create_app(served, store=searcher.store, limits=Limits(max_texts=4))
    with serving(gate) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/v1/records", json={"records": RECORDS}).json() == {"ids": ["a", "b", "c"]}
        yield client


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 1, "mode": "lexical"},
        {"filter": {"year": {"$gte": 2023}}, "weights": [1, 0.3, 1]},
        {"fusion": "rrf", "rrf_k": 10, "pool_size": 2},
        {"score_threshold": 0.3, "weights": {"dense": 0, "lexical": 0, "multi_vector": 1}},
    ],
)
def test_a_search_finds_what_the_searcher_finds(
    options: dict[str, Any], client: httpx.Client, searcher: Searcher
) -> None:
    found = client.post("/v1/search", json={"query": "the key", **options}).json()["hits"]
    expected = searcher.search("the key", **options)
    assert expected
    assert [hit["id"] for hit in found] == [hit.id for hit in expected]
    for hit, other in zip(found, expected, strict=True):
        assert (hit["text"], hit["metadata"]) == (other.text, other.metadata)
        np.testing.assert_allclose(hit["score"], other.score, atol=1e-5)
        assert hit["scores"] == pytest.approx(other.scores, abs=1e-5)


def test_an_explanation_is_the_searchers(client: httpx.Client, searcher: Searcher) -> None:
    found = client.post("/v1/explain", json={"query": "the bridge", "id": "c"}).json()
    expected = searcher.explain("the bridge", "c")
    assert found["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert [match["token"] for match in found["lexical"]] == [match.token for match in expected.lexical]
    assert found["lexical"][0]["score"] == pytest.approx(expected.lexical[0].score, abs=1e-5)
    assert [pair["document_token"] for pair in found["multi_vector"]] == [
        pair.document_token for pair in expected.multi_vector
    ]
    answer = client.post("/v1/explain", json={"query": "the bridge", "id": "z"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "there is no record 'z'")


def test_records_are_replaced_returned_and_deleted(client: httpx.Client, searcher: Searcher) -> None:
    new = {"records": [{"id": "b", "text": "eight letters"}, {"text": "no id"}]}
    ids = client.post("/v1/records", json=new).json()["ids"]
    assert ids[0] == "b"
    assert searcher.store.count() == 4
    got = client.post("/v1/records/get", json={"ids": ["b", "z", "a"]}).json()["records"]
    assert got == [{"id": "b", "text": "eight letters", "metadata": {}}, RECORDS[0]]
    assert client.post("/v1/records/delete", json={"ids": ["b", "z"]}).json() == {"deleted": 1}
    deleted = client.post("/v1/records/delete", json={"filter": {"year": {"$lt": 2024}}})
    assert deleted.json() == {"deleted": 1}
    assert sorted(record.id for record in searcher.store.records()) == sorted(["a", ids[1]])


@pytest.mark.parametrize(
    ("path", "asked", "message"),
    [
        ("/v1/records/delete", {"filter": {}}, "matches everything"),
        ("/v1/records/delete", {}, "either ids or a filter"),
        ("/v1/records/delete", {"ids": ["a"], "filter": {"year": 1}}, "either ids or a filter"),
        ("/v1/search", {"query": "a", "top_k": 3}, "body.top_k: Extra inputs are not permitted"),
        ("/v1/search", {"query": "a", "filter": {"year": {"$near": 3}}}, "near"),
        ("/v1/search", {"query": "a", "weights": [1, 2]}, "three numbers"),
        ("/v1/records", {"records": [{"id": "n", "text": "new"}] * 5}, "may hold at most 4 records, got 5"),
        ("/v1/records", {"records": [{"id": "n", "text": "new"}, {"text": 7}]}, "body.records.1.text"),
    ],
)
def test_what_is_asked_wrongly_is_refused_and_changes_nothing(
    path: str, asked: dict[str, Any], message: str, client: httpx.Client, searcher: Searcher
) -> None:
    answer = client.post(path, json=asked)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]
    assert sorted(record.id for record in searcher.store.records()) == ["a", "b", "c"]


def test_a_client_that_goes_away_adds_no_more_records(alone: M3Encoder) -> None:
    passes, store = Passes(alone), open_store()
    with serving(create_app(alone, store=store)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{url}/v1/records", json={"records": [{"text": "water"}]}, timeout=60)
        passes.wait_for(waiting=0)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/records", json={"records": [{"text": "key"}]}, timeout=0.3)
        wait_until(lambda: passes._n_waiting() == 0)
        passes.open()
        assert first.result().status_code == 200
    assert [record.text for record in store.records()] == ["water"]


def test_a_store_of_another_model_is_refused(alone: M3Encoder) -> None:
    store = open_store()
    store.bind("another")
    with pytest.raises(ValueError, match="holds vectors of the model another"):
        create_app(alone, store=store)


FAILURES = [
    (OSError(errno.ENOSPC, "160 MB are needed"), 507, "OSError (No space left on device)"),
    (PermissionError(errno.EACCES, "opened for reading"), 403, "PermissionError (Permission denied)"),
    (ConnectionError("nothing answers at http://upstream"), 502, "ConnectionError (no error number)"),
    (TimeoutError("too slow"), 504, "TimeoutError (no error number)"),
]


@pytest.mark.parametrize(("failure", "status", "logged"), FAILURES)
def test_a_failing_store_is_answered_and_logged_by_its_cause(
    failure: OSError, status: int, logged: str, served: M3Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()

    def fail(*_: Any, **__: Any) -> Any:
        raise failure

    for name in ("candidates", "delete", "get", "upsert"):
        setattr(store, name, fail)
    with serving(create_app(served, store=store)) as url, httpx.Client(base_url=url, timeout=60) as client:
        for path, asked in (
            ("/v1/search", {"query": "water"}),
            ("/v1/records/delete", {"ids": ["a"]}),
            ("/v1/records/get", {"ids": ["a"]}),
            ("/v1/records", {"records": RECORDS}),
        ):
            caplog.clear()
            answer = client.post(path, json=asked)
            assert (answer.status_code, answer.json()["error"]["message"].endswith(str(failure))) == (status, True)
            assert f"POST failed with {logged}" in caplog.text
            assert str(failure) not in caplog.text
        assert answer.json()["detail"].startswith("0 of 3 texts were added before an error")


def test_records_that_fail_midway_for_another_reason_are_answered_with_500(served: M3Encoder) -> None:
    store = MemoryStore()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    store.upsert = fail  # type: ignore[method-assign]
    with serving(create_app(served, store=store)) as url:
        answer = httpx.post(f"{url}/v1/records", json={"records": RECORDS}, timeout=60)
        assert (answer.status_code, answer.json()["detail"].endswith("The error was: a bug")) == (500, True)
