"""Which waiting texts share the next forward pass, whoever asked for them."""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

from m3_integrations.batching import PassBudget

Work = TypeVar("Work")

_logger = logging.getLogger(__name__)

_SHORT_SHARE = 4
"""A request of at most a quarter of a pass is a short one, which overtakes the long ones. While short ones come, passes
of long ones are a quarter as large, so that nobody short waits for a whole one."""
_PASSES_TO_RECOVER = 256
"""After so many passes without a failure, what a lack of memory halved is doubled: others may have given it back."""
_CALM_PASSES = 16
"""After so many passes of long ones in a row they are whole again."""
_MOST_SHORT_PASSES = 16
"""So many passes of short requests at most come before a pass of long ones that wait, however small they are."""


class Request(Generic[Work]):
    """Texts of one caller, on their way through the network. Ends once: with all results, an error, or cancelled.

    Args:
        lengths: Tokens of every text; one or more texts.
        work: What the caller's side needs to know about it.
        max_tokens: The most tokens of a pass that its texts may be in; None for what suits the device.
    """

    def __init__(self, lengths: Sequence[int], work: Work, *, max_tokens: int | None = None) -> None:
        self.lengths, self.work, self.max_tokens = lengths, work, max_tokens
        self.future: Future[None] = Future()
        self.is_alone = self.is_short = False
        self._waiting = sorted(
            range(len(lengths)), key=lambda i: (lengths[i], -i)
        )  # the longest, first of equals, last
        self._n_left = len(lengths)
        self._has_ended = False
        self._lock = threading.Lock()

    @property
    def is_waiting(self) -> bool:
        """Whether texts of it wait for a pass."""
        return bool(self._waiting) and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._has_ended or self.future.cancelled()

    def pop(self, longest: int | None) -> int:
        """Take out the longest text, or that of at most this length, or the shortest one if all are longer."""
        if longest is None or self.lengths[self._waiting[-1]] <= longest:
            return self._waiting.pop()
        place = bisect_right(self._waiting, longest, key=self.lengths.__getitem__)
        return self._waiting.pop(max(place - 1, 0))

    def put_back(self, positions: Sequence[int]) -> None:
        """Let texts wait again."""
        for position in positions:
            insort(self._waiting, position, key=self._order)

    def _order(self, position: int) -> tuple[int, int]:
        return self.lengths[position], -position

    def answer(self, n: int) -> None:
        """Note that n texts have their vectors; with the last of them the caller goes on."""
        with self._lock:
            self._n_left -= n
            is_complete = self._n_left == 0
        if is_complete:
            self._end(None)

    def fail(self, error: BaseException) -> None:
        """End with an error, unless it has ended."""
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
        if not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


class Share(NamedTuple, Generic[Work]):
    """The texts of one request in a pass: their positions in the request."""

    request: Request[Work]
    positions: list[int]


