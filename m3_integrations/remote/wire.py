"""HTTP/1.1 to one server over asyncio's streams, with h11 for the protocol.

httpx, which uses h11 too, took 0.7 ms longer for each request, and twice the CPU time for many texts
(tests/benchmarks/bench_serve.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import h11

_CONNECT_TIMEOUT_S: Final = 5.0
_KEPT_ALIVE_S: Final = 20.0
"""Shorter than the server's 30 s, so that the server seldom closes a connection while a request is sent on it."""

_MOST_CONNECTIONS: Final = 64
_MOST_IDLE: Final = 16
_ERROR_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 18
"""The most bytes that asyncio reads from a socket at a time."""


class UnreachableError(Exception):
    """No connection can be opened."""


class BrokenError(Exception):
    """A connection ended before the answer was complete, or the answer is not HTTP."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer.

    Attributes:
        status: The HTTP status.
        headers: The headers by their names in lower case.
        body: The whole body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Connections to one server, kept open between requests. A wire belongs to one event loop.

    Args:
        url: The server's URL; all paths are below it.
        headers: Headers of every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._url, self._below, self._host = url, parts.path, parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._headers = [("Host", parts.netloc), *headers.items()]
        self._idle: list[_Link] = []
        self._places = asyncio.Semaphore(_MOST_CONNECTIONS)

    async def exchange(
        self,
        path: str,
        body: bytes | None,
        *,
        max_bytes: int,
        content_type: str = "application/json",
        further: Mapping[str, str] = MappingProxyType({}),
    ) -> Reply:
        """Send a request once and return its answer.

        Args:
            path: The path below the URL.
            body: The body of a POST; None sends a GET.
            max_bytes: A longer answer with status 200 raises ValueError.
            content_type: The type of the body.
            further: Headers of this request, besides those of every request.

        Raises:
            UnreachableError: If no connection can be opened.
            BrokenError: If the connection ends before the answer does.
            ValueError: If the answer is longer, or has a content encoding, which was not requested.
        """
        headers = [*self._headers, *further.items()]
        if body is not None:
            headers += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        request = h11.Request(method="GET" if body is None else "POST", target=self._below + path, headers=headers)
        async with self._places:
            link = self._kept() or await self._opened()
            try:
                reply = await link.exchange(self._url, request, body or b"", max_bytes)
            except (Exception, asyncio.CancelledError) as error:
                # Not on GeneratorExit: a forked child that drops this coroutine would remove the connection from the
                # parent's epoll.
                link.abort()
                if isinstance(error, OSError | h11.ProtocolError):
                    raise BrokenError(str(error) or type(error).__name__) from error
                raise
            self._keep(link)
            return reply

    def close(self) -> None:
        """Close the connections that no request uses."""
        while self._idle:
            self._idle.pop().abort()

    def _kept(self) -> _Link | None:
        """Return the last used connection that is still usable, or None; close the others that are not."""
        while self._idle:
            link = self._idle.pop()
            if link.is_usable():
                return link
            link.abort()
        return None

    async def _opened(self) -> _Link:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                streams = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=_READ_BYTES)
        except OSError as error:  # TimeoutError is one
            raise UnreachableError(str(error) or "no answer") from error
        return _Link(*streams)

    def _keep(self, link: _Link) -> None:
        if len(self._idle) < _MOST_IDLE and link.is_done():
            self._idle.append(link)
        else:
            link.abort()


class _Link:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._protocol = h11.Connection(h11.CLIENT)
        self._idle_since = 0.0

    async def exchange(self, url: str, request: h11.Request, body: bytes, max_bytes: int) -> Reply:
        protocol = self._protocol
        sent = [protocol.send(request), protocol.send(h11.Data(data=body)), protocol.send(h11.EndOfMessage())]
        self._writer.write(b"".join(part for part in sent if part))
        with contextlib.suppress(ConnectionError):  # the server may refuse a request before it has read all of it
            await self._writer.drain()
        response = None
        parts: list[bytes] = []
        size = 0
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                protocol.receive_data(await self._reader.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                response = event
                headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
                if (encoding := headers.get("content-encoding", "identity")) != "identity":
                    raise ValueError(f"{url} sent a body in the encoding {encoding}, which was not requested")
                limit = max_bytes if event.status_code == 200 else _ERROR_BYTES
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > limit:
                    raise ValueError(f"{url} sent more than {limit:,} bytes, the most that this answer can have")
                parts.append(event.data)
            elif isinstance(event, h11.EndOfMessage) and response is not None:
                return Reply(response.status_code, headers, b"".join(parts))
            elif not isinstance(event, h11.InformationalResponse):
                raise ConnectionError("the server closed the connection")

    def is_done(self) -> bool:
        """Whether the connection can take another request; if so, prepare it."""
        if self._protocol.our_state is not h11.DONE or self._protocol.their_state is not h11.DONE:
            return False
        self._protocol.start_next_cycle()
        self._idle_since = asyncio.get_running_loop().time()
        return True

    def is_usable(self) -> bool:
        """Whether the connection is open and was idle for less than `_KEPT_ALIVE_S`."""
        is_open = not (self._reader.at_eof() or self._reader.exception() or self._writer.is_closing())
        return is_open and asyncio.get_running_loop().time() - self._idle_since < _KEPT_ALIVE_S

    def abort(self) -> None:
        self._writer.transport.abort()
