"""Connections that never become requests."""

import asyncio
import socket
import threading
import time

import httpx
import pytest

from m3_integrations import M3Encoder
from m3_integrations.serve import create_app
from m3_integrations.serve.running import make_server
from tests.serve.conftest import wait_until

pytestmark = pytest.mark.enable_socket

HALF = b"POST /v1/encode HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", HALF, WHOLE + HALF], ids=["nothing", "half", "half-after-a-request"])
def test_a_connection_without_whole_headers_is_closed_in_time(served: M3Encoder, sent: bytes) -> None:
    server = make_server(create_app(served), port=0, idle_s=1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(sent)
            received = b""
            while part := _receive(client, drip=bool(sent)):
                received += part
        assert received.startswith(b"HTTP/1.1 200") == sent.startswith(WHOLE)
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    finally:
        server.should_exit = True
        thread.join(60)


def _receive(client: socket.socket, *, drip: bool) -> bytes:
    """Return what comes, or nothing at the end; meanwhile a byte of a header goes out now and then."""
    client.settimeout(0.2)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            return client.recv(4096)
        except TimeoutError:
            if drip:
                try:
                    client.sendall(b"x")
                except ConnectionError:
                    return b""
        except ConnectionError:
            return b""
    raise AssertionError("the connection stayed open")


def test_headers_that_arrive_in_pieces_are_answered(served: M3Encoder) -> None:
    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in WHOLE:
            writer.write(bytes([byte]))
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return head

    server = make_server(create_app(served), port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        assert asyncio.run(ask(port)).startswith(b"HTTP/1.1 200")
    finally:
        server.should_exit = True
        thread.join(60)
