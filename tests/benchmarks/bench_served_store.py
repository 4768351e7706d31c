"""What a store costs behind `m3 serve`: searches and upserts over it, and over the same stores in this process.

    python -m tests.benchmarks.bench_served_store --records 2000 --tokens 60

Vectors are random and of BGE-M3's size. The server is a process of its own on this machine, with a folder. A search is
what `Searcher` asks of a store: candidates by the dense and the lexical leg (100 each), their scores in all three
modes, and the best 4 with their texts; the query is encoded before. The clock covers the calls alone; searches go in
turns. "local mode" is qdrant-client's, in memory.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from qdrant_client import QdrantClient

from m3_integrations import M3Vectors, Store, open_store
from m3_integrations.store.served import is_m3_serve
from m3_integrations.store.server import ServerStore
from m3_integrations.vectors import MODES, LexicalRows, MultiVectorRows, offsets_of
from tests.benchmarks.bench_serve import in_turns
from tests.benchmarks.measure import describe_machine, describe_versions

DIM = 1024


def random_vectors(random: np.random.Generator, n: int, tokens: int) -> M3Vectors:
    """Return those of n texts with so many tokens each."""
    dense, flat = (random.normal(size=(rows, DIM)).astype(np.float32) for rows in (n, n * tokens))
    indices = np.concatenate([np.sort(random.choice(250_002, tokens, replace=False)) for _ in range(n)])
    offsets = offsets_of([tokens] * n)
    return M3Vectors(
        dense=dense / np.linalg.norm(dense, axis=1, keepdims=True),
        lexical=LexicalRows(offsets, indices.astype(np.int32), random.random(n * tokens).astype(np.float32)),
        multi_vector=MultiVectorRows(offsets, flat / np.linalg.norm(flat, axis=1, keepdims=True)),
    )


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yield the URL of an `m3 serve` over a new folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        f"from m3_integrations.cli import app; app(['serve', 'tiny', '--store', {str(folder)!r}, '--port', '{port}'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_m3_serve(url):
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def search(store: Store, query: M3Vectors) -> list[str]:
    """Return the ids of the best 4, by the mean of the three modes."""
    found = store.candidates(query, {"dense": 100, "lexical": 100})
    ids, scores = store.scores(query, sorted({id_ for hits in found.values() for id_ in hits.ids}), MODES, found)
    best = np.argsort(-sum(scores.values(), np.zeros(1)), kind="stable")[:4]
    return [record.id for record in store.get([ids[row] for row in best])]


def fill(store: Store, vectors: M3Vectors, batch: int) -> float:
    """Return how many records a second are stored."""
    n = len(vectors)
    ids, texts = [f"r{i}" for i in range(n)], ["some words " * 20] * n
    parts = [(start, vectors[start : start + batch]) for start in range(0, n, batch)]
    began = time.perf_counter()
    for start, part in parts:
        end = start + len(part)
        store.upsert(ids[start:end], texts[start:end], [{"year": i % 30} for i in range(start, end)], part)
    return n / (time.perf_counter() - began)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--batch", type=int, default=100, help="Records of one upsert.")
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--local-mode", action="store_true", help="Also qdrant-client's, which is slow.")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Local mode|Payload indexes")
    random = np.random.default_rng(0)
    vectors = random_vectors(random, args.records, args.tokens)
    queries = [random_vectors(random, 1, 12) for _ in range(args.queries + 1)]
    print(f"machine: {describe_machine('cpu')}")
    print(f"versions: {describe_versions('qdrant-edge-py', 'qdrant-client', 'httpx', 'uvicorn')}")
    print(f"{args.records} records of {args.tokens} tokens, {DIM} dimensions; upserts of {args.batch}")
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        url = stack.enter_context(served(Path(place) / "behind"))
        stores: dict[str, Store] = {
            "folder": stack.enter_context(open_store(Path(place) / "own")),
            "folder behind m3 serve": stack.enter_context(open_store(url)),
            "memory": stack.enter_context(open_store()),
        }
        if args.local_mode:
            stores["local mode"] = stack.enter_context(ServerStore("local", client=QdrantClient(":memory:")))
        rates = {name: fill(store, vectors, args.batch) for name, store in stores.items()}
        answers = {name: [search(store, query) for query in queries[:20]] for name, store in stores.items()}
        calls: dict[str, Callable[[int], object]] = {
            name: lambda i, s=store: search(s, queries[i])  # type: ignore[misc]
            for name, store in stores.items()
        }
        seconds = in_turns(calls, args.queries)
        for name in stores:
            p50, p95 = np.quantile(seconds[name], [0.5, 0.95]) * 1000
            same = sum(a == b for a, b in zip(answers[name], answers["folder"], strict=True))
            print(
                f"{name:<24} {rates[name]:7.0f} records/s, search p50 {p50:6.1f} ms, p95 {p95:6.1f} ms, "
                f"{same} of 20 answers as the folder's"
            )


if __name__ == "__main__":
    main()
