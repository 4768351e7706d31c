"""A real `m3 serve` on loopback with its encoder, and a server whose answers a test can choose."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from m3_integrations import M3Encoder, RemoteEncoder
from m3_integrations.serve import Limits, create_app
from m3_integrations.serve.running import make_server


@contextmanager
def served(encoder: M3Encoder, **settings: Any) -> Iterator[str]:
    """Serve an encoder in a thread, and yield the URL."""
    # Only if the protocol is TCP does asyncio turn Nagle's algorithm off, which would cost 40 ms for each request.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = make_server(create_app(encoder, **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="session")
def local(small: Path) -> Iterator[M3Encoder]:
    """The encoder that the server uses."""
    with M3Encoder(small, shared=False, device="cpu", query_instruction="find: ") as encoder:
        yield encoder


@pytest.fixture(scope="session")
def url(local: M3Encoder) -> Iterator[str]:
    """A server whose requests may hold few texts, so that calls become several requests."""
    pytest.importorskip("pytest_socket").enable_socket()
    with served(local, limits=Limits(max_texts=8, max_body_bytes=20_000)) as where:
        yield where


@pytest.fixture
def remote(url: str) -> Iterator[RemoteEncoder]:
    with RemoteEncoder(url) as encoder:
        yield encoder


Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body of an answer."""


@dataclass
class Scripted:
    """A server whose next answers a test can replace."""

    url: str = ""
    script: list[Reply | str] = field(default_factory=list)
    """The next answers, in order; "reset" breaks the connection, "hang" never answers."""

    asked: list[tuple[float, str, Any, dict[str, str]]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def scripted(url: str) -> Iterator[Scripted]:
    """A server that answers from its script; requests beyond the script go to the real server."""
    import httpx

    state = Scripted()
    onward = httpx.Client(headers={"Content-Type": "application/json"})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = json.loads(body) if body else None
            state.asked.append((time.monotonic(), self.path, sent, dict(self.headers)))
            planned = state.script.pop(0) if state.script else None
            if planned == "reset":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if planned == "hang":
                state.ended.wait(20)
                self.close_connection = True
                return
            if planned is None:
                found = onward.request(
                    self.command, url + self.path, content=body, headers={"Content-Type": "application/json"}
                )
                status, headers = found.status_code, dict(found.headers)
                answer = found.content
            else:
                assert not isinstance(planned, str)
                status, headers, answer = planned
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"content-length", "date", "server"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _answer

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Print nothing: in some tests clients close their connections on purpose."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
        onward.close()
