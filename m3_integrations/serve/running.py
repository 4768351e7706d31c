"""Running the app on uvicorn, which ends well: what is under way ends, what waits is told."""

from __future__ import annotations

import ipaddress
import math
import socket
from typing import Final

import uvicorn

from m3_integrations.serve.gate import Gate

_IDLE_S: Final = 30
"""Seconds for which a connection without a request stays open."""


class _Server(uvicorn.Server):
    """Tells the gate before it waits for what is under way."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self._gate = gate

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what waits, then wait for the rest."""
        self._gate.end()
        await super().shutdown(sockets)


def check_host(host: str, *, has_keys: bool, may_be_open: bool = False) -> None:
    """Refuse to serve other machines without a key.

    Args:
        host: The address to listen at.
        has_keys: Whether requests need an API key.
        may_be_open: Whether everybody is meant to be served.

    Raises:
        ValueError: If the address is not this machine's own loopback, and neither is true.
    """
    if has_keys or may_be_open or host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            f"at {host} other machines could ask without a key: name a file of keys with --api-key-file, or put them "
            "into M3_API_KEYS; --without-key if everybody may ask"
        )


def run_server(gate: Gate, *, host: str = "127.0.0.1", port: int = 8000, timeout_s: float = 60.0) -> None:
    """Serve until SIGTERM or Ctrl-C; then what is under way ends, and what waits gets 503.

    Args:
        gate: What `create_app` returned.
        host: The address to listen at; `check_host` says whether that is safe.
        port: 0 for one that is free.
        timeout_s: How long to wait for what is under way at the end.

    Raises:
        SystemExit: With status 1, if the port is taken.
    """
    make_server(gate, host=host, port=port, timeout_s=timeout_s).run()


def make_server(gate: Gate, *, host: str = "127.0.0.1", port: int = 8000, timeout_s: float = 60.0) -> uvicorn.Server:
    """Return the server that `run_server` runs; arguments as there."""
    config = uvicorn.Config(
        gate,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # its lines have the query string; ours have not
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=math.ceil(timeout_s),
    )
    return _Server(config, gate)
