"""Which texts share a pass, in which order, and that nobody waits for ever."""

import random
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError

import pytest

from m3_integrations.engine.scheduler import Request, Scheduler, Share


def scheduler(max_tokens: int = 100, *, is_packed: bool = False, n_workers: int = 0) -> Scheduler[str]:
    return Scheduler(max_tokens, is_packed=is_packed, n_workers=n_workers, start_worker=lambda *_: None)


def added(queue: Scheduler[str], name: str, lengths: Sequence[int], max_tokens: int | None = None) -> Request[str]:
    request = Request(lengths, name, max_tokens=max_tokens)
    queue.add(request)
    return request


def names(shares: list[Share[str]]) -> list[tuple[str, list[int]]]:
    return [(request.work, positions) for request, positions in shares]


def finish(shares: list[Share[str]]) -> None:
    for request, positions in shares:
        request.answer(len(positions))


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
    """Log-normal lengths, median 80; in the order of arrival, ten at a time, it would be 2.8 times the tokens."""
    chance = random.Random(0)
    lengths = [min(max(round(80 * chance.lognormvariate(0, 0.85)), 8), 512) for _ in range(1000)]
    queue = scheduler(1024)
    added(queue, "long", lengths)
    costs = []
    while shares := queue.take(wait=False):
        costs.append(cost(shares, is_packed=False))
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


def test_short_requests_overtake_long_ones_between_passes() -> None:
    queue = scheduler(100)
    added(queue, "long", [50] * 6)
    assert names(queue.take()) == [("long", [0, 1])]
    added(queue, "short", [10])
    assert names(queue.take()) == [("short", [0])]
    assert names(queue.take()) == [("long", [2])]


def test_while_short_requests_come_long_passes_are_a_quarter_as_large() -> None:
    queue = scheduler(100)
    added(queue, "long", [25] * 28)
    assert len(queue.take()[0].positions) == 4
    added(queue, "short", [10])
    assert names(queue.take()) == [("short", [0])]
    assert [len(queue.take()[0].positions) for _ in range(18)] == [1] * 16 + [4] * 2


def test_long_ones_get_a_pass_for_every_pass_worth_of_short_ones() -> None:
    queue = scheduler(100)
    added(queue, "long", [50] * 6)
    order = []
    for _ in range(12):
        added(queue, "short", [25])  # one comes before every pass: without a turn of its own the long one never ran
        order.append(queue.take()[0].request.work)
    assert order == [*["short"] * 4, "long", *["short"] * 3, "long", *["short"] * 3]


def test_tiny_passes_count_as_a_sixteenth_each() -> None:
    queue = scheduler(1600)
    added(queue, "long", [500] * 9)
    order = []
    for _ in range(34):
        added(queue, "short", [3])
        order.append(queue.take()[0].request.work)
    assert order == [*["short"] * 16, "long", *["short"] * 16, "long"]


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


def test_a_request_that_wants_small_passes_makes_and_joins_no_larger_ones() -> None:
    queue = scheduler(100)
    added(queue, "a", [20, 20])
    added(queue, "small", [20, 20], max_tokens=20)
    added(queue, "b", [20, 20])
    assert names(queue.take()) == [("a", [0, 1]), ("b", [0, 1])]
    assert names(queue.take()) == [("small", [0])]
    assert names(queue.take()) == [("small", [1])]


def test_a_request_may_want_larger_passes_than_others_until_memory_runs_out() -> None:
    queue = scheduler(100)
    added(queue, "large", [50] * 20, max_tokens=500)
    assert names(queue.take()) == [("large", list(range(10)))]
    queue.halve(500)
    assert names(queue.take()) == [("large", list(range(10, 15)))]
    assert queue.max_tokens == 100


def test_after_a_failure_each_request_is_alone_and_comes_first() -> None:
    queue = scheduler(100)
    a, b = added(queue, "a", [10]), added(queue, "b", [10, 10])
    shares = queue.take()
    added(queue, "later", [10])
    queue.put_back(shares, alone=True)
    assert names(queue.take()) == [("a", [0])]
    assert names(queue.take()) == [("b", [0, 1])]
    assert names(queue.take()) == [("later", [0])]
    a.answer(1)
    b.answer(2)
    assert a.future.done()
    assert b.future.result(0) is None


