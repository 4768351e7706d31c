"""Measure what writing to a Qdrant server by gRPC, reading from it and searching cost on our side of the connection.

    python -m tests.benchmarks.bench_server --records 1000 --tokens 150 --dim 256 --url http://localhost:6333

Two contenders in one run: qdrant-client's own calls, which make a Python number of every float, and ours, which do not.
Without a URL a process on this machine takes what is sent and answers at once (see server_sink.py), so that the clock
is our side's and the transport's; with --delay-ms it lets that long pass for each batch, as a server would. With a URL
the clock is a server's too. CPU is this process's alone. Vectors are random; the folder that is copied holds the same
records. The collection is a new one and is deleted.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
import uuid
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from qdrant_client import QdrantClient

from m3_integrations import M3Vectors, Searcher, Store, open_store
from m3_integrations.store import copy_store
from m3_integrations.store.packed import PackedPoints
from m3_integrations.vectors import LexicalRows, MultiVectorRows, offsets_of
from tests.benchmarks.measure import describe_machine, describe_versions
from tests.benchmarks.search_workload import KnownQueries
from tests.benchmarks.server_sink import sink

N_SEARCHES, N_WEIGHTS, TEXT = 50, 90, "Rotate the keys once a year. " * 25

Seconds = tuple[float, float]
"""On the clock, and of this process's CPU."""


def make_vectors(n: int, tokens: int, dim: int) -> M3Vectors:
    random = np.random.default_rng(0)
    indices = np.concatenate([np.sort(random.choice(250_000, N_WEIGHTS, replace=False)) for _ in range(n)])
    flat = random.standard_normal((n * tokens, dim), np.float32)
    return M3Vectors(
        dense=random.standard_normal((n, dim), np.float32),
        lexical=LexicalRows(offsets_of([N_WEIGHTS] * n), indices, random.random(n * N_WEIGHTS, np.float32)),
        multi_vector=MultiVectorRows(offsets_of([tokens] * n), flat / np.linalg.norm(flat, axis=1, keepdims=True)),
    )


def timed(call: Callable[[], object]) -> Seconds:
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


def fill(store: Store, vectors: M3Vectors) -> None:
    for start in range(0, len(vectors), 500):
        rows = range(start, min(start + 500, len(vectors)))
        metadatas = [{"year": 2000 + i % 25, "title": f"title {i}", "tags": ["a", "b"]} for i in rows]
        store.upsert([f"r{i}" for i in rows], [TEXT] * len(rows), metadatas, vectors[rows.start : rows.stop])


def measure(url: str, grpc_port: int, api_key: str | None, folder: Store, vectors: M3Vectors) -> dict[str, Seconds]:
    """Return the seconds that each kind of work took; a search's is the median of fifty."""
    names = [f"bench-{uuid.uuid4()}" for _ in range(2)]
    took: dict[str, Seconds] = {}
    client = QdrantClient(
        url=url, grpc_port=grpc_port, prefer_grpc=True, api_key=api_key, timeout=60, check_compatibility=False
    )
    for what, name in zip(("upsert", "copy_store from a folder"), names, strict=True):
        with open_store(url, grpc_port=grpc_port, api_key=api_key, collection=name) as store:
            if what == "upsert":
                fill(store, vectors[:1])  # the collection and its indexes
                took[what] = timed(lambda store=store: fill(store, vectors))  # type: ignore[misc]
            else:
                took[what] = timed(lambda store=store: copy_store(folder, store))  # type: ignore[misc]
                with open_store() as memory:
                    took["copy_store into memory"] = timed(lambda: copy_store(store, memory))
                searcher = Searcher(KnownQueries(make_vectors(N_SEARCHES, 12, vectors.dense.shape[1])), store)
                searches = [timed(lambda i=i: searcher.search(str(i))) for i in range(N_SEARCHES)]  # type: ignore[misc]  # noqa: B023
                took["a search in all modes"] = tuple(np.median(searches, axis=0).tolist())
        client.delete_collection(name)
    client.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in (
        ("records", 1000),
        ("tokens", 150),
        ("dim", 256),
        ("grpc-port", 6334),
        ("repeats", 3),
        ("delay-ms", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--url")
    parser.add_argument("--api-key")
    asked = parser.parse_args()
    print(describe_machine("cpu"))
    print(describe_versions("m3-integrations", "qdrant-client", "grpcio", "protobuf", "qdrant-edge-py", "numpy"))
    print(
        f"{asked.records} records, {asked.tokens} token vectors of {asked.dim} numbers; the best of {asked.repeats}\n"
    )
    vectors = make_vectors(asked.records, asked.tokens, asked.dim)
    runs: dict[str, list[dict[str, Seconds]]] = {"client's own": [], "packed": []}
    with tempfile.TemporaryDirectory() as place, open_store(place) as folder, contextlib.ExitStack() as stack:
        folder.bind(KnownQueries.fingerprint)
        fill(folder, vectors)
        url = asked.url or "http://127.0.0.1:1"
        port = asked.grpc_port if asked.url else stack.enter_context(sink(asked.delay_ms / 1000))
        for _ in range(asked.repeats):
            with patch.object(PackedPoints, "of", return_value=None):
                runs["client's own"].append(measure(url, port, asked.api_key, folder, vectors))
            runs["packed"].append(measure(url, port, asked.api_key, folder, vectors))
    print(f"{'':<26}{'':<14}{'records/s':>10}{'s':>9}{'CPU s':>9}    a thousand records; a thousand searches")
    for what in runs["packed"][0]:
        n = 1 if what.startswith("a search") else asked.records
        best = {who: np.min([run[what] for run in each], axis=0) / n * 1000 for who, each in runs.items()}
        for who, (seconds, cpu) in best.items():
            rate = f"{1000 / seconds:.0f}" if n > 1 else ""
            print(f"{what:<26}{who:<14}{rate:>10}{seconds:>9.2f}{cpu:>9.2f}")
        (seconds, cpu), (ours_s, ours_cpu) = best.values()
        print(f"{'':<26}{'ratio':<14}{'':>10}{seconds / ours_s:>9.1f}{cpu / ours_cpu:>9.1f}")


if __name__ == "__main__":
    main()
