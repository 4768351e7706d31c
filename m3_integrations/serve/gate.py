"""`Gate`: checks each request's key and size, queues it, ends it at the time limit, and writes its log line."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from m3_integrations.serve.keys import KeyRing
from m3_integrations.serve.lanes import Lane, ending
from m3_integrations.serve.limits import Limits
from m3_integrations.serve.metrics import Metrics
from m3_integrations.serve.refusal import Refusal

_logger = logging.getLogger("m3_integrations.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_WITHOUT_KEY: Final = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
_AT_ONCE: Final = _WITHOUT_KEY | {"/metrics", "/v1/models", "/v1/encoder"}
"""Paths that are answered without a place in a queue: they do not use the encoder."""

STORE_THREADS: Final = 8
"""Store calls that run at a time. Most engines run one at a time; a server runs several."""

CHANGE_THREADS: Final = 8
"""Changes of the store that run at a time. They may wait for minutes while a folder is optimised; searches do not."""

_CHANGES: Final = frozenset({"/v1/store/upsert", "/v1/store/delete", "/v1/records", "/v1/records/delete"})

_SHORT_BYTES: Final = 4096
"""A request whose body is at most this large, such as a search, is short: it does not wait behind large requests."""

_LONG_SHARE: Final = 8
"""Longer requests have `max_running // 8` places. 8 fill the passes; 64 answers could hold 16 GB of token vectors."""

_LONG_ANSWERS: Final = frozenset({"/v1/spans"})
"""Paths where a short body names many records: a request holds the token vectors of 16, up to 512 MB at a time."""

_PIECE_BYTES: Final = 1 << 18
"""Bytes of an answer that are sent at a time, so that a slow reader's connection does not buffer a whole answer."""

_SHOWN_FRAMES: Final = 8
"""When the server fails, the log names this many of the innermost calls."""

_GONE: Final = 499
"""The status that logs and metrics show for a client that closed its connection."""


