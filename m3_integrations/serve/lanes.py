"""`Lane`: runs a limited number of requests, lets a limited number wait in their order, and refuses the rest."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from m3_integrations.serve.refusal import Refusal


class Lane:
    """The places of one kind of requests.

    Args:
        max_running: Requests that run at a time.
        max_waiting: Further requests that are accepted. They wait, or their bodies are still arriving.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running, self._max_here = max_running, max_running + max_waiting
        self._is_ending = False
        self._n_running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._here: dict[object, float] = {}  # the arrival time of each accepted request, in order of arrival

    @property
    def n_running(self) -> int:
        """How many requests run."""
        return self._n_running

    @property
    def n_waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._waiting)

    @property
    def oldest_s(self) -> float:
        """Seconds since the oldest accepted request arrived; 0 if there are no requests."""
        return time.monotonic() - min(self._here.values()) if self._here else 0.0

    def end(self) -> None:
        """Refuse waiting requests, and those that ask for a place later, with 503; running requests finish."""
        self._is_ending = True
        for place in self._waiting:
            if not place.done():
                place.set_exception(ending())
        self._waiting.clear()

    def check(self) -> None:
        """Refuse a new request if the lane is full.

        Raises:
            Refusal: With status 429, if `max_running + max_waiting` requests are here.
        """
        if len(self._here) >= self._max_here:
            raise Refusal(429, f"the server already has {len(self._here)} requests: try again later", retry_after_s=1)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request as accepted while this context lasts."""
        request = object()
        self._here[request] = time.monotonic()
        try:
            yield
        finally:
            del self._here[request]

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it while this context lasts.

        Raises:
            Refusal: With status 503, if the server is ending.
        """
        if self._is_ending:  # the request's body was still arriving when `end` was called
            raise ending()
        if self._n_running >= self._max_running:
            await self._wait()
        else:
            self._n_running += 1
        try:
            yield
        finally:
            self._n_running -= 1
            self._call_next()

    async def _wait(self) -> None:
        """Return when this request has a place; `_call_next` has counted it as running."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
            elif not place.cancelled() and place.exception() is None:  # it got a place, and was cancelled too
                self._n_running -= 1
                self._call_next()
            raise

    def _call_next(self) -> None:
        while self._waiting and self._n_running < self._max_running:
            place = self._waiting.popleft()
            if not place.done():
                self._n_running += 1
                place.set_result(None)


def ending() -> Refusal:
    """Return the refusal for requests to a server that is ending."""
    return Refusal(503, "this server is ending: try again later, or use another server", retry_after_s=1)
