"""The thread that runs one device's forward passes, and sees to it that every request is answered."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from m3_integrations.engine.scheduler import Scheduler, Share, worker_died
from m3_integrations.model import BatchOutput, LaunchedBatch, M3Network
from m3_integrations.tokenizer import Tokens


class Answers(Protocol):
    """What a request carries: its texts, what is asked of them, and where the results go."""

    texts: Sequence[Tokens]
    wants_multi_vector: bool

    def network(self, worker: int) -> M3Network:
        """The network on this worker's device."""
        ...

    def receive(self, positions: Sequence[int], output: BatchOutput, first: int) -> None:
        """Take over the results of these texts, which are rows first and following of a batch's output."""
        ...

    def count_pass(self, batch: Sequence[Tokens]) -> None:
        """Count a pass that was run."""
        ...


@dataclass(slots=True)
class _Flight:
    """A pass on its way."""

    shares: list[Share[Answers]]
    launched: LaunchedBatch


def start_worker(scheduler: Scheduler[Answers], number: int, *, is_pipelined: bool) -> threading.Thread:
    """Start the thread of one device.

    Between passes it holds the queue alone, so that a network that nobody else holds is given back.

    Args:
        scheduler: Where requests wait.
        number: Which of the networks is its own.
        is_pipelined: Whether the device works by itself: then the next pass is started before the results of the last
            one are handed out.
    """
    worker = _Worker(scheduler, number, is_pipelined=is_pipelined)
    # A daemon, so that a program which forgets an encoder can end.
    thread = threading.Thread(target=worker.run, name=f"m3-encoder-pass-{number}", daemon=True)
    thread.start()
    return thread


class _Worker:
    def __init__(self, scheduler: Scheduler[Answers], number: int, *, is_pipelined: bool) -> None:
        self._scheduler, self._number, self._is_pipelined = scheduler, number, is_pipelined
        self._flights: list[_Flight] = []
        self._unanswered: list[list[Share[Answers]]] = []  # the passes that were begun; at most two

    def run(self) -> None:
        """Run passes until the queue is closed; whatever ends the thread otherwise, nobody is left waiting."""
        ended_by: BaseException | None = None
        try:
            while self._step():
                pass
        except BaseException as error:  # every caller gets it
            ended_by = error
            for request, _ in itertools.chain(*self._unanswered):
                request.fail(worker_died(error))
            raise
        finally:
            self._scheduler.leave(self._number, ended_by)

    def _step(self) -> bool:
        """Start the next pass, and hand out the results of the one before; false at the end."""
        begun = len(self._flights)
        shares = self._scheduler.take(wait=not begun)
        goes_on = bool(shares or begun)
        if shares:
            self._launch(shares)
        if self._flights and (begun or not self._is_pipelined):
            self._finish()
        return goes_on

    def _launch(self, shares: list[Share[Answers]]) -> None:
        self._unanswered.append(shares)
        asked = [request.work.wants_multi_vector for request, positions in shares for _ in positions]
        try:
            network = shares[0].request.work.network(self._number)
            self._flights.append(_Flight(shares, network.launch(_batch_of(shares), multi_vector=asked)))
        except Exception as error:  # it goes to the callers
            traceback.clear_frames(error.__traceback__)  # the failed pass's tensors; a caller may keep the error
            while self._flights:
                self._finish()  # the pass before, whose memory may be what was missing
            self._recover(shares, error)

    def _finish(self) -> None:
        """Hand out the results of the oldest pass."""
        flight = self._flights.pop(0)
        try:
            output = flight.launched.wait()
        except Exception as error:  # it goes to the callers
            traceback.clear_frames(error.__traceback__)
            self._recover(flight.shares, error)
            return
        self._scheduler.count_good_pass()
        flight.shares[0].request.work.count_pass(_batch_of(flight.shares))
        first = 0
        for share in flight.shares:
            _answer(share, output, first)
            first += len(share.positions)
        self._unanswered.remove(flight.shares)

    def _recover(self, shares: list[Share[Answers]], error: Exception) -> None:
        """After a pass that failed: try smaller ones, or each request alone, or fail the request whose fault it is."""
        batch = _batch_of(shares)
        if _is_out_of_memory(error) and len(batch) > 1:
            _free_memory()
            self._scheduler.halve(sum(map(len, batch)))
            self._scheduler.put_back(shares, alone=False)
        elif len(shares) > 1:
            self._scheduler.put_back(shares, alone=True)
        else:
            shares[0].request.fail(error)
        self._unanswered.remove(shares)
        # Frames behind the error's traceback hold this list. With the request in it, which holds the error, all of them
        # and the network would stay until the garbage collector comes by, which knows nothing of a GPU's memory.
        shares.clear()


def _batch_of(shares: Sequence[Share[Answers]]) -> list[Tokens]:
    return [request.work.texts[i] for request, positions in shares for i in positions]


def _answer(share: Share[Answers], output: BatchOutput, first: int) -> None:
    request, positions = share
    if request.has_ended:
        return
    if not output.is_finite[first : first + len(positions)].all():
        request.fail(FloatingPointError("the network gave values that are not finite: load it with dtype='float32'"))
        return
    try:
        request.work.receive(positions, output, first)
    except Exception as error:  # it goes to the caller
        request.fail(error)
        return
    request.answer(len(positions))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # A plain RuntimeError from the CPU, from Apple's GPU, from CUDA for pinned memory and kernels, and from cuBLAS.
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
