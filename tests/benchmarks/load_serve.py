"""`m3 serve` under load and faults: many connections, right and wrong requests, and SIGTERM in the middle.

    python -m tests.benchmarks.load_serve --seconds 120

The server is a process of its own on this machine, with a store in a folder. Every connection asks one thing after
another, chosen by a seeded generator: texts in all views, OpenAI's embeddings, reranking, searches, records that are
added, read and deleted; between them slow readers, bodies and headers that stop half-way, clients that vanish, bodies
that are too large, and malformed ones. Right answers are compared with those of an encoder in this process, or with
what the idle server answered before. At the end SIGTERM comes while all connections ask. The exit status is 1 if an
answer was wrong, if a request that had been sent whole got none, if a wrong one got a status of 500 or above, if the
server did not end with 0, or if its memory grew by more than a fifth in the second half. Memory is not judged in runs
of less than a minute: caches fill and every thread still gets its pools.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load

from m3_integrations import M3Encoder
from m3_integrations.vectors import M3Vectors
from tests.benchmarks.bench_serve import server, text
from tests.benchmarks.load_client import Connection, Tally, head, watch

N_RECORDS, TOLERANCE, TIMEOUT_S, WARM_S = 100, 1e-6, 10, 60
TEXTS = [text(i, 5 + 7 * i % 60) for i in range(60)]
QUERIES = [text(1000 + i, 6) for i in range(10)]


class Expected:
    """The right answers."""

    def __init__(self, model: str, url: str) -> None:
        self.encoder = M3Encoder(model, device="cpu")
        self.vectors = self.encoder.encode(TEXTS)
        self.scores = [self.encoder.score(query, TEXTS[:8]).combined for query in QUERIES]
        self.name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        records = [{"id": f"r{i}", "text": TEXTS[i % len(TEXTS)], "metadata": {"kept": i}} for i in range(N_RECORDS)]
        httpx.post(f"{url}/v1/records", json={"records": records}, timeout=60).raise_for_status()
        self.searches = [self._search(url, query) for query in QUERIES]

    @staticmethod
    def question(query: str) -> dict[str, Any]:
        """Return what is asked: among the records that stay."""
        return {"query": query, "k": 5, "filter": {"kept": {"$gte": 0}}}

    def _search(self, url: str, query: str) -> list[tuple[str, float]]:
        hits = httpx.post(f"{url}/v1/search", json=self.question(query), timeout=60).json()["hits"]
        return [(hit["id"], hit["score"]) for hit in hits]


def dumps(value: Any) -> bytes:
    """Return JSON."""
    return json.dumps(value).encode()


def is_close(one: Any, other: Any) -> bool:
    """Whether two arrays are equal to 1e-6."""
    return np.shape(one) == np.shape(other) and bool(np.allclose(one, other, rtol=0, atol=TOLERANCE))


class Caller:
    """One connection's requests."""

    def __init__(self, number: int, port: int, tally: Tally, expected: Expected, seed: int) -> None:
        self.number, self.tally, self.expected = number, tally, expected
        self.random = random.Random(1000 * seed + number)
        self.connection = Connection(port, tally)
        self.n_asked = 0

    async def run(self, until: float, kinds: dict[str, int]) -> None:
        """Ask until the time is over, or the server is gone."""
        while time.monotonic() < until:
            kind = self.random.choices(list(kinds), list(kinds.values()))[0]
            self.n_asked += 1
            call: Callable[[], Awaitable[None]] = getattr(self, kind)
            await call()
            if self.tally.terminated_at < float("inf"):
                break
        self.connection.close()

    async def encode(
        self, *, kind: str = "encode", n: int = 3, pause_s: float = 0.0, patience_s: float = float("inf")
    ) -> None:
        """All three views of some texts."""
        rows = [self.random.randrange(len(TEXTS)) for _ in range(n)]
        began = time.monotonic()
        status, body = await self.connection.ask(
            kind, "/v1/encode", dumps({"texts": [TEXTS[row] for row in rows]}), pause_s=pause_s,
            patience_s=patience_s,
        )  # fmt: skip
        if status and self.tally.right(kind, status, began):
            self.tally.check(kind, is_same(load(body), [self.expected.vectors[row] for row in rows]))

    async def bulk(self) -> None:
        """Many texts."""
        await self.encode(kind="bulk", n=64)

    async def slow_reader(self) -> None:
        """An answer of megabytes, read in pieces. The server gives up a reader that takes longer than a request may."""
        self.connection.close()
        began = time.monotonic()
        await self.encode(kind="slow_reader", n=128, pause_s=0.02, patience_s=TIMEOUT_S)
        if time.monotonic() - began > TIMEOUT_S:
            self.tally.by_status["slow_reader"][f"took over {TIMEOUT_S} s"] += 1
        self.connection.close()

    async def embed(self) -> None:
        """OpenAI's embeddings."""
        rows = [self.random.randrange(len(TEXTS)) for _ in range(2)]
        asked = {"model": self.expected.name, "input": [TEXTS[row] for row in rows], "encoding_format": "base64"}
        began = time.monotonic()
        status, body = await self.connection.ask("embed", "/v1/embeddings", dumps(asked))
        if status and self.tally.right("embed", status, began):
            got = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in json.loads(body)["data"]]
            self.tally.check("embed", is_close(got, [self.expected.vectors.dense[row] for row in rows]))

    async def rerank(self) -> None:
        """Cohere's ranking."""
        row, began = self.random.randrange(len(QUERIES)), time.monotonic()
        asked = {"query": QUERIES[row], "documents": TEXTS[:8]}
        status, body = await self.connection.ask("rerank", "/v2/rerank", dumps(asked))
        if status and self.tally.right("rerank", status, began):
            got = {each["index"]: each["relevance_score"] for each in json.loads(body)["results"]}
            self.tally.check("rerank", is_close([got[i] for i in range(8)], self.expected.scores[row]))

    async def search(self) -> None:
        """A search among the records that stay."""
        row, began = self.random.randrange(len(QUERIES)), time.monotonic()
        status, body = await self.connection.ask("search", "/v1/search", dumps(self.expected.question(QUERIES[row])))
        if status and self.tally.right("search", status, began):
            got = [(hit["id"], hit["score"]) for hit in json.loads(body)["hits"]]
            ids = [id_ for id_, _ in got] == [id_ for id_, _ in self.expected.searches[row]]
            close = is_close([score for _, score in got], [score for _, score in self.expected.searches[row]])
            self.tally.check("search", ids and close)

    async def record(self) -> None:
        """A record of its own: added, read, deleted."""
        id_, began = f"own-{self.number}-{self.n_asked}", time.monotonic()
        words = text(10_000 + self.random.randrange(1000), 8)
        asked = {"records": [{"id": id_, "text": words, "metadata": {"own": self.number}}]}
        status, _ = await self.connection.ask("add", "/v1/records", dumps(asked))
        if not status or not self.tally.right("add", status, began):
            return
        status, body = await self.connection.ask("get", "/v1/records/get", dumps({"ids": [id_]}))
        if status and self.tally.right("get", status, began):
            found = [(each["id"], each["text"], each["metadata"]) for each in json.loads(body)["records"]]
            self.tally.check("get", found == [(id_, words, {"own": self.number})])
        status, body = await self.connection.ask("delete", "/v1/records/delete", dumps({"ids": [id_]}))
        if status and self.tally.right("delete", status, began):
            self.tally.check("delete", json.loads(body) == {"deleted": 1})

    async def vanish(self) -> None:
        """A whole request whose client goes away at once."""
        await self._send_and_go("vanish", head("/v1/encode", len(BULK)) + BULK)

    async def half_body(self) -> None:
        """A body that stops half-way, and the client goes."""
        await self._send_and_go("half_body", head("/v1/encode", len(BULK)) + BULK[: len(BULK) // 2])

    async def half_headers(self) -> None:
        """Headers that stop half-way, and the client goes."""
        await self._send_and_go("half_headers", head("/v1/encode", 10)[: self.random.randrange(60)])

    async def _send_and_go(self, kind: str, sent: bytes) -> None:
        self.connection.close()
        try:
            _, writer = await self.connection.open()
            writer.write(sent)
            await writer.drain()
            await asyncio.sleep(self.random.random() * 0.2)
        except OSError as error:
            if self.tally.terminated_at == float("inf"):
                self.tally.faults.append(f"{kind}: {error!r}")
        self.connection.close()
        self.tally.by_status[kind]["gone"] += 1

    async def stalled_body(self) -> None:
        """A body that stops half-way, and the client waits."""
        self.connection.close()
        try:
            reader, writer = await self.connection.open()
            writer.write(head("/v1/encode", len(BULK)) + BULK[: len(BULK) // 2])
            status, _ = await self.connection.receive(reader)
            self.tally.expect("stalled_body", status, {408})
        except (OSError, EOFError) as error:
            if self.tally.terminated_at == float("inf"):
                self.tally.faults.append(f"stalled_body: {error!r}")
        self.connection.close()

    async def oversize(self) -> None:
        """A body that says it is too large, or is."""
        self.connection.close()
        chunk = b"%x\r\n%b\r\n" % (1 << 16, b"x" * (1 << 16))
        chunked = head("/v1/encode", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + 200 * chunk
        sent = self.random.choice([head("/v1/encode", 1 << 40), chunked])
        try:
            reader, writer = await self.connection.open()
            writer.write(sent)
            status, _ = await self.connection.receive(reader)
            self.tally.expect("oversize", status, {413})
        except (OSError, EOFError):
            # The server answers and closes without reading on, so the answer may be lost to a sender that goes on.
            self.tally.by_status["oversize"]["closed"] += 1
        self.connection.close()

    async def malformed(self) -> None:
        """What no door can read."""
        path, body = self.random.choice(MALFORMED)
        status, _ = await self.connection.ask("malformed", path, body)
        if status:
            self.tally.expect("malformed", status, {400, 404, 405, 413, 422})

    async def garbage(self) -> None:
        """What is no HTTP."""
        self.connection.close()
        try:
            reader, writer = await self.connection.open()
            writer.write(self.random.randbytes(200) + b"\r\n\r\n")
            status, _ = await self.connection.receive(reader)
            self.tally.expect("garbage", status, {400})
        except (OSError, EOFError):
            self.tally.by_status["garbage"]["closed"] += 1
        self.connection.close()


BULK = dumps({"texts": [text(5000 + i, 80) for i in range(128)]})
DEEP = b"[" * 100_000 + b"]" * 100_000
MALFORMED = [
    ("/v1/encode", b""), ("/v1/encode", b"{"), ("/v1/encode", b"\xff\xfe"), ("/v1/encode", b"null"),
    ("/v1/encode", b'{"texts": "one"}'), ("/v1/encode", b'{"texts": [1]}'), ("/v1/encode", b'{"texts": ["\\ud800"]}'),
    ("/v1/encode", b'{"texts": ["a"], "modes": ["sparse"]}'), ("/v1/encode", b'{"texts": ["a"], "max_length": 1e400}'),
    ("/v1/encode", b'{"texts": ["a"], "unknown": 1}'), ("/v1/encode", b'{"texts": ' + DEEP + b"}"),
    ("/v1/encode", dumps({"texts": ["a"] * 5000})), ("/v1/embeddings", b'{"model": "other", "input": "a"}'),
    ("/v1/embeddings", b'{"model": "tiny", "input": [[1, 2]]}'), ("/v1/nothing", b"{}"), ("/health", b"{}"),
    ("/rerank", b'{"query": "a", "documents": ["b"], "texts": ["b"]}'), ("/rerank", b'{"query": "a"}'),
    ("/rerank", b'{"query": "a", "documents": ["b"], "top_n": 0}'), ("/v1/search", b'{"query": "a", "k": 0}'),
    ("/rerank", b'{"query": "a", "documents": ["b"], "weights": [0, 0, 0]}'),
    ("/v1/search", b'{"query": "a", "k": 99999999999999999999}'), ("/v1/search", b'{"query": "a", "k": NaN}'),
    ("/v1/search", b'{"query": "a", "filter": {"kept": {"$like": 1}}}'),
    ("/v1/search", b'{"query": "a", "filter": {"a": ' + DEEP + b"}}"),
    ("/v1/records", b'{"records": [{"text": "a", "metadata": {"n": 1e999}}]}'),
    ("/v1/records", b'{"records": [{"text": "a", "id": "\\ud800"}]}'), ("/v1/records", b'{"records": [{"id": "a"}]}'),
    ("/v1/records/delete", b"{}"), ("/v1/records/delete", b'{"filter": {}}'), ("/v1/records/get", b'{"ids": "a"}'),
]  # fmt: skip

RIGHT = {"encode": 30, "embed": 10, "rerank": 10, "search": 15, "record": 8}
WRONG = {
    "bulk": 3, "slow_reader": 1, "vanish": 4, "half_body": 3, "half_headers": 3, "stalled_body": 1, "oversize": 2,
    "malformed": 10, "garbage": 2,
}  # fmt: skip


def is_same(tensors: dict[str, Any], rows: list[M3Vectors]) -> bool:
    """Whether an answer of /v1/encode holds these texts' vectors."""
    expected = M3Vectors.concatenate(rows)
    names = ("offsets", "indices", "values")
    return (
        is_close(tensors["dense"], expected.dense)
        and all(is_close(tensors[f"lexical.{name}"], getattr(expected.lexical, name)) for name in names)
        and is_close(tensors["multi_vector.flat"], expected.multi_vector.flat)
    )


async def load_and_end(process: subprocess.Popen[bytes], port: int, expected: Expected, args: Any) -> Tally:
    """Ask for a time, then send SIGTERM in the middle, and print what came of it."""
    tally = Tally()
    callers = [Caller(i, port, tally, expected, args.seed) for i in range(args.connections)]
    until = time.monotonic() + args.seconds
    watching = asyncio.create_task(watch(process.pid, until))
    await asyncio.gather(*(caller.run(until, RIGHT | WRONG) for caller in callers))
    memory = await watching
    show(tally, args.seconds)
    eighths = [float(np.median(part)) for part in np.array_split(np.array(memory), 8)]
    print("server's own memory, by eighths of the time: " + ", ".join(f"{mb:.0f}" for mb in eighths) + " MB")
    if args.seconds >= WARM_S and eighths[-1] > 1.2 * eighths[3]:
        tally.faults.append("memory grew")
    ending = Tally(faults=tally.faults)
    callers = [Caller(i, port, ending, expected, args.seed + 1) for i in range(args.connections)]
    tasks = [asyncio.create_task(caller.run(float("inf"), RIGHT | {"bulk": 30})) for caller in callers]
    await asyncio.sleep(min(2.0, args.seconds / 4))
    ending.terminated_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    status = await asyncio.to_thread(process.wait, 60)
    print(f"\nSIGTERM: the server ended with {status} after {time.monotonic() - ending.terminated_at:.1f} s")
    if status != 0:
        ending.faults.append(f"the server ended with {status}")
    show(ending, args.seconds)
    return ending


def show(tally: Tally, seconds: float) -> None:
    """Print the table."""
    print(f"{'request':<13} {'number':>6} {'p50 ms':>7} {'p95 ms':>7} {'p99 ms':>7}  statuses")
    for kind, statuses in tally.by_status.items():
        times = 1000 * np.quantile(tally.seconds.get(kind) or [0], [0.5, 0.95, 0.99])
        shown = " ".join(f"{each:7.0f}" for each in times) if kind in tally.seconds else " " * 23
        print(f"{kind:<13} {statuses.total():>6} {shown}  " + ", ".join(f"{k}: {n}" for k, n in statuses.most_common()))
    n = sum(statuses.total() for statuses in tally.by_status.values())
    print(
        f"{n} requests, {n / seconds:.0f} a second; {len(tally.faults)} faults {Counter(tally.faults).most_common(5)}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        options = ("--store", folder + "/store", "--timeout-s", str(TIMEOUT_S), "--max-running", "16")
        with server(args.model, *options) as (url, process):
            expected = Expected(args.model, url)
            tally = asyncio.run(load_and_end(process, int(url.rpartition(":")[2]), expected, args))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
