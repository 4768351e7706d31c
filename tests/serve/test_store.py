"""The doors of a store alone: they leave the encoder free, end well, and outlast the time limit of a request."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from m3_integrations import M3Encoder, open_store
from m3_integrations.serve import Limits, create_app
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.served import ServedStore
from m3_integrations.store.wire import pack, unpack
from m3_integrations.vectors import to_tensors
from tests.fakes import random_vectors
from tests.serve.conftest import serving, serving_store, wait_until

pytestmark = pytest.mark.enable_socket


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


class StuckStore(MemoryStore):
    """Counts, and optimizes, when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.calls = threading.Event(), 0

    def count(self, filter: Any = None) -> int:  # noqa: A002
        self.calls += 1
        assert self.go.wait(60)
        return super().count(filter)

    def optimize(self) -> None:
        self.calls += 1
        assert self.go.wait(60)


def test_a_store_that_is_stuck_leaves_the_encoder_free(served: M3Encoder) -> None:
    store = StuckStore()
    limits = Limits(max_running=2, max_waiting=3)
    with serving(create_app(served, store=store, limits=limits)) as url, ThreadPoolExecutor(8) as pool:
        counts = [pool.submit(httpx.post, f"{url}/v1/store/count", json={}, timeout=60) for _ in range(5)]
        wait_until(lambda: "m3_requests_waiting 3.0" in httpx.get(f"{url}/metrics").text)
        assert httpx.post(f"{url}/v1/store/count", json={}, timeout=60).status_code == 429
        assert httpx.post(f"{url}/v1/encode", json={"texts": ["water"]}, timeout=60).status_code == 200
        store.go.set()
        assert [each.result().json() for each in counts] == [{"count": 0}] * 5


def test_optimizing_may_take_longer_than_a_request() -> None:
    store = StuckStore()
    with serving_store(store, limits=Limits(timeout_s=2)) as url, ServedStore(url) as one, ServedStore(url) as two:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(one.optimize)
            wait_until(lambda: store.calls == 1)
            second = pool.submit(two.optimize)
            for _ in range(3):  # each waits a second
                assert httpx.post(f"{url}/v1/store/optimize", json={}, timeout=60).json() == {
                    "run": 1,
                    "is_done": False,
                }
            store.go.set()
            assert first.result() is second.result() is None
        assert store.calls == 1  # both waited for the same run
        one.optimize()
        assert store.calls == 2


def test_a_request_that_is_given_up_leaves_its_place() -> None:
    store = StuckStore()
    with serving_store(store, limits=Limits(max_running=1, timeout_s=0.5)) as url:
        assert httpx.post(f"{url}/v1/store/count", json={}, timeout=60).status_code == 504
        store.go.set()
        wait_until(lambda: httpx.post(f"{url}/v1/store/count", json={}, timeout=60).status_code == 200)


@pytest.mark.parametrize(
    ("path", "said", "message"),
    [
        ("candidates", {"limits": {"dense": -1}}, "limits must be numbers of records by mode"),
        ("candidates", {"limits": [1]}, "limits must be numbers of records by mode"),
        ("candidates", {"limits": {"multi_vector": 3}}, "got multi_vector"),
        ("candidates", {"limits": {"dense": 3}, "filter": {"year": 3}}, "a filter must have"),
        ("candidates", [], "a JSON object"),
        ("scores", {"ids": "abc", "modes": ["dense"]}, "lists of strings"),
        ("scores", {"ids": [7], "modes": ["dense"]}, "ids must be strings"),
        ("scores", {"ids": ["a"] * 5, "modes": ["dense"]}, "may hold at most 4 ids, got 5"),
        ("scores", {"ids": ["a"], "modes": ["sparse"]}, "sparse"),
        ("upsert", {"records": [{"id": "a", "text": "", "metadata": {}}]}, "made for a store of"),
    ],
)
def test_what_is_asked_wrongly_is_refused(path: str, said: Any, message: str, random: np.random.Generator) -> None:
    with serving_store(MemoryStore(), limits=Limits(max_texts=4)) as url:
        body = pack(said, to_tensors(random_vectors(random, 1)))
        answer = httpx.post(f"{url}/v1/store/{path}", content=body)
        assert answer.status_code == 422
        assert message in answer.json()["error"]["message"]


