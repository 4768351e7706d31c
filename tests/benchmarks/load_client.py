"""A client that may send what is wrong, and the count of what came of it; for `load_serve`."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """What came of all requests."""

    by_status: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)
    terminated_at: float = float("inf")
    """When SIGTERM was sent: what was sent later may find no server."""

    def right(self, kind: str, status: int, began: float) -> bool:
        """Count an answer to a right request, and return whether it is one."""
        self.by_status[kind][str(status)] += 1
        if status == 200:
            self.seconds[kind].append(time.monotonic() - began)
            return True
        if status not in {429, 503} or (status == 503 and self.terminated_at == float("inf")):
            self.faults.append(f"{kind} got {status}")
        return False

    def expect(self, kind: str, status: int, allowed: set[int]) -> None:
        """Count an answer to a wrong request."""
        self.by_status[kind][str(status)] += 1
        if status not in allowed | {429} and not (status == 503 and self.terminated_at < float("inf")):
            self.faults.append(f"{kind} got {status}, not one of {sorted(allowed)}")

    def check(self, kind: str, is_so: bool) -> None:
        """Note a wrong answer."""
        if not is_so:
            self.faults.append(f"{kind} got a wrong answer")


class Connection:
    """One connection at a time, by hand: no client library would send what is wrong."""

    def __init__(self, port: int, tally: Tally) -> None:
        self.port, self.tally = port, tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the open connection, or a new one."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16)
        return self._streams

    def close(self) -> None:
        """Drop the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def ask(
        self, kind: str, path: str, body: bytes, *, pause_s: float = 0.0, patience_s: float = float("inf")
    ) -> tuple[int, bytes]:
        """Send a whole request and return status and body, reading slowly if told to.

        Status 0 is no answer: a fault, unless the request was sent after SIGTERM, or came to take too long.
        """
        sent_at = time.monotonic()
        try:
            reader, writer = await self.open()
            writer.write(head(path, len(body)) + body)
            await writer.drain()
            sent_at = time.monotonic()
            return await self.receive(reader, pause_s)
        except (OSError, EOFError) as error:
            self.close()
            if sent_at < self.tally.terminated_at and time.monotonic() - sent_at < patience_s:
                self.tally.faults.append(f"{kind} got no answer ({type(error).__name__})")
            return 0, b""

    async def receive(self, reader: asyncio.StreamReader, pause_s: float = 0.0) -> tuple[int, bytes]:
        """Return status and body of the next answer."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        left, parts = int(headers.get("content-length", 0)), []
        while left:
            part = await reader.read(min(left, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            left -= len(part)
            if pause_s:
                await asyncio.sleep(pause_s)
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), b"".join(parts)


def head(path: str, n_bytes: int) -> bytes:
    """Return a request's headers."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {n_bytes}\r\n\r\n"
    ).encode()


def own_memory_mb(process_id: int) -> float:
    """Return the memory that a process has made itself, without files that it maps."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


async def watch(process_id: int, until: float) -> list[float]:
    """Return the server's memory, each half second."""
    seen = []
    while time.monotonic() < until:
        seen.append(own_memory_mb(process_id))
        await asyncio.sleep(0.5)
    return seen