def test_out_of_memory_halves_every_later_pass_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    queue = scheduler(100)
    added(queue, "long", [20] * 5)
    shares = queue.take()
    assert names(shares) == [("long", [0, 1, 2, 3, 4])]
    queue.halve(100)
    queue.put_back(shares, alone=False)
    shares = queue.take()
    assert names(shares) == [("long", [0, 1])]
    queue.halve(40)
    queue.put_back(shares, alone=False)
    assert [names(queue.take()) for _ in range(5)] == [[("long", [i])] for i in range(5)]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "out of memory: a forward pass holds at most 50 tokens for now"
    ]


def test_passes_grow_again_when_none_has_failed_for_long(caplog: pytest.LogCaptureFixture) -> None:
    queue = scheduler(100)
    queue.halve(60)
    sizes = []
    for _ in range(256 * 2 + 1):
        sizes.append(queue.max_tokens)
        queue.count_good_pass()
    assert sizes == [*[30] * 256, *[60] * 256, 100]
    queue.halve(100)
    assert queue.max_tokens == 50
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    for _ in range(255):
        queue.count_good_pass()
    queue.halve(40)  # which begins the count anew
    queue.count_good_pass()
    assert queue.max_tokens == 20


def test_a_cancelled_request_takes_no_place() -> None:
    queue = scheduler(100)
    long = added(queue, "long", [50] * 6)
    first = queue.take()
    short = added(queue, "short", [10])
    assert long.future.cancel()
    assert short.future.cancel()
    assert queue.take(wait=False) == []
    finish(first)  # comes too late, and does no harm
    with pytest.raises(CancelledError):
        long.future.result(0)


@pytest.mark.parametrize("wait", [False, True])
def test_a_caller_who_leaves_while_a_pass_is_chosen_does_not_hide_the_others(
    wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, taken = scheduler(100), list[list[Share[str]]]()
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
    request = Request([1, 1], "a")
    request.fail(ValueError("first"))
    request.fail(ValueError("second"))
    request.answer(2)
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
        queue.add(Request([1], "late"))


def test_closing_wakes_a_worker_that_waits() -> None:
    queue, taken = scheduler(), list[object]()
    worker = threading.Thread(target=lambda: taken.append(queue.take()))
    worker.start()
    queue.close()
    worker.join(30)
    assert taken == [[]]


def test_when_the_last_worker_ends_everybody_is_answered_and_the_next_request_starts_another() -> None:
    started: list[int] = []
    queue: Scheduler[str] = Scheduler(
        100, is_packed=False, n_workers=2, start_worker=lambda _, number: started.append(number)
    )
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
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    queue: Scheduler[str] = Scheduler(100, is_packed=False, n_workers=1, start_worker=refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        added(queue, "a", [10])
    assert queue.take(wait=False) == []


@pytest.mark.parametrize("is_packed", [False, True])
def test_every_text_has_its_turn_once_within_the_passes_before_it(is_packed: bool) -> None:
    """Random arrivals while passes run. While a request waits, every other one has at most a turn for each of its own,
    and a turn of a long one comes after sixteen passes of short ones at the latest."""
    for seed in range(30):
        chance = random.Random(seed)
        queue, seen, now = scheduler(100, is_packed=is_packed), dict[str, list[int]](), 0
        arrived: dict[str, tuple[Request[str], int]] = {}
        most_alive: dict[str, int] = {}
        while len(arrived) < 60 or most_alive:
            for _ in range(chance.randrange(4) if len(arrived) < 60 else 0):
                longest = chance.choice([8, 60, 130])
                lengths = [chance.randint(3, longest) for _ in range(chance.randint(1, 8))]
                request = added(queue, f"{len(arrived)}", lengths)
                arrived[request.work] = request, now
                most_alive[request.work] = 0
            most_alive = {name: max(most, len(most_alive)) for name, most in most_alive.items()}
            shares = queue.take(wait=False)
            now += 1
            assert sum(len(positions) for _, positions in shares) <= 1 or cost(shares, is_packed) <= 100
            for request, positions in shares:
                seen.setdefault(request.work, []).extend(positions)
                request.answer(len(positions))
                if request.future.done():
                    passes = now - arrived[request.work][1]
                    turns = len(request.lengths) * most_alive.pop(request.work)
                    assert passes <= turns * (2 if request.is_short else 17), "waited beyond its turn"
        for name, (request, _) in arrived.items():
            assert sorted(seen[name]) == list(range(len(request.lengths)))
        assert queue.take(wait=False) == []


def cost(shares: list[Share[str]], is_packed: bool) -> int:
    lengths = [request.lengths[i] for request, positions in shares for i in positions]
    return sum(lengths) if is_packed else len(lengths) * max(lengths)