class Scheduler(Generic[Work]):
    """A queue that any number of threads fill and the workers of one or more devices empty.

    Short requests go first, together, oldest first. Long ones take turns, and get one pass for every pass's worth of
    short requests while both are waiting, so that nobody waits for ever.

    Args:
        max_tokens: Tokens of a pass, padding included, where a request does not ask for fewer.
        is_packed: Whether a pass costs the sum of its texts' tokens, or its rows times its longest text.
        n_workers: How many workers there are to be.
        start_worker: Starts one, given the queue and a number; called when a request comes and it is not there.
    """

    def __init__(
        self,
        max_tokens: int,
        *,
        is_packed: bool,
        n_workers: int,
        start_worker: Callable[[Scheduler[Work], int], object],
    ) -> None:
        self.max_tokens = self._usual_max_tokens = max_tokens
        self._ceiling: int | None = None
        self._was_halved = False
        self._n_good_passes = 0
        self._is_packed = is_packed
        self._n_workers = n_workers
        self._start_worker = start_worker
        self._workers: set[int] = set()
        self._short: deque[Request[Work]] = deque()
        self._long: deque[Request[Work]] = deque()
        self._overtaken_tokens = 0.0
        self._n_calm_passes = _CALM_PASSES
        self._is_closed = False
        self._changed = threading.Condition()
        self._process_id = os.getpid()

    def add(self, request: Request[Work]) -> None:
        """Queue a request, and start the workers that are not there.

        Raises:
            RuntimeError: If the queue was closed, or the system gives no thread.
        """
        with self._changed:
            if self._is_closed:
                raise RuntimeError("this encoder's network was shut down: open another with M3Encoder(...)")
            for number in set(range(self._n_workers)) - self._workers:
                self._start_worker(self, number)
                self._workers.add(number)
            request.is_short = sum(request.lengths) * _SHORT_SHARE <= self.max_tokens
            self._lane_of(request).append(request)
            self._changed.notify()

    def take(self, *, wait: bool = True) -> list[Share[Work]]:
        """Give the texts of the next pass; none if the queue was closed, or if none waits and wait is false."""
        with self._changed:
            while True:
                self._drop_ended()
                if shares := self._choose():
                    self._changed.notify()  # another worker looks for more
                    return shares
                if self._short or self._long:
                    continue  # a caller left just now, others may be there
                if self._is_closed or not wait:
                    return []
                self._changed.wait()

    def put_back(self, shares: Sequence[Share[Work]], *, alone: bool) -> None:
        """Let the texts of a pass that failed wait again, before all others.

        Args:
            shares: What `take` gave.
            alone: Whether each request is to have passes of its own from now on.
        """
        with self._changed:
            for request, positions in reversed(shares):
                request.put_back(positions)
                request.is_alone |= alone
                lane = self._lane_of(request)
                if request in lane:
                    lane.remove(request)
                lane.appendleft(request)
            self._changed.notify()

    def halve(self, max_tokens: int) -> None:
        """Make passes at most half as large as one of so many tokens; the first time, log it.

        After some hundred passes without a failure they may be larger again.
        """
        with self._changed:
            level = logging.INFO if self._was_halved else logging.WARNING
            self._was_halved, self._n_good_passes = True, 0
            self._ceiling = max(min(self._ceiling or max_tokens, max_tokens) // 2, 1)
            self.max_tokens = min(self._usual_max_tokens, self._ceiling)
        _logger.log(level, "out of memory: a forward pass holds at most %d tokens for now", self._ceiling)

    def count_good_pass(self) -> None:
        """Note a pass that did not fail."""
        with self._changed:
            if self._ceiling is None:
                return
            self._n_good_passes += 1
            if self._n_good_passes == _PASSES_TO_RECOVER:
                self._n_good_passes, ceiling = 0, 2 * self._ceiling
                self._ceiling = ceiling if ceiling < self._usual_max_tokens else None
                self.max_tokens = min(self._usual_max_tokens, ceiling)

    def leave(self, worker: int, error: BaseException | None) -> None:
        """Note that a worker has ended; if it was the last one, everybody who waits gets an error."""
        with self._changed:
            self._workers.discard(worker)
            self._changed.notify_all()  # it may have been woken for work that it did not take
            waiting = [] if self._workers else self._clear()
        for request in waiting:
            request.fail(worker_died(error))

    def close(self) -> None:
        """Take no more requests, give every waiting one an error, and let the workers end."""
        if os.getpid() != self._process_id:
            return  # after a fork the lock may be held by a thread that is not there
        with self._changed:
            self._is_closed = True
            waiting = self._clear()
            self._changed.notify_all()
        for request in waiting:
            request.fail(RuntimeError("this encoder's network was shut down before the texts' turn came"))

    def _clear(self) -> list[Request[Work]]:
        waiting = [request for request in (*self._short, *self._long) if request.is_waiting]
        self._short.clear()
        self._long.clear()
        return waiting

    def _limit_of(self, request: Request[Work]) -> int:
        limit = request.max_tokens or self.max_tokens
        return limit if self._ceiling is None else min(limit, self._ceiling)

    def _lane_of(self, request: Request[Work]) -> deque[Request[Work]]:
        return self._short if request.is_short else self._long

    def _drop_ended(self) -> None:
        for lane in (self._short, self._long):
            if not all(request.is_waiting for request in lane):
                waiting = [request for request in lane if request.is_waiting]
                lane.clear()
                lane.extend(waiting)

    def _choose(self) -> list[Share[Work]]:
        is_long_turn = bool(self._long) and (not self._short or self._overtaken_tokens >= self.max_tokens)
        lane = self._long if is_long_turn else self._short
        divisor = _SHORT_SHARE if is_long_turn and self._n_calm_passes < _CALM_PASSES else 1
        chosen = PassBudget(self.max_tokens, self._is_packed)
        shares = self._fill(chosen, lane, divisor)
        if shares:
            self._n_calm_passes = self._n_calm_passes + 1 if is_long_turn else 0
        if is_long_turn or not self._long:
            self._overtaken_tokens = 0.0
        else:
            self._overtaken_tokens += max(chosen.cost, self.max_tokens / _MOST_SHORT_PASSES)
        lane.rotate(-1)  # what is left of the first comes after the others
        return shares

    def _fill(self, chosen: PassBudget, lane: deque[Request[Work]], divisor: int) -> list[Share[Work]]:
        """Take texts for a pass out of requests: as many as fit of the first, then of the others in their order."""
        shares: list[Share[Work]] = []
        for request in lane:
            if shares and (request.is_alone or shares[0].request.is_alone):
                continue
            limit = max(self._limit_of(request) // divisor, 1)
            if shares and limit < chosen.max_tokens:
                continue  # it wants smaller passes than this one
            if not shares:
                chosen.max_tokens = limit
            if positions := _take_fitting(request, chosen):
                shares.append(Share(request, positions))
            if chosen.is_full:
                break
        return shares


def _take_fitting(request: Request[Work], chosen: PassBudget) -> list[int]:
    """Move texts from a request to a pass until none fits."""
    positions: list[int] = []
    while request.is_waiting:
        position = request.pop(chosen.longest if chosen.rows else None)
        if not chosen.has_room(request.lengths[position]):
            request.put_back([position])
            break
        chosen.add(request.lengths[position])
        positions.append(position)
    return positions


def worker_died(error: BaseException | None) -> RuntimeError:
    """Give the error of a request whose worker ended before it could answer; the next request starts another."""
    reason = f": {error!r}" if error is not None else ""
    died = RuntimeError(f"the encoder's worker thread ended before these texts were encoded{reason}; ask again")
    died.__cause__ = error
    return died
