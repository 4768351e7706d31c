"""Runs the app on uvicorn. At the end running requests finish, and waiting requests get 503."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from m3_integrations.serve.gate import Gate

_logger = logging.getLogger("m3_integrations.serve")

_IDLE_S: Final = 30
"""Seconds that a connection without a request stays open."""

_MAX_CONNECTIONS: Final = 1000
"""Most open connections, idle ones included. uvicorn answers requests on further connections with 503. Many systems
allow a process 1,024 open files."""

_SETTLE_S: Final = 0.1
"""Seconds between the first 503 and the closing of connections, so that requests in the kernel's queue are answered."""


class _Connection(H11Protocol):
    """A connection that is closed if a request's headers do not arrive in time.

    uvicorn limits only the time between requests: a client that sends half a header could keep a connection open
    without limit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's own
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the timer if no request runs, and stop it while one does."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.timeout_keep_alive, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self._header_timer = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class _Server(uvicorn.Server):
    """Ends the gate before it waits for running requests."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self._gate = gate

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and log the URL, which uvicorn does only for sockets of its own."""
        host, port = sockets[0].getsockname()[:2] if sockets else ("", 0)
        try:
            await super().startup(sockets)
        except OSError as error:  # another server has bound the port too, and listens already
            await self.lifespan.shutdown()
            raise _cannot_listen(error, host, port) from error
        if sockets:
            shown = f"[{host}]" if ":" in host else host
            _logger.info("m3 serve running on http://%s:%d (Press CTRL+C to quit)", shown, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse waiting requests, then wait for running ones."""
        self._gate.end()
        await asyncio.sleep(_SETTLE_S)
        await super().shutdown(sockets)


def check_host(host: str, *, has_keys: bool, may_be_open: bool = False) -> None:
    """Refuse to serve other machines without a key.

    Args:
        host: The address to listen at.
        has_keys: Whether requests need an API key.
        may_be_open: Whether serving everybody without a key is intended.

    Raises:
        ValueError: If the address is not a loopback address, and `has_keys` and `may_be_open` are False.
    """
    if has_keys or may_be_open or host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            f"at {host} other machines could send requests without a key: name a file of keys with --api-key-file, put "
            "keys into M3_API_KEYS, or allow everybody with --without-key"
        )


@contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Yield sockets that are bound to every address of a host; they are closed at the end.

    The sockets do not listen before the server does, so that no client waits while a model is loaded.

    Raises:
        OSError: If the host is unknown, or the port is taken or not allowed.
    """
    with ExitStack() as stack:
        try:
            found = dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # it may repeat one
            here = [each for each in found if _is_here(each[0], each[4])] or found
            sockets = [stack.enter_context(_bound(each[0], each[4])) for each in here]
        except OSError as error:
            raise _cannot_listen(error, host, port) from error
        yield sockets


def _cannot_listen(error: OSError, host: str, port: int) -> OSError:
    said = f"cannot listen at {host}, port {port} ({error.strerror}): choose another --host or --port"
    return OSError(error.errno, said)


def _is_here(family: int, address: Any) -> bool:
    """Return whether this machine has an address; localhost may have one of IPv6 where that is switched off."""
    try:
        _bound(family, (address[0], 0, *address[2:])).close()
    except OSError as error:
        return error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    return True


def _bound(family: int, address: Any) -> socket.socket:
    # Only if the protocol is TCP does asyncio turn Nagle's algorithm off, which costs 40 ms for each request.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere this would let two servers have one port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def run_server(
    gate: Gate,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    timeout_s: float = 60.0,
    sockets: list[socket.socket] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Then running requests finish, and waiting requests get 503.

    Args:
        gate: The app that `create_app` returned.
        host: The address to listen at; `check_host` refuses unsafe ones.
        port: The port to listen at; 0 takes a free one.
        timeout_s: The longest wait, in seconds, for running requests at the end.
        sockets: The sockets of `listening` for this host and port; opened now by default.

    Raises:
        OSError: If the host is unknown, or the port is taken or not allowed.
    """
    with nullcontext(sockets) if sockets else listening(host, port) as bound:
        make_server(gate, host=host, port=port, timeout_s=timeout_s).run(sockets=bound)


def make_server(
    gate: Gate, *, host: str = "127.0.0.1", port: int = 8000, timeout_s: float = 60.0, idle_s: int = _IDLE_S
) -> uvicorn.Server:
    """Return the server that `run_server` runs.

    Args:
        gate: As for `run_server`.
        host: As for `run_server`.
        port: As for `run_server`.
        timeout_s: As for `run_server`.
        idle_s: Seconds that a connection may stay open without a request, and that a request's headers may take.
    """
    config = uvicorn.Config(
        gate,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # its lines contain the query string, which may hold a user's text
        ws="none",
        server_header=False,
        proxy_headers=False,
        http=_Connection,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=idle_s,
        timeout_graceful_shutdown=math.ceil(timeout_s),
    )
    return _Server(config, gate)
