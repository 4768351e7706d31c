"""A network whose passes a test can stop, inspect and let fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from m3_integrations import M3Encoder
from m3_integrations.engine import Engine
from m3_integrations.engine.worker import start_worker
from m3_integrations.model import ForwardPass
from m3_integrations.tokenizer import Tokens

WORDS = ("stone", "bridge", "water", "key", "the", "letter", "it", "seven")
"""The golden tokenizer has one token for the second, the fourth, the fifth and the seventh of these."""


def never(_: Sequence[Tokens]) -> None:
    """Do nothing: every pass succeeds."""


class Gate:
    """Stops the forward passes of an encoder's network while it is closed.

    Args:
        encoder: An encoder with an unshared network.
        fault: Called with the texts of every pass; may raise.
        is_open: Whether passes run without stopping.
    """

    def __init__(
        self, encoder: M3Encoder, fault: Callable[[Sequence[Tokens]], None] = never, *, is_open: bool = False
    ) -> None:
        self.engine: Engine = encoder._live_engine()
        self.batches: list[list[int]] = []
        self.fault = fault
        self._is_open = threading.Event()
        if is_open:
            self.open()
        for network in self.engine.networks:
            network.launch = partial(self._launch, network.launch)  # type: ignore[method-assign]

    def open(self) -> None:
        """Let the stopped pass and all later ones run."""
        self._is_open.set()

    def _launch(self, real: Callable[..., ForwardPass], batch: Sequence[Tokens], **settings: Any) -> ForwardPass:
        self.batches.append([len(tokens) for tokens in batch])
        assert self._is_open.wait(60)
        self.fault(batch)
        return real(batch, **settings)

    def wait_for(self, *, waiting: int) -> None:
        """Return when a pass is stopped and this many requests wait in the queue."""
        end = time.monotonic() + 60
        while not self.batches or self._n_waiting() < waiting:
            assert time.monotonic() < end, "the requests did not come"
            time.sleep(0.001)

    def _n_waiting(self) -> int:
        queue = self.engine.scheduler
        with queue._changed:
            return sum(request.is_waiting for request in (*queue._short, *queue._long))


def pipelined(encoder: M3Encoder) -> M3Encoder:
    """Launch the next pass before the results of the last one are handed out, as on a GPU."""
    engine = encoder._live_engine()
    engine.scheduler._start_worker = partial(start_worker, is_pipelined=True, count=engine.counters.add)
    return encoder
