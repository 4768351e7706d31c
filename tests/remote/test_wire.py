"""Connections are reused, and each way to end or damage one has its error, tested on a server with scripted bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from m3_integrations.remote import wire
from m3_integrations.remote.wire import BrokenError, UnreachableError, Wire

pytestmark = pytest.mark.enable_socket

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answer every request with the next bytes of a script, and close the connection after the last."""

    def __init__(self, script: list[bytes]) -> None:
        self.script, self.n_connections, self.requests = script, 0, list[bytes]()
        self.port = 0
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/below"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        self.tasks.append(cast("asyncio.Task[None]", asyncio.current_task()))
        with contextlib.suppress(asyncio.IncompleteReadError):
            while self.script:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                writer.write(self.script.pop(0))
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def playing(*script: bytes) -> AsyncIterator[tuple[Server, Wire]]:
    state = Server(list(script))
    server = await asyncio.start_server(state.answer, "127.0.0.1", 0)
    state.port = server.sockets[0].getsockname()[1]
    client = Wire(state.url, {"X-Key": "k"})
    try:
        yield state, client
    finally:
        client.close()
        server.close()
        await asyncio.gather(*state.tasks)


async def test_a_connection_is_used_again() -> None:
    async with playing(OK, OK, OK) as (server, client):
        for body in (None, b"{}", b"x" * 3_000_000):
            reply = await client.exchange("/door", body, max_bytes=2)
            assert (reply.status, reply.headers, reply.body) == (200, {"content-length": "2"}, b"ok")
        assert server.n_connections == 1
        first, second, third = server.requests
        assert first == f"GET /below/door HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nX-Key: k\r\n\r\n".encode()
        assert second.startswith(b"POST /below/door HTTP/1.1\r\n")
        assert second.endswith(b"\r\n\r\n{}")
        assert third.endswith(b"x" * 3_000_000)


async def test_several_requests_at_a_time_have_a_connection_each() -> None:
    async with playing(*[OK] * 3) as (server, client):
        replies = await asyncio.gather(*(client.exchange("/", None, max_bytes=2) for _ in range(3)))
        assert [reply.body for reply in replies] == [b"ok"] * 3
        assert server.n_connections == 3


async def test_an_answer_in_chunks_after_an_interim_one_is_read_whole() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    async with playing(interim + chunked, OK) as (server, client):
        assert (await client.exchange("/", None, max_bytes=4)).body == b"abcd"
        assert (await client.exchange("/", None, max_bytes=4)).body == b"ok"
        assert server.n_connections == 1


@pytest.mark.parametrize("how", ["closed by the server", "asked to close", "too old"])
async def test_a_connection_that_cannot_be_used_again_is_replaced(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n") if how == "asked to close" else OK
    async with playing(*([first] if how == "closed by the server" else [first, OK])) as (server, client):
        await client.exchange("/", None, max_bytes=2)
        if how == "too old":
            monkeypatch.setattr(wire, "_KEPT_ALIVE_S", 0.0)
        if how == "closed by the server":
            while client._idle[0].is_usable():
                await asyncio.sleep(0)
            server.script = [OK]
        assert (await client.exchange("/", None, max_bytes=2)).body == b"ok"
        assert server.n_connections == 2


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"HTTP/1.1 200 OK\r\n", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"],
)
async def test_an_answer_that_is_broken_off_or_no_http_is_no_answer(answer: bytes) -> None:
    async with playing(answer) as (_, client):
        with pytest.raises(BrokenError):
            await client.exchange("/", b"{}", max_bytes=9)
        assert client._idle == []


async def test_a_port_without_a_server_is_unreachable() -> None:
    async with playing() as (server, _):
        pass
    with pytest.raises(UnreachableError):
        await Wire(server.url, {}).exchange("/", None, max_bytes=2)
