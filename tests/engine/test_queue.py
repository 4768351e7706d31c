"""Which texts share a pass and in which order, and that every request is served."""

import logging
import random
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m3_integrations.engine import engine
from m3_integrations.engine.queue import Request, Scheduler, Share
from m3_integrations.tokenizer import Tokens

NETWORK: Any = SimpleNamespace(dim=1, multi_vector_dim=None, modes=("dense",))


def scheduler(max_tokens: int = 100, *, is_packed: bool = False, n_workers: int = 0) -> Scheduler:
    return Scheduler(max_tokens, is_packed=is_packed, n_workers=n_workers, start_worker=lambda *_: threading.Thread())


def request_of(lengths: Sequence[int]) -> Request:
    texts = [Tokens(np.zeros(length, np.int32), 1, is_truncated=False) for length in lengths]
    return Request(texts, [NETWORK], multi_vector=False)


NAMES: dict[int, str] = {}


def added(queue: Scheduler, name: str, lengths: Sequence[int]) -> Request:
    request = request_of(lengths)
    NAMES[id(request)] = name
    queue.add(request)
    return request


def names(shares: list[Share]) -> list[tuple[str, list[int]]]:
    return [(NAMES[id(request)], positions) for request, positions in shares]


def finish(shares: list[Share]) -> None:
    for request, positions in shares:
        n = len(positions)
        output: Any = SimpleNamespace(
            is_finite=np.ones(n, bool), dense=np.zeros((n, 1), np.float32), lexical=None, multi_vector=None
        )
        request.receive(positions, output, 0)


def cost(shares: list[Share], *, is_packed: bool = False) -> int:
    lengths = [request.lengths[i] for request, positions in shares for i in positions]
    return sum(lengths) if is_packed else len(lengths) * max(lengths, default=0)


def test_short_requests_of_all_callers_share_a_pass_in_the_order_they_came() -> None:
    queue = scheduler()
    for name in "abc":
        added(queue, name, [10, 10])
    assert names(queue.take()) == [("a", [0, 1]), ("b", [0, 1]), ("c", [0, 1])]
    assert queue.take(wait=False) == []


def test_a_long_request_is_cut_longest_texts_first_with_equals_in_order() -> None:
    queue = scheduler(100)
    added(queue, "long", [20, 50, 20, 40, 20, 20])
    assert names(queue.take()) == [("long", [1, 3])]  # 2 x 50
    assert names(queue.take()) == [("long", [0, 2, 4, 5])]  # 4 x 20; nothing else is there


def test_padding_never_costs_more_than_half_of_the_texts() -> None:
    queue = scheduler(1000)
    added(queue, "long", [400, 100, 100, 100, 100])
    assert names(queue.take()) == [("long", [0])]  # 2 x 400 would be 800 for 500
    assert names(queue.take()) == [("long", [1, 2, 3, 4])]


def test_sorted_texts_hardly_need_padding() -> None:
    """Log-normal lengths, median 80. Passes of ten in the order of arrival would compute 2.8 times the tokens."""
    chance = random.Random(0)
    lengths = [min(max(round(80 * chance.lognormvariate(0, 0.85)), 8), 512) for _ in range(1000)]
    queue = scheduler(1024)
    added(queue, "long", lengths)
    costs = []
    while shares := queue.take(wait=False):
        costs.append(cost(shares))
    assert max(costs) <= 1024
    assert sum(lengths) <= sum(costs) < 1.1 * sum(lengths)


def test_a_packed_pass_costs_its_tokens_alone() -> None:
    queue = scheduler(1000, is_packed=True)
    added(queue, "long", [400, 100, 100, 300, 101])
    assert names(queue.take()) == [("long", [0, 3, 4, 1])]  # 901; another 100 would be 1001
    assert names(queue.take()) == [("long", [2])]


def test_a_text_longer_than_a_pass_goes_alone() -> None:
    queue = scheduler(10)
    added(queue, "long", [30, 31, 5])
    assert [names(queue.take()) for _ in range(3)] == [[("long", [1])], [("long", [0])], [("long", [2])]]


def test_a_short_request_waits_for_one_long_pass_at_most() -> None:
    """A short request comes while long ones wait: at most one of their passes runs before its own."""
    chance = random.Random(1)
    queue = scheduler(100)
    added(queue, "long", [20] * 2000)
    for turn in range(300):
        for _ in range(chance.randrange(7)):  # passes of long requests, or of earlier short ones
            queue.take()
            if chance.random() < 0.5:
                added(queue, "earlier", [5])
        while queue._short:
            queue.take()
        added(queue, f"short {turn}", [10])
        order = [names(queue.take())[0][0] for _ in range(2)]
        assert f"short {turn}" in order


