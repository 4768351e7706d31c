"""The thread that runs one device's forward passes, and ends every request that it took."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections import deque
from collections.abc import Callable

import torch

from m3_integrations.engine.queue import Scheduler, Share, worker_died
from m3_integrations.model import ForwardPass


def start_worker(
    scheduler: Scheduler, number: int, *, is_pipelined: bool, count: Callable[..., object]
) -> threading.Thread:
    """Start the thread of one device. It is a daemon: a program that does not close its encoder can end.

    Between passes the thread refers only to the queue, so a network without handles is freed.

    Args:
        scheduler: The queue.
        number: The index of this device's network in `Request.networks`.
        is_pipelined: Whether the device works asynchronously. The next pass is then launched before the results of the
            last one are copied to the requests.
        count: Called after every pass that succeeded, with its increments for `EncoderStats`.
    """
    worker = _Worker(scheduler, number, is_pipelined=is_pipelined, count=count)
    thread = threading.Thread(target=worker.run, name=f"m3-encoder-pass-{number}", daemon=True)
    thread.start()
    return thread


class _Worker:
    """Takes texts from the queue, launches their pass, and copies the results to the requests."""

    def __init__(self, scheduler: Scheduler, number: int, *, is_pipelined: bool, count: Callable[..., object]) -> None:
        self._scheduler, self._number, self._is_pipelined, self._count = scheduler, number, is_pipelined, count
        self._launched: deque[ForwardPass] = deque()
        self._unanswered: list[list[Share]] = []  # of every launched pass, oldest first; at most two

    def run(self) -> None:
        """Run passes until the queue is closed. If an error ends the thread, the requests it took end with an error."""
        ended_by: BaseException | None = None
        try:
            while self._step():
                pass
        except BaseException as error:  # the requests of its passes end with it
            ended_by = error
            for request, _ in itertools.chain(*self._unanswered):
                request.end(worker_died(error))
            raise
        finally:
            self._scheduler.leave(self._number, ended_by)

    def _step(self) -> bool:
        """Take texts, launch their pass, and hand out the oldest pass; return False if the queue is closed."""
        shares = self._scheduler.take(wait=not self._launched)
        if not shares and not self._launched:
            return False
        if shares:
            self._launch(shares)
        if len(self._launched) > (1 if shares and self._is_pipelined else 0):
            self._hand_out()
        return True

    def _launch(self, shares: list[Share]) -> None:
        self._unanswered.append(shares)
        batch = [request.texts[i] for request, positions in shares for i in positions]
        asked = [request.wants_multi_vector for request, positions in shares for _ in positions]
        try:
            self._launched.append(shares[0].request.networks[self._number].launch(batch, multi_vector=asked))
        except Exception as error:  # it goes to the callers
            while self._launched:
                self._hand_out()  # the previous pass: this frees its memory
            self._recover(shares, error)

    def _hand_out(self) -> None:
        shares, launched = self._unanswered[0], self._launched.popleft()
        try:
            output = launched.wait()
        except Exception as error:  # it goes to the callers
            del launched  # the error's traceback refers to this frame, which would keep the pass's tensors
            self._recover(shares, error)
            return
        self._scheduler.count_good_pass()
        lengths = [request.lengths[i] for request, positions in shares for i in positions]
        self._count(forward_passes=1, encoded_texts=len(lengths), encoded_tokens=sum(lengths))
        first = 0
        for request, positions in shares:
            try:
                request.receive(positions, output, first)
            except Exception as error:  # it goes to the caller
                request.end(error)
            first += len(positions)
        self._unanswered.remove(shares)

    def _recover(self, shares: list[Share], error: Exception) -> None:
        """Handle a failed pass.

        After a lack of memory its texts run again in smaller passes. After another error its requests run again, each
        alone. If it had only one request, or ran out of memory with one text, the request ends with the error.
        """
        # A caller may keep the error, and its frames would keep the failed pass's tensors.
        traceback.clear_frames(error.__traceback__)
        n_texts = sum(len(positions) for _, positions in shares)
        if _is_out_of_memory(error) and n_texts > 1:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._scheduler.halve(sum(request.lengths[i] for request, positions in shares for i in positions))
            self._scheduler.put_back(shares, alone=False)
        elif len(shares) > 1:
            self._scheduler.put_back(shares, alone=True)
        else:
            shares[0].request.end(error)
        self._unanswered.remove(shares)
        # Frames of the error's traceback refer to this list, and its requests refer to the error. This cycle would keep
        # the network until the garbage collector runs, which does not watch a GPU's memory.
        shares.clear()


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU, Apple's GPU, CUDA (for pinned memory and for kernels) and cuBLAS raise a plain RuntimeError.
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