class _ClientGoneError(Exception):
    """The client has closed its connection."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Gate:
    """An ASGI app around the routes.

    The gate reads a body completely, within the limits, before the routes see the request. At most `max_running` short
    requests run at a time, and an eighth as many longer ones; further requests wait in their order. Requests that read
    the store and those that change it have separate places, so that no kind of request blocks another. Within the
    encoder short texts go first. A request ends early when its time is over or its client closes the connection: its
    task is cancelled, which takes its texts out of the encoder's queue.

    Args:
        app: The routes.
        paths: The paths of the routes; logs and metrics call every other path "other".
        keys: The accepted API keys.
        limits: Limits on each request and on the number of requests.
        metrics: Counts the requests.
        local_only: Whether the host that a request names must be an IP address or localhost. Without keys this keeps
            out web pages in a browser on this machine: a page can point its own domain name at this server.
    """

    def __init__(
        self, app: App, *, paths: frozenset[str], keys: KeyRing, limits: Limits, metrics: Metrics, local_only: bool
    ) -> None:
        self._app, self._paths, self._keys, self._limits, self._metrics = app, paths, keys, limits, metrics
        self._local_only = local_only
        self._is_ending = False
        self._short = Lane(limits.max_running, limits.max_waiting)
        self._long = Lane(max(1, limits.max_running // _LONG_SHARE), limits.max_waiting)
        self._storing = Lane(min(limits.max_running, STORE_THREADS), limits.max_waiting)
        self._changing = Lane(min(limits.max_running, CHANGE_THREADS), limits.max_waiting)
        self._adding = Lane(limits.max_running, limits.max_waiting)
        self._lanes = lanes = (self._short, self._long, self._storing, self._changing, self._adding)
        metrics.watch(
            n_running=lambda: sum(lane.n_running for lane in lanes),
            n_waiting=lambda: sum(lane.n_waiting for lane in lanes),
            oldest_s=lambda: max(lane.oldest_s for lane in lanes),
        )

    @property
    def is_ending(self) -> bool:
        """Whether the server refuses new requests because it is ending."""
        return self._is_ending

    def end(self) -> None:
        """Refuse waiting and new requests with 503; running requests finish."""
        self._is_ending = True
        for lane in self._lanes:
            lane.end()

    def _lane(self, path: str, headers: dict[bytes, bytes]) -> Lane:
        declared = headers.get(b"content-length", b"0")
        is_short = b"transfer-encoding" not in headers and declared.isdigit() and int(declared) <= _SHORT_BYTES
        if path in _CHANGES:  # short ones of many callers share the encoder's passes
            return self._adding if is_short and path.startswith("/v1/records") else self._changing
        if path.startswith("/v1/store"):
            return self._storing
        if path in _LONG_ANSWERS:
            return self._long
        return self._short if is_short else self._long

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        path = scope["path"] if scope["path"] in self._paths else "other"
        status = _GONE
        n_sent = 0
        try:
            try:
                answer = await self._answer(scope, receive)
            except Refusal as refusal:
                answer = _refused(refusal)
            status = answer.status
            await self._send(answer, send)
            n_sent = len(answer.body)
        except (_ClientGoneError, TimeoutError, OSError):  # the client does not read the answer
            status = _GONE
        finally:
            seconds = time.monotonic() - began
            self._metrics.count(path, status, seconds)
            # Only the path of a route, without query string or message: those may contain a user's text.
            _logger.info("%s %s %d %.1f ms %d bytes", scope["method"], path, status, seconds * 1000, n_sent)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive) -> _Answer:
        headers = dict(reversed(scope["headers"]))  # of headers with the same name the first counts
        self._check(scope["path"], headers)
        if scope["path"] in _AT_ONCE:
            return await self._run(scope, b"")
        lane = self._lane(scope["path"], headers)
        lane.check()
        with lane.counted():
            deadline = time.monotonic() + self._limits.timeout_s
            body = await self._body(headers, receive)
            return await self._before(deadline, lane, scope, body, receive)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._local_only and not _is_local(headers.get(b"host", b"localhost")):
            raise Refusal(403, "without API keys this server answers only requests to an IP address or to localhost")
        if path in _WITHOUT_KEY:
            return
        if not self._keys.accepts(headers.get(b"authorization", b"")):
            raise Refusal(401, "this server needs an API key: send the header 'Authorization: Bearer KEY'")
        if path in _AT_ONCE:
            return
        if self._is_ending:
            raise ending()

    async def _body(self, headers: MutableMapping[bytes, bytes], receive: Receive) -> bytes:
        """Return the whole body; refuse it unread if its declared length is over the limit."""
        most = self._limits.max_body_bytes
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        parts: list[bytes] = []
        n_bytes, is_more = 0, True
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                while is_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    part, is_more = message.get("body", b""), message.get("more_body", False)
                    n_bytes += len(part)  # a chunked body does not declare its size
                    if n_bytes > most:
                        raise _too_large(most)
                    parts.append(part)
        except TimeoutError as error:
            raise Refusal(408, f"the body did not arrive within {self._limits.timeout_s:g} s") from error
        return b"".join(parts)

    async def _before(
        self, deadline: float, lane: Lane, scope: MutableMapping[str, Any], body: bytes, receive: Receive
    ) -> _Answer:
        """Return the routes' answer; raise if the deadline passes or the client closes the connection first."""
        work = asyncio.create_task(self._in_turn(lane, scope, body))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            left_s = max(deadline - time.monotonic(), 0)
            await asyncio.wait({work, gone}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise _ClientGoneError
            raise Refusal(
                504,
                f"no answer within {self._limits.timeout_s:g} s, so the request was ended: send fewer texts, or "
                "try again when the server is less busy",
            )
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _in_turn(self, lane: Lane, scope: MutableMapping[str, Any], body: bytes) -> _Answer:
        async with lane.place():
            return await self._run(scope, body)

    async def _run(self, scope: MutableMapping[str, Any], body: bytes) -> _Answer:
        messages: list[Message] = []
        arriving: deque[Message] = deque([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            return arriving.popleft() if arriving else {"type": "http.disconnect"}

        async def keep(message: Message) -> None:
            messages.append(message)

        try:
            await self._app(scope, receive, keep)
        except Exception as error:
            # Log neither the message nor lines of code: both may quote a user's text.
            frames = traceback.extract_tb(error.__traceback__)[-_SHOWN_FRAMES:]
            places = ", ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
            _logger.error("%s failed with %s at %s", scope["method"], type(error).__name__, places)  # noqa: TRY400
            raise Refusal(500, "the server failed: its log names the place in the code") from None
        start, *rest = messages
        return _Answer(start["status"], list(start["headers"]), b"".join(part.get("body", b"") for part in rest))

    async def _send(self, answer: _Answer, send: Send) -> None:
        """Send an answer in pieces; raise TimeoutError if the client takes longer than `timeout_s` to read it."""
        async with asyncio.timeout(self._limits.timeout_s):
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            body = memoryview(answer.body)
            for start in range(0, len(body), _PIECE_BYTES):
                piece = bytes(body[start : start + _PIECE_BYTES])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refused(refusal: Refusal) -> _Answer:
    headers = {"content-type": "application/json", "content-length": str(len(refusal.body))} | refusal.headers
    encoded = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
    return _Answer(refusal.status, encoded, refusal.body)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"a request's body may have at most {most} bytes: send several requests")


def _is_local(host: bytes) -> bool:
    """Return whether a header "Host" is an IP address or localhost; a port may follow."""
    name = host.decode("latin-1").rpartition("]")[0].removeprefix("[") or host.decode("latin-1").partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() == "localhost" or name.lower().endswith(".localhost")
    return True
