"""Send requests to one `m3 serve` from all threads and event loops of a process, and repeat them if that can help."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from m3_integrations.remote.wire import BrokenError, Reply, UnreachableError, Wire

_LONGEST_BACKOFF_S: Final = 5.0
_RESETS: Final = 4
"""How often a request is sent again after its connection broke or a proxy lost the server."""

_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class _Request:
    """A request: POST with this body, or GET if it is None; `max_bytes` is the most bytes of the answer."""

    path: str
    body: bytes | None
    content_type: str
    max_bytes: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer with status 200.

    Attributes:
        body: The whole body.
        fingerprint: The fingerprint of the server's model; None if the answer has none.
        seconds: The time until the answer, repetitions included.
    """

    body: bytes
    fingerprint: str | None
    seconds: float


class UnknownPathError(ValueError):
    """The server does not have the path of a request."""


def check_url(url: str) -> str:
    """Return the URL of a server without a slash at its end.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is not an http or https URL, or has a user's name, a query or a fragment.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a string such as 'http://127.0.0.1:8000', got {url!r}")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the URL of {parts.hostname} contains a user's name: leave it out and pass api_key=")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"url must be a server's URL, such as 'http://127.0.0.1:8000', got {url!r}")
    return url.rstrip("/")


class Connection:
    """Requests to one server from any thread, repeated if that can help; failures become built-in errors.

    All connections belong to one background thread with its event loop, so synchronous callers and callers in any event
    loop share them. The first request starts the thread. A forked child starts another one.

    Args:
        url: The server's URL.
        api_key: Sent as a bearer token; nothing is sent if None.
        timeout_s: Time limit of one request, repetitions included.
        closed: The message of errors after `close`.

    Raises:
        TypeError: If url is not a string.
        ValueError: If timeout_s is not greater than 0, api_key is not printable ASCII, or url is not a server's URL.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, closed: str) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be greater than 0, got {timeout_s}")
        self._url, self._timeout_s, self._closed = check_url(url), timeout_s, closed
        self._headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            if not api_key or not api_key.isascii() or not api_key.isprintable():
                raise ValueError("api_key must be printable ASCII characters and not empty")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._lines: dict[int, _Line] = {}

    def close(self) -> None:
        """End the thread and its connections. Running requests are cancelled."""
        line = self._lines.pop(os.getpid(), None)
        if line is not None:
            line.end()

    def start(
        self,
        path: str,
        sent: dict[str, Any] | bytes | None,
        *,
        max_bytes: int,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Future[Answer]:
        """Begin a request and return its future. If the future is cancelled, the connection to the server is closed.

        Args:
            path: The path below the URL.
            sent: The body of a POST, sent as JSON unless it is bytes; None sends a GET.
            max_bytes: A longer answer raises ValueError.
            headers: Further headers of this request.
        """
        process_id = os.getpid()
        line = self._lines.get(process_id)
        if line is None:
            # setdefault is atomic. A lock could be held by another thread during a fork, and stay locked in the child.
            line = self._lines.setdefault(process_id, _Line(self._url, self._headers, self._closed))
        if sent is None or isinstance(sent, bytes):
            request = _Request(path, sent, _BINARY, max_bytes, headers)
        else:
            request = _Request(path, json.dumps(sent, ensure_ascii=False).encode(), _JSON, max_bytes, headers)
        return line.submit(partial(self._finished, request))

    def result(self, future: Future[Answer]) -> Answer:
        """Wait for an answer. If the caller is interrupted, the request is cancelled."""
        try:
            return future.result()
        except CancelledError as error:
            raise RuntimeError(self._closed) from error
        except BaseException:
            future.cancel()
            raise

    async def aresult(self, future: Future[Answer]) -> Answer:
        """Wait for an answer. If the task is cancelled, so is the request."""
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RuntimeError(self._closed) from error

    async def _finished(self, request: _Request, wire: Wire) -> Answer:
        url, troubles, began = self._url, list[str](), time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                until = limit.when() or 0.0
                reply = await self._repeated(request, wire, until, troubles)
        except TimeoutError as error:
            said = f" ({troubles[-1]})" if troubles else ""
            raise TimeoutError(
                f"{url} did not finish within timeout_s={self._timeout_s:g} seconds{said}: allow more time, or send "
                "less at once"
            ) from error
        _check_status(url, request.path, reply)
        return Answer(reply.body, reply.headers.get("x-m3-fingerprint"), time.monotonic() - began)

    async def _repeated(self, request: _Request, wire: Wire, until: float, troubles: list[str]) -> Reply:
        """Send a request again until its answer is one that another try would not change."""
        url, resets = self._url, 0
        for attempt in count():
            wait_s = 0.0
            try:
                reply = await wire.exchange(
                    request.path,
                    request.body,
                    max_bytes=request.max_bytes,
                    content_type=request.content_type,
                    further=request.headers,
                )
            except UnreachableError as error:
                raise ConnectionError(
                    f"nothing answers at {url} ({error}): start the server with m3 serve MODEL"
                ) from error
            except BrokenError as error:
                troubles.append(f"the connection broke: {error}")
                resets += 1
                if resets > _RESETS:
                    raise ConnectionError(
                        f"{url} broke the connection {resets} times; at last {troubles[-1]}"
                    ) from error
            else:
                is_lost = resets < _RESETS and _is_of_a_proxy(reply.status, reply.body)
                if reply.status not in {429, 503} and not is_lost:
                    return reply
                resets += is_lost
                state = "failed" if is_lost else "was busy"
                troubles.append(f"the server {state}, {reply.status}: {_message(reply.body)}")
                wait_s = _seconds(reply.headers.get("retry-after"))
            backoff_s = min(0.1 * 2 ** min(attempt, 10), _LONGEST_BACKOFF_S) * random.uniform(0.5, 1)  # noqa: S311
            pause_s = max(wait_s, backoff_s)
            if asyncio.get_running_loop().time() + pause_s > until:
                raise TimeoutError
            await asyncio.sleep(pause_s)
        raise AssertionError("count() does not end")


def _check_status(url: str, path: str, reply: Reply) -> None:
    """Raise the error for a status other than 200."""
    status = reply.status
    if status == 200:
        return
    if status == 401:
        raise PermissionError(
            f"{url} does not accept the API key ({status}): pass one of the server's keys as api_key="
        )
    message = _message(reply.body)
    if status == 403:
        raise PermissionError(f"{url} does not allow this with any API key ({status}): {message}")
    if status == 507:
        raise OSError(f"{url} could not read or write its store ({status}): {message}")
    if status in {408, 504}:
        raise TimeoutError(f"{url} ended the request at the server's time limit: {message}")
    if status in {400, 413, 422}:
        raise ValueError(f"{url} refused the request ({status}): {message}")
    if status >= 500:
        raise RuntimeError(f"{url} failed ({status}): {message}")
    place = f", and redirects to {reply.headers['location']}" if "location" in reply.headers else ""
    raise UnknownPathError(f"{url} answers, but it is not an m3 serve: {path} returns {status}{place}")


def _is_of_a_proxy(status: int, body: bytes) -> bool:
    """Whether an error comes from a proxy that lost the server; errors of the server itself are JSON."""
    return status in {500, 502} and _error_of(body) is None


def _message(body: bytes) -> str:
    """Return the message in an error's body, or the beginning of the body."""
    said = _error_of(body)
    return repr(body[:200].decode(errors="replace")) if said is None else said


def _error_of(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None


def _seconds(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 if there is none, or if it is a date."""
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < float("inf") else 0.0


_Opened = tuple[asyncio.AbstractEventLoop, asyncio.Event, Wire]


class _Line:
    """The background thread of one process, with its event loop and connections."""

    def __init__(self, url: str, headers: dict[str, str], closed: str) -> None:
        self._url, self._headers, self._closed = url, headers, closed
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._thread: threading.Thread | None = None
        self._is_ended = False

    def submit(self, request: Callable[[Wire], Coroutine[Any, Any, Answer]]) -> Future[Answer]:
        with self._lock:
            if self._is_ended:
                raise RuntimeError(self._closed)
            if self._opened is None:
                self._opened = self._open()
            loop, _, wire = self._opened
            return asyncio.run_coroutine_threadsafe(request(wire), loop)

    def _open(self) -> _Opened:
        ready: Future[_Opened] = Future()
        self._thread = threading.Thread(
            target=_run, args=(self._url, self._headers, ready), name="m3-remote", daemon=True
        )
        self._thread.start()
        opened = ready.result()
        weakref.finalize(self, _stop, os.getpid(), *opened[:2])
        return opened

    def end(self) -> None:
        with self._lock:
            self._is_ended = True
            if self._opened is not None and self._thread is not None:
                _stop(os.getpid(), *self._opened[:2])
                self._thread.join()


def _stop(process_id: int, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    if process_id == os.getpid():  # in a forked child the loop's thread does not exist
        with contextlib.suppress(RuntimeError):  # the loop is already closed
            loop.call_soon_threadsafe(ended.set)


def _run(url: str, headers: dict[str, str], ready: Future[_Opened]) -> None:
    try:
        asyncio.run(_live(url, headers, ready))
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)


async def _live(url: str, headers: dict[str, str], ready: Future[_Opened]) -> None:
    """Keep connections open until the event `ended` is set, then cancel running requests.

    GeneratorExit must not close the connections: a forked child that drops this coroutine would remove them from the
    parent's epoll.
    """
    ended = asyncio.Event()
    wire = Wire(url, headers)
    ready.set_result((asyncio.get_running_loop(), ended, wire))
    await ended.wait()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    wire.close()