def test_a_record_made_for_another_store_is_refused_before_it_is_written(random: np.random.Generator) -> None:
    with serving_store(store := MemoryStore()) as url, ServedStore(url) as client:
        store.bind("another model")  # as if the server had been started again
        with pytest.raises(ValueError, match=r"made for a store of .* open the store again"):
            client.upsert(["a"], ["a"], [{}], random_vectors(random, 1))
        assert store.count() == 0


def test_the_page_describes_every_door(served: M3Encoder) -> None:
    with serving(create_app(served, store=open_store())) as url:
        paths = httpx.get(f"{url}/openapi.json").json()["paths"]
        names = ("get", "records", "count", "candidates", "scores", "upsert", "delete", "bind", "optimize", "flush")
        assert {f"/v1/store/{name}" for name in names} | {"/v1/store"} <= set(paths)
        for name in ("candidates", "scores", "upsert"):
            assert "application/octet-stream" in paths[f"/v1/store/{name}"]["post"]["requestBody"]["content"]
        answer = httpx.post(f"{url}/v1/store/get", json={"ids": []})
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-m3-fingerprint"] == served.fingerprint
        assert unpack(answer.content) == ({"n_read": 0, "records": []}, {})


class TurnStore(MemoryStore):
    """Changes when it is let, as a folder does after `optimize`."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.waiting = threading.Event(), 0

    def delete(self, ids: Sequence[str]) -> int:
        self.waiting += 1
        assert self.go.wait(60)
        return super().delete(ids)


def delete(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/store/delete", json={"ids": ["a"]}, timeout=60)


def test_changes_that_wait_for_their_turn_leave_searches_free() -> None:
    store = TurnStore()
    with serving_store(store) as url, ThreadPoolExecutor(20) as pool:
        changes = [pool.submit(delete, url) for _ in range(20)]
        wait_until(lambda: store.waiting > 0 and "m3_requests_waiting 12.0" in httpx.get(f"{url}/metrics").text)
        assert httpx.post(f"{url}/v1/store/count", json={}, timeout=60).json() == {"count": 0}
        store.go.set()
        assert [each.result().json() for each in changes] == [{"deleted": 0}] * 20


def test_changes_that_were_given_up_leave_searches_free() -> None:
    store = TurnStore()
    with serving_store(store, limits=Limits(timeout_s=0.5)) as url, ThreadPoolExecutor(20) as pool:
        changes = [pool.submit(delete, url) for _ in range(20)]
        assert [each.result().status_code for each in changes] == [504] * 20
        assert httpx.post(f"{url}/v1/store/count", json={}, timeout=60).json() == {"count": 0}
        store.go.set()


@pytest.mark.parametrize("is_given_up", [False, True])
def test_records_that_wait_for_their_turn_leave_searches_free(served: M3Encoder, is_given_up: bool) -> None:
    store = TurnStore()
    app = create_app(served, store=store, limits=Limits(timeout_s=0.5 if is_given_up else 60, max_running=8))
    with serving(app) as url, ThreadPoolExecutor(40) as pool:

        def remove() -> httpx.Response:
            return httpx.post(f"{url}/v1/records/delete", json={"ids": ["a"]}, timeout=90)

        changes = [pool.submit(remove) for _ in range(40)]
        if is_given_up:
            assert [each.result().status_code for each in changes] == [504] * 40
        wait_until(lambda: store.waiting > 0)
        assert httpx.post(f"{url}/v1/records/get", json={"ids": ["a"]}, timeout=60).json() == {"records": []}
        assert httpx.post(f"{url}/v1/search", json={"query": "keys"}, timeout=60).json() == {"hits": []}
        store.go.set()
        if not is_given_up:
            assert [each.result().json() for each in changes] == [{"deleted": 0}] * 40
