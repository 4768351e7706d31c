"""A server or a cluster whose nodes go, come back, or are not ready yet.

Long because every fault is tried at every call, over the same two nodes.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from grpc import RpcError, StatusCode
from qdrant_client import QdrantClient, models, qdrant_remote
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from m3_integrations import M3Vectors, Record, open_store
from m3_integrations.cli.shared import open_place
from m3_integrations.store import cluster
from m3_integrations.store.server import ServerStore
from tests.store.nodes import GOING, NO_SHARDS, Node, resetting_port
from tests.store.oracle import add, records, vectors
from tests.store.real import real_client

pytestmark = pytest.mark.enable_socket

AWAY = (StatusCode.UNAVAILABLE, "Cancelling all calls")


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cluster, "time", clock)
    return clock


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def nodes(stack: ExitStack) -> list[Node]:
    """Two nodes of a cluster."""
    local = QdrantClient(":memory:")
    made = [Node(local), Node(local)]
    for node in made:
        stack.callback(node.stop)
    return made


def open_at(stack: ExitStack, *ports: int, **settings: Any) -> ServerStore:
    urls = ["http://127.0.0.1:1"] * len(ports)
    return stack.enter_context(ServerStore(urls, grpc_port=list(ports), **settings))


@pytest.fixture
def store(nodes: list[Node], clock: Clock, stack: ExitStack, random: np.random.Generator) -> ServerStore:
    """A store at the first node alone, with records."""
    store = open_at(stack, nodes[0].port)
    add(store, records(random, ["a", "b", "c"]))
    return store


QUERY: M3Vectors = vectors(np.random.default_rng(1), 1)
ONE_MORE: list[Record] = records(np.random.default_rng(2), ["d"])


def add_one_more(store: ServerStore) -> bool:
    add(store, ONE_MORE)
    return True


USES: dict[str, tuple[str, Callable[[ServerStore], object], object]] = {
    "a count": ("Count", lambda store: store.count(), 3),
    "a look-up": ("Get", lambda store: [r.id for r in store.get(["c", "a"])], ["c", "a"]),
    "a walk": ("Scroll", lambda store: sorted(r.id for r in store.records()), ["a", "b", "c"]),
    "a search": ("QueryBatch", lambda store: len(store.candidates(QUERY, {"dense": 9})["dense"].ids), 3),
    "a delete": ("Delete", lambda store: (store.delete(["b", "unknown"]), store.count()), (1, 2)),
    "an upsert": ("Upsert", lambda store: (store.count(), add_one_more(store), store.count()), (3, True, 4)),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "fault", [(StatusCode.INTERNAL, GOING), AWAY, (StatusCode.CANCELLED, "Stream removed (RST_STREAM)")]
)
def test_what_a_node_fails_at_twice_comes_back_right(
    use: str, fault: tuple[StatusCode, str], store: ServerStore, nodes: list[Node], clock: Clock
) -> None:
    method, call, expected = USES[use]
    nodes[0].faults[method] = [fault, fault]
    assert call(store) == expected
    assert [0.075 <= clock.slept[0] <= 0.1, 0.15 <= clock.slept[1] <= 0.2, len(clock.slept)] == [True, True, 2]


@pytest.mark.parametrize("use", ["an upsert", "a delete"])
def test_a_write_whose_answer_was_lost_is_done_once(use: str, store: ServerStore, nodes: list[Node]) -> None:
    method, call, expected = USES[use]
    nodes[0].lost[method] = [AWAY]
    assert call(store) == expected
    assert nodes[0].asked.count(method) == (3 if use == "an upsert" else 2)  # with that of the fixture


def test_a_stream_that_is_reset_in_a_search_is_asked_again(
    nodes: list[Node], stack: ExitStack, store: ServerStore
) -> None:
    both = open_at(stack, nodes[0].port, resetting_port(stack))
    assert both.count() == 3
    nodes[0].faults["QueryBatch"] = [AWAY]  # so that the node that resets its streams is asked
    expected = store.candidates(QUERY, {"dense": 9})["dense"]
    found = both.candidates(QUERY, {"dense": 9})["dense"]
    assert (found.ids, found.scores.tolist()) == (expected.ids, expected.scores.tolist())


def test_a_server_that_is_away_for_five_seconds_is_waited_for(
    store: ServerStore, nodes: list[Node], clock: Clock
) -> None:
    nodes[0].always = lambda: AWAY if clock.now < 5 else None
    assert store.count() == 3
    assert 5 <= clock.now < 8


def test_a_server_that_stays_away_is_an_error_that_says_how_often_it_was_asked(
    store: ServerStore, nodes: list[Node], clock: Clock
) -> None:
    nodes[0].always = lambda: AWAY
    asked = len(nodes[0].asked)
    with pytest.raises(ConnectionError, match=r"Cancelling all calls \(tried 9 times in [678]\.\d s\)"):
        store.count()
    assert len(nodes[0].asked) - asked == 9
    nodes[0].always = lambda: (StatusCode.INTERNAL, GOING)
    with pytest.raises(OSError, match=r"answered StatusCode.INTERNAL: (?s:.*) \(tried 9 times in [678]\.\d s\)"):
        store.count()


def test_no_try_begins_after_the_timeout(nodes: list[Node], clock: Clock, stack: ExitStack) -> None:
    nodes[0].always = lambda: AWAY
    with pytest.raises(ConnectionError, match=r"tried 5 times in 1\.\d s"):
        open_at(stack, nodes[0].port, timeout_s=2)
    assert clock.now < 2


@pytest.mark.parametrize(
    "fault",
    [
        (StatusCode.INTERNAL, "Service internal error: Out of disk"),
        (StatusCode.INVALID_ARGUMENT, "Wrong input"),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
    ],
)
def test_other_errors_are_not_repeated(
    fault: tuple[StatusCode, str], store: ServerStore, nodes: list[Node], clock: Clock
) -> None:
    nodes[0].always = lambda: fault
    with pytest.raises(OSError, match=r"tried 1 time in 0\.0 s"):
        add(store, ONE_MORE)
    assert clock.slept == []


def test_a_node_that_answers_too_late_is_left(nodes: list[Node], store: ServerStore, stack: ExitStack) -> None:
    both = open_at(stack, nodes[0].port, nodes[1].port)
    nodes[0].always = lambda: (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    with pytest.raises(ConnectionError):
        both.count()
    assert both.count() == 3


def test_a_collection_whose_shards_are_not_there_yet_is_waited_for(
    store: ServerStore, nodes: list[Node], clock: Clock, stack: ExitStack
) -> None:
    for method in ("Get of a collection", "Count"):
        nodes[0].faults[method] = [(StatusCode.INTERNAL, NO_SHARDS)] * 3
    with open_at(stack, nodes[0].port) as other:
        assert other.count() == 3
    assert len(clock.slept) == 6


def test_a_collection_of_whose_making_the_answer_was_lost_is_used(
    nodes: list[Node], clock: Clock, stack: ExitStack, random: np.random.Generator
) -> None:
    nodes[0].lost["Create"] = [AWAY]
    store = open_at(stack, nodes[0].port, nodes[1].port)
    store.bind("model")
    add(store, records(random, ["a"]))
    assert [node.asked.count("Create") for node in nodes] == [1, 1]
    assert (store.count(), open_at(stack, nodes[0].port).fingerprint) == (1, "model")


@pytest.mark.parametrize("dead", [0, 1])
def test_one_node_of_two_is_enough(
    dead: int, nodes: list[Node], store: ServerStore, clock: Clock, stack: ExitStack
) -> None:
    both = open_at(stack, nodes[0].port, nodes[1].port)
    nodes[dead].stop()
    for _ in range(2):
        assert both.count() == 3
    add(both, ONE_MORE)
    another = open_at(stack, nodes[0].port, nodes[1].port)
    assert [r.id for r in another.get(["d"])] == ["d"]
    assert clock.slept == []


def test_a_node_that_was_dead_is_asked_again(nodes: list[Node], stack: ExitStack, random: np.random.Generator) -> None:
    both = open_at(stack, nodes[0].port, nodes[1].port)
    nodes[0].stop()
    add(both, records(random, ["a", "b"]))
    nodes[0].start()
    nodes[1].stop()
    assert both.count() == 2
    assert nodes[0].asked[-1] == "Count"


def test_a_pickled_store_keeps_all_urls(nodes: list[Node], store: ServerStore, stack: ExitStack) -> None:
    pickled = pickle.dumps(open_at(stack, nodes[0].port, nodes[1].port))
    nodes[0].stop()
    with pickle.loads(pickled) as other:
        assert other.count() == 3


def test_a_delete_by_filter_that_may_have_been_done_is_not_repeated(
    store: ServerStore, nodes: list[Node], stack: ExitStack
) -> None:
    nodes[0].lost["Delete"] = [AWAY]
    with pytest.raises(
        ConnectionError, match="not repeated because the server may have done it: check before you repeat it"
    ):
        store.delete_where({"size": {"$exists": True}})
    assert nodes[0].asked.count("Delete") == 1


def test_a_delete_by_filter_that_was_not_sent_goes_to_another_node(
    nodes: list[Node], store: ServerStore, stack: ExitStack
) -> None:
    both = open_at(stack, nodes[0].port, nodes[1].port)
    nodes[0].stop()
    both._delete(where=models.Filter())
    assert both.count() == 0


def test_no_write_is_lost_or_applied_to_another_record_whatever_fails(
    nodes: list[Node], clock: Clock, stack: ExitStack, random: np.random.Generator
) -> None:
    store = open_at(stack, nodes[0].port, nodes[1].port)
    faults = [AWAY, (StatusCode.INTERNAL, GOING), (StatusCode.CANCELLED, "Stream removed (RST_STREAM)")]
    alive: dict[str, str] = {}
    for step in range(60):
        for node in nodes:
            for method in ("Upsert", "Delete", "Get", "Count", "Scroll"):
                for planned in (node.faults, node.lost):
                    planned[method] = [faults[i] for i in random.integers(0, 3, random.integers(0, 3))]
        ids = [f"r{i}" for i in random.integers(0, 20, 4)]
        if random.random() < 0.7:
            changed = [replace(record, text=f"{record.id} of step {step}") for record in records(random, ids)]
            add(store, changed)
            alive |= {record.id: record.text for record in changed}
        else:
            assert store.delete(ids) == len(alive.keys() & set(ids))
            alive = {id_: text for id_, text in alive.items() if id_ not in ids}
        assert store.count() == len(alive)
    assert {record.id: record.text for record in store.records()} == alive
    assert len(clock.slept) > 20


class FakeGrpcError(RpcError):  # type: ignore[misc]
    def code(self) -> StatusCode:
        return StatusCode.INTERNAL

    def details(self) -> str:
        return NO_SHARDS


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (UnexpectedResponse(503, "", b"busy", httpx.Headers()), 9),
        (UnexpectedResponse(500, "", GOING.encode(), httpx.Headers()), 9),
        (UnexpectedResponse(500, "", b"no space left", httpx.Headers()), 1),
        (UnexpectedResponse(404, "", b"not found", httpx.Headers()), 1),
        (ResponseHandlingException(httpx.ReadError("Connection reset by peer")), 9),
        (ResponseHandlingException(httpx.ConnectError("refused")), 9),
        (ResponseHandlingException(httpx.ReadTimeout("timed out")), 1),
        (ResponseHandlingException(ValueError("no JSON")), 1),
        (ResourceExhaustedResponse("too many", 3), 1),
        (FakeGrpcError(), 9),
    ],
)
def test_errors_of_both_transports_are_repeated_alike(
    error: Exception, tries: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def fail(name: str) -> bool:
        asked.append(name)
        raise error

    client = QdrantClient(":memory:")
    monkeypatch.setattr(client, "collection_exists", fail)
    with pytest.raises(OSError, match="Qdrant server"):
        ServerStore("http://x", client=client)
    assert asked == ["m3"] * tries


@pytest.mark.parametrize("open_one", [lambda: ServerStore("http://127.0.0.1:1", grpc_port=2, timeout_s=1), real_client])
def test_a_server_of_an_older_version_is_no_warning(
    open_one: Callable[[], object], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(qdrant_remote, "get_server_version", lambda *_: "1.18.2")
    monkeypatch.setattr(qdrant_remote, "Thread", Now)
    with suppress(ConnectionError):
        open_one()


class Now:
    """A thread that does its work when it is started."""

    def __init__(self, *, target: Callable[..., object], args: tuple[Any, ...], daemon: bool) -> None:
        self._work = partial(target, *args)

    def start(self) -> None:
        self._work()


def test_consistency_is_a_setting(random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    client, asked = QdrantClient(":memory:"), list[tuple[str, Any]]()

    def note(name: str) -> None:
        call = getattr(client, name)

        def noted(*args: Any, **given: Any) -> Any:
            asked.append((name, given.get("consistency", given.get("write_consistency_factor"))))
            return call(*args, **given)

        monkeypatch.setattr(client, name, noted)

    for name in ("create_collection", "retrieve", "scroll", "query_batch_points"):
        note(name)
    store = ServerStore("x", client=client, write_consistency_factor=2, read_consistency="majority")
    add(store, records(random, ["a"]))
    store.get(["a"])
    list(store.records())
    store.candidates(QUERY, {"dense": 1})
    majority = models.ReadConsistencyType.MAJORITY
    assert asked == [
        ("create_collection", 2), ("retrieve", majority), ("scroll", majority), ("query_batch_points", majority)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"read_consistency": "most"}, "'majority', 'quorum' or 'all', got 'most'"),
        ({"read_consistency": 0}, "read_consistency must be at least 1"),
        ({"write_consistency_factor": 0}, "write_consistency_factor must be at least 1, got 0"),
        ({"grpc_port": [1]}, "got 1 for 2 URLs"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_store(["http://a", "http://b"], **settings)


@pytest.mark.parametrize("where", [["http://a", "./folder"], [], ["http://a", None], "http://a:6333,http://b:6333"])
def test_places_that_are_not_the_urls_of_one_cluster_are_refused(where: Any) -> None:
    with pytest.raises(ValueError, match=r"URLs of one cluster|several URLs must be a list"):
        open_store(where)


def test_a_command_takes_urls_with_commas_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[Any]()
    monkeypatch.setattr("m3_integrations.store.open_store", lambda where, **_: opened.append(where))
    for where in ("http://a:6333, http://b:6333", "http://a:6333", "./a,b"):
        open_place(where, collection=None)
    assert opened == [["http://a:6333", "http://b:6333"], ["http://a:6333"], Path("./a,b")]
    with pytest.raises(ValueError, match="the URLs of one cluster"):
        open_place("http://a:6333,folder", collection=None)