def test_while_short_requests_come_a_pass_of_long_ones_is_small() -> None:
    queue = scheduler(100)
    added(queue, "long", [5] * 2000)
    assert cost(queue.take()) == 100
    for _ in range(20):
        added(queue, "short", [10])
        shares = [queue.take(), queue.take()]
        assert [cost(each) <= 25 for each in shares if names(each)[0][0] == "long"] in ([True], [])
    sizes = [cost(queue.take()) for _ in range(20)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 100, "passes are full again when no short request came for a while"


@pytest.mark.parametrize("n_tokens", [3, 25])
def test_long_requests_never_starve_however_many_short_ones_come(n_tokens: int) -> None:
    queue = scheduler(100)
    added(queue, "long", [20] * 40)
    order = []
    for _ in range(60):
        for _ in range(100 // n_tokens):  # several full passes
            added(queue, "short", [n_tokens])
        order.append(names(queue.take())[0][0])
    gaps = "".join("L" if name == "long" else "s" for name in order).split("L")
    assert max(map(len, gaps)) <= 4
    assert order.count("long") >= 10


def test_long_requests_take_turns() -> None:
    queue = scheduler(100)
    added(queue, "a", [50] * 6)
    added(queue, "b", [50] * 4)
    order = [queue.take() for _ in range(5)]
    assert [names(shares)[0][0] for shares in order] == ["a", "b", "a", "b", "a"]
    assert queue.take(wait=False) == []


def test_long_requests_fill_what_another_leaves_free_with_texts_of_like_length() -> None:
    queue = scheduler(100)
    added(queue, "a", [30, 28])
    added(queue, "b", [90, 29, 2])
    assert names(queue.take()) == [("a", [0, 1]), ("b", [1])]  # 3 x 30, not the 90 and not the 2
    assert names(queue.take()) == [("b", [0])]


def test_after_a_failure_each_request_is_alone_and_comes_first() -> None:
    queue = scheduler(100)
    a, b = added(queue, "a", [10]), added(queue, "b", [10, 10])
    shares = queue.take()
    added(queue, "later", [10])
    queue.put_back(shares, alone=True)
    passes = [queue.take() for _ in range(3)]
    assert [names(shares) for shares in passes] == [[("a", [0])], [("b", [0, 1])], [("later", [0])]]
    for shares in passes:
        finish(shares)
    assert a.future.result(0) is None
    assert b.future.result(0) is None


def test_out_of_memory_makes_every_later_pass_smaller_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    queue = scheduler(100)
    added(queue, "long", [20] * 5)
    shares = queue.take()
    assert names(shares) == [("long", [0, 1, 2, 3, 4])]
    queue.halve(100)
    queue.put_back(shares, alone=False)
    shares = queue.take()
    assert cost(shares) <= 50
    queue.halve(40)
    queue.put_back(shares, alone=False)
    assert [names(queue.take()) for _ in range(5)] == [[("long", [i])] for i in range(5)]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "out of memory: for now a forward pass has at most 50 tokens"
    ]


def test_a_pass_is_never_halved_to_nothing() -> None:
    queue = scheduler(100)
    for _ in range(20):
        queue.halve(1)
    added(queue, "a", [3, 3])
    assert names(queue.take()) == [("a", [0])]


def test_passes_grow_again_when_none_has_failed_for_long(caplog: pytest.LogCaptureFixture) -> None:
    queue = scheduler(1000)
    queue.halve(1000)
    n_good = 0
    while queue.max_tokens < 1000:
        queue.count_good_pass()
        n_good += 1
    assert 100 < n_good < 300, "passes grow back, but not at once, which would fail again"
    with caplog.at_level(logging.INFO):
        queue.halve(200)
    assert queue.max_tokens == 100


def test_a_cancelled_request_takes_no_place() -> None:
    queue = scheduler(100)
    long = added(queue, "long", [50] * 6)
    first = queue.take()
    short = added(queue, "short", [10])
    assert long.future.cancel()
    assert short.future.cancel()
    assert queue.take(wait=False) == []
    finish(first)  # comes too late and changes nothing
    with pytest.raises(CancelledError):
        long.future.result(0)


@pytest.mark.parametrize("wait", [False, True])
def test_a_caller_who_leaves_while_a_pass_is_chosen_does_not_hide_the_others(
    wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, taken = scheduler(100), list[list[Share]]()
    added(queue, "long", [50] * 6)
    short = added(queue, "short", [10])
    look = queue._drop_ended

    def look_too_early() -> None:
        look()
        short.future.cancel()

    monkeypatch.setattr(queue, "_drop_ended", look_too_early)
    worker = threading.Thread(target=lambda: taken.append(queue.take(wait=wait)), daemon=True)
    worker.start()
    worker.join(10)
    assert [names(shares) for shares in taken] == [[("long", [0, 1])]]


def test_a_request_ends_once() -> None:
    request = request_of([1, 1])
    request.end(ValueError("first"))
    request.end(ValueError("second"))
    finish([Share(request, [0, 1])])
    with pytest.raises(ValueError, match="first"):
        request.future.result(0)


def test_closing_answers_everybody_and_takes_no_more() -> None:
    queue = scheduler()
    waiting = [added(queue, "a", [10]), added(queue, "b", [90])]
    queue.close()
    for request in waiting:
        with pytest.raises(RuntimeError, match="shut down"):
            request.future.result(0)
    assert queue.take() == []
    with pytest.raises(RuntimeError, match="shut down"):
        added(queue, "late", [1])


def test_closing_wakes_a_worker_that_waits() -> None:
    queue, taken = scheduler(), list[object]()
    worker = threading.Thread(target=lambda: taken.append(queue.take()))
    worker.start()
    queue.close()
    worker.join(30)
    assert taken == [[]]


def test_when_the_last_worker_ends_everybody_is_answered_and_the_next_request_starts_another() -> None:
    started: list[int] = []

    def start(_: Scheduler, number: int) -> threading.Thread:
        started.append(number)
        return threading.Thread()

    queue = Scheduler(100, is_packed=False, n_workers=2, start_worker=start)
    request = added(queue, "a", [10])
    assert started == [0, 1]
    queue.leave(1, ValueError("a"))
    assert not request.future.done()
    queue.leave(0, ValueError("b"))
    with pytest.raises(RuntimeError, match=r"worker thread ended.*ValueError\('b'\)") as caught:
        request.future.result(0)
    assert isinstance(caught.value.__cause__, ValueError)
    added(queue, "b", [10])
    assert started == [0, 1, 0, 1]
    assert names(queue.take()) == [("b", [0])]


def test_a_system_without_threads_is_an_error_and_leaves_nothing_in_the_queue() -> None:
    def refuse(*_: object) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    queue = Scheduler(100, is_packed=False, n_workers=1, start_worker=refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        added(queue, "a", [10])
    assert queue.take(wait=False) == []


@pytest.mark.parametrize("is_packed", [False, True])
def test_every_text_has_its_turn_once_within_the_passes_before_it(is_packed: bool) -> None:
    """Random arrivals while passes run. While a request waits, every other request gets at most one turn for each
    turn of this one, and a long request gets its turn after at most four passes of short ones."""
    for seed in range(30):
        chance = random.Random(seed)
        queue, seen, now = scheduler(100, is_packed=is_packed), dict[int, list[int]](), 0
        arrived: dict[int, tuple[Request, int]] = {}
        most_alive: dict[int, int] = {}
        while len(arrived) < 60 or most_alive:
            for _ in range(chance.randrange(4) if len(arrived) < 60 else 0):
                longest = chance.choice([8, 60, 130])
                request = added(queue, "", [chance.randint(3, longest) for _ in range(chance.randint(1, 8))])
                arrived[id(request)] = request, now
                most_alive[id(request)] = 0
            most_alive = {key: max(most, len(most_alive)) for key, most in most_alive.items()}
            shares = queue.take(wait=False)
            now += 1
            assert sum(len(positions) for _, positions in shares) <= 1 or cost(shares, is_packed=is_packed) <= 100
            for request, positions in shares:
                seen.setdefault(id(request), []).extend(positions)
                finish([Share(request, positions)])
                if request.future.done():
                    passes = now - arrived[id(request)][1]
                    turns = len(request.lengths) * most_alive.pop(id(request))
                    assert passes <= turns * (2 if request.is_short else 5), "waited beyond its turn"
        for key, (request, _) in arrived.items():
            assert sorted(seen[key]) == list(range(len(request.lengths)))
        assert queue.take(wait=False) == []


@pytest.mark.parametrize(
    ("device", "dtype", "amx", "tokens"),
    [
        ("cpu", torch.float32, True, 1024),
        ("cpu", torch.int8, True, 1024),
        ("cpu", torch.bfloat16, False, 1024),
        ("cpu", torch.bfloat16, True, 2048),
        ("cuda", torch.bfloat16, True, 16_384),
    ],
)
def test_a_pass_is_larger_where_it_takes_less_time(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, *, amx: bool, tokens: int
) -> None:
    monkeypatch.setattr(engine, "has_amx", lambda: amx)
    assert engine._tokens_per_pass(torch.device(device), dtype) == tokens
