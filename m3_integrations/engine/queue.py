"""The queue: it chooses the waiting texts, from all callers, that share the next forward pass."""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, NamedTuple
from weakref import WeakSet

import numpy as np

from m3_integrations.model import ForwardPass, M3Network
from m3_integrations.tokenizer import Tokens
from m3_integrations.vectors import LexicalRows, M3Vectors, MultiVectorRows, offsets_of

_logger = logging.getLogger(__name__)

_SHARE: Final = 4
"""How short and long requests share the device. A request of at most a quarter of a pass is short. After at most four
passes of short requests comes one of long requests. It is a quarter as large, until four such passes ran in a row. So a
long request always gets a turn, and a short request that follows another soon waits for at most a quarter of a pass."""

_MAX_PADDING: Final = 1.5
"""A padded pass computes at most this many times the tokens of its texts."""

_GROWTH: Final = 1 + 1 / 256
"""Growth of the pass size with every good pass after a lack of memory: about 180 passes undo one halving."""


class Request:
    """The texts of one call while they are encoded. A request ends once: complete, with an error, or cancelled.

    Args:
        texts: The texts to encode.
        networks: The network on every worker's device.
        multi_vector: Whether to compute token vectors.

    Attributes:
        future: Ends with the request.
        finished_texts: Gets the number of this request's texts in every finished pass, and None at the end.
        is_alone: Whether its texts must not share a pass with other requests, because such a pass failed.
        is_short: Whether it goes before long requests.
    """

    def __init__(self, texts: Sequence[Tokens], networks: Sequence[M3Network], *, multi_vector: bool) -> None:
        self.texts, self.networks, self.wants_multi_vector = texts, networks, multi_vector
        self.lengths = [len(text.ids) for text in texts]
        self.future: Future[None] = Future()
        self.finished_texts: SimpleQueue[int | None] = SimpleQueue()
        self.is_alone = self.is_short = False
        self._order = [(length, -i) for i, length in enumerate(self.lengths)]
        self._waiting = sorted(range(len(texts)), key=self._order.__getitem__)  # by length; the longest is at the end
        self._n_left = len(texts)
        self._has_ended = False
        self._lock = threading.Lock()
        network = networks[0]
        self._dense = np.empty((len(texts), network.dim), dtype=np.float32)
        self._lexical: list[tuple[Sequence[int], LexicalRows]] = []
        self._has_lexical = "lexical" in network.modes
        self._multi_vector: MultiVectorRows | None = None
        if multi_vector and network.multi_vector_dim is not None:
            offsets = offsets_of([len(text.ids) - text.n_cls for text in texts])
            flat = np.empty((offsets[-1], network.multi_vector_dim), dtype=np.float32)
            self._multi_vector = MultiVectorRows(offsets, flat)

    @property
    def is_waiting(self) -> bool:
        """Whether some of its texts wait for a pass."""
        return bool(self._waiting) and not self._has_ended and not self.future.cancelled()

    def take_fitting(self, budget: PassBudget) -> list[int]:
        """Move texts into a pass until none fits, the longest first; return their positions."""
        positions: list[int] = []
        while self._waiting:
            place = len(self._waiting) - 1
            if budget.n_texts and self.lengths[self._waiting[place]] > budget.longest:
                place = max(bisect_right(self._waiting, budget.longest, key=self.lengths.__getitem__) - 1, 0)
            if not budget.add(self.lengths[self._waiting[place]]):
                break
            positions.append(self._waiting.pop(place))
        return positions

    def put_back(self, positions: Sequence[int]) -> None:
        """Put texts back among those that wait."""
        for position in positions:
            insort(self._waiting, position, key=self._order.__getitem__)

    def receive(self, positions: Sequence[int], output: ForwardPass, first: int) -> None:
        """Copy the results of these texts from a pass, beginning with its row first. The last texts end the request."""
        if self._has_ended or self.future.cancelled():
            return
        rows = slice(first, first + len(positions))
        if not output.is_finite[rows].all():
            self.end(FloatingPointError("the network computed infinite or NaN values: load it with dtype='float32', or "
                                        "check its weights if it is"))  # fmt: skip
            return
        self._dense[positions] = output.dense[rows]
        if output.lexical is not None:
            is_all = len(positions) == len(output.lexical.offsets) - 1
            self._lexical.append((positions, output.lexical if is_all else output.lexical[rows]))
        if (ours := self._multi_vector) is not None and (theirs := output.multi_vector) is not None:
            for row, i in enumerate(positions, first):
                tokens = theirs.flat[theirs.offsets[row] : theirs.offsets[row + 1]]
                ours.flat[ours.offsets[i] : ours.offsets[i + 1]] = tokens
        self.finished_texts.put(len(positions))
        with self._lock:
            self._n_left -= len(positions)
        if self._n_left == 0:
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """End the request, with an error if there is one. Does nothing if it has already ended."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
        if self.future.set_running_or_notify_cancel():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)
        self.finished_texts.put(None)

    def vectors(self, vocabulary: Sequence[str]) -> M3Vectors:
        """Return the vectors of all texts, in their order. The request must have ended without an error."""
        lexical = None
        if self._has_lexical:
            parts = [rows for _, rows in self._lexical]
            lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(part.offsets) for part in parts)])
            indices = np.concatenate([np.empty(0, np.int32), *(part.indices for part in parts)])
            values = np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)])
            lexical = LexicalRows(offsets_of(lengths), indices, values, vocabulary)
            came = [i for positions, _ in self._lexical for i in positions]
            if came != sorted(came):
                lexical = lexical.take(np.argsort(came))
        return M3Vectors(dense=self._dense, lexical=lexical, multi_vector=self._multi_vector)


@dataclass(slots=True)
class PassBudget:
    """Counts the texts and tokens of a forward pass, and decides whether another text fits.

    Attributes:
        max_tokens: Tokens that the pass may have, padding included; a single text may be longer.
        is_packed: Whether texts are packed without padding, or padded to the longest.
        n_texts: Texts so far.
        longest: Tokens of the longest of them.
        tokens: Tokens of all of them.
        is_full: Whether no text fits any more.
    """

    max_tokens: float
    is_packed: bool
    n_texts: int = 0
    longest: int = 0
    tokens: int = 0
    is_full: bool = False

    def add(self, length: int) -> bool:
        """Count a text of this many tokens if it fits, and return whether it does. Any text fits in an empty pass."""
        tokens, longest = self.tokens + length, max(self.longest, length)
        if self.n_texts:
            cost = tokens if self.is_packed else (self.n_texts + 1) * longest
            # Padding costs as much as text, except in a small pass, whose time is spent reading the weights.
            most = self.max_tokens if self.is_packed else max(_MAX_PADDING * tokens, self.max_tokens / 8)
            if cost > min(most, self.max_tokens):
                return False
        self.n_texts, self.tokens, self.longest = self.n_texts + 1, tokens, longest
        self.is_full = (tokens + 1 if self.is_packed else (self.n_texts + 1) * longest) > self.max_tokens
        return True


class Share(NamedTuple):
    """The texts of one request in a pass: their positions in the request."""

    request: Request
    positions: list[int]


class Scheduler:
    """A queue to which any thread adds requests, and from which the workers of one or more devices take texts.

    Short requests go first, together, oldest first. Long requests take turns, and get a pass after at most four passes
    of short ones, so every request is served.

    Args:
        max_tokens: The most tokens of a pass, padding included.
        is_packed: Whether a pass costs the sum of its texts' tokens, or its rows times its longest text.
        n_workers: The number of workers.
        start_worker: Starts a worker, given the queue and the worker's number. Called by `add` if it does not run.

    Attributes:
        threads: The threads of the workers that have not ended.
        max_tokens: The present limit: lower after a lack of memory, until enough passes succeeded.
    """

    def __init__(
        self,
        max_tokens: int,
        *,
        is_packed: bool,
        n_workers: int,
        start_worker: Callable[[Scheduler, int], threading.Thread],
    ) -> None:
        self.max_tokens: float = max_tokens
        self._usual_max_tokens = max_tokens
        self._is_packed = is_packed
        self._n_workers = n_workers
        self._start_worker = start_worker
        self._workers: set[int] = set()
        self.threads: WeakSet[threading.Thread] = WeakSet()
        self._short: deque[Request] = deque()
        self._long: deque[Request] = deque()
        self._turns = -_SHARE  # passes of short requests in a row, or of long ones if negative
        self._is_closed = False
        self._changed = threading.Condition()
        self._process_id = os.getpid()

    def add(self, request: Request) -> None:
        """Queue a request, and start the workers that do not run.

        Raises:
            RuntimeError: If the queue was closed, or the system cannot start a thread.
        """
        with self._changed:
            if self._is_closed:
                raise RuntimeError("this encoder's network was shut down: open another with M3Encoder(...)")
            for number in set(range(self._n_workers)) - self._workers:
                self.threads.add(self._start_worker(self, number))
                self._workers.add(number)
            request.is_short = sum(request.lengths) * _SHARE <= self.max_tokens
            (self._short if request.is_short else self._long).append(request)
            self._changed.notify()

    def take(self, *, wait: bool = True) -> list[Share]:
        """Return the texts of the next pass; [] if the queue is closed.

        Args:
            wait: Whether to wait if the queue is empty; if False, [] is returned.
        """
        with self._changed:
            while True:
                self._drop_ended()
                if shares := self._choose():
                    self._changed.notify()  # another worker may take what is left
                    return shares
                if self._short or self._long:
                    continue  # a request was cancelled during `_choose`: look again
                if self._is_closed or not wait:
                    return []
                self._changed.wait()

    def put_back(self, shares: Sequence[Share], *, alone: bool) -> None:
        """Put the texts of a failed pass back into the queue, before all others.

        Args:
            shares: The result of `take`.
            alone: Whether each of these requests must not share a pass with others from now on.
        """
        with self._changed:
            for request, positions in reversed(shares):
                request.put_back(positions)
                request.is_alone |= alone
                lane = self._short if request.is_short else self._long
                if request in lane:
                    lane.remove(request)
                lane.appendleft(request)
            self._changed.notify()

    def halve(self, n_tokens: int) -> None:
        """Limit passes to half of n_tokens, the size of a pass that did not fit in memory, and log it."""
        with self._changed:
            level = logging.WARNING if self.max_tokens == self._usual_max_tokens else logging.INFO
            self.max_tokens = max(min(self.max_tokens, n_tokens) // 2, 1)
        _logger.log(level, "out of memory: for now a forward pass has at most %d tokens", self.max_tokens)

    def count_good_pass(self) -> None:
        """Raise the lowered limit a little after a pass that succeeded: other programs may have freed memory."""
        if self.max_tokens < self._usual_max_tokens:
            with self._changed:
                self.max_tokens = min(self._usual_max_tokens, self.max_tokens * _GROWTH)

    def leave(self, worker: int, error: BaseException | None) -> None:
        """Note that a worker has ended. If it was the last one, all waiting requests end with an error."""
        with self._changed:
            self._workers.discard(worker)
            self._changed.notify_all()  # the worker may have been woken for texts that it did not take
            waiting = [] if self._workers else self._clear()
        for request in waiting:
            request.end(worker_died(error))

    def close(self) -> None:
        """Take no more requests, end every waiting one with an error, and let the workers end."""
        if os.getpid() != self._process_id:
            return  # after a fork the lock may be held by a thread that does not exist in the child
        with self._changed:
            self._is_closed = True
            waiting = self._clear()
            self._changed.notify_all()
        for request in waiting:
            request.end(RuntimeError("this encoder's network was shut down before these texts were encoded"))

    def _clear(self) -> list[Request]:
        waiting = [request for request in (*self._short, *self._long) if request.is_waiting]
        self._short.clear()
        self._long.clear()
        return waiting

    def _drop_ended(self) -> None:
        for lane in (self._short, self._long):
            for _ in range(len(lane)):  # one full round keeps the order
                if (request := lane.popleft()).is_waiting:
                    lane.append(request)

    def _choose(self) -> list[Share]:
        """Take the texts of the next pass from the short or the long requests: as many as fit, in the queue's order."""
        is_long_turn = bool(self._long) and (not self._short or self._turns >= _SHARE)
        lane = self._long if is_long_turn else self._short
        is_small = is_long_turn and self._turns > -_SHARE
        budget = PassBudget(self.max_tokens / _SHARE if is_small else self.max_tokens, self._is_packed)
        shares: list[Share] = []
        for request in lane:
            if shares and (request.is_alone or shares[0].request.is_alone):
                continue
            if request.is_waiting and (positions := request.take_fitting(budget)):
                shares.append(Share(request, positions))
            if budget.is_full:
                break
        if shares:
            self._turns = min(self._turns, 0) - 1 if is_long_turn else max(self._turns, 0) + 1
        lane.rotate(-1)  # the first request goes to the end with its remaining texts
        return shares


def worker_died(error: BaseException | None) -> RuntimeError:
    """Return the error for requests whose worker ended before it encoded them. The next request starts a new worker."""
    reason = f": {error!r}" if error is not None else ""
    died = RuntimeError(f"the encoder's worker thread ended before these texts were encoded{reason}; ask again")
    died.__cause__ = error
    return died
