"""A server on a port of its own, in a thread of the test's process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from m3_integrations import M3Encoder, Store
from m3_integrations.engine import EncoderStats
from m3_integrations.serve import Limits
from m3_integrations.serve.app import gated
from m3_integrations.serve.gate import Gate
from m3_integrations.serve.keys import KeyRing
from m3_integrations.serve.running import make_server
from m3_integrations.serve.store import store_routes

Asked = httpx.Client


@contextmanager
def serving(app: Gate, *, timeout_s: float = 30) -> Iterator[str]:
    """Serve an app, and yield its URL; at the end what is under way ends."""
    server = make_server(app, port=0, timeout_s=timeout_s)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"


@contextmanager
def serving_store(store: Store, *, limits: Limits | None = None, **settings: Any) -> Iterator[str]:
    """Serve a store alone, which is bound to no model yet, and yield its URL."""
    limits = limits or Limits()
    keys = KeyRing(settings.pop("api_keys", ()))
    with serving(gated([store_routes(store, limits)], EncoderStats, limits=limits, keys=keys, **settings)) as url:
        yield url


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return when something has become true in another thread or process."""
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def served(small: Path) -> Iterator[M3Encoder]:
    """What the servers of a module have: a network of their own, nothing cached."""
    with M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0) as encoder:
        yield encoder


@pytest.fixture
def alone(small: Path) -> Iterator[M3Encoder]:
    """An encoder for one test, which may hold up its passes."""
    with M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0) as encoder:
        yield encoder
