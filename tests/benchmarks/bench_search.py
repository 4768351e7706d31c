"""Measure the store in a folder, and compare it with BGEM3Index and EnsembleRetriever in the same run.

    python -m tests.benchmarks.bench_search --records 100000 --with-tokens 10000 --peers 5000 --storage 2000 \\
        --xquad FOLDER

Vectors are random ones of BGE-M3's shape, in topics (see search_workload.py); a query's vectors are known, so that
the clock covers searching alone: candidates, exact scores, fusion and the texts of the best 10, through `Searcher`.
Each part is left out with a size of 0. FOLDER is one language of XQuAD in BEIR's layout. The peers need FlagEmbedding
and llama-index-indices-managed-bge-m3.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import qdrant_edge as edge

from m3_integrations import M3Encoder, M3Vectors, Searcher, Store, open_store
from m3_integrations.evaluation import read_dataset
from m3_integrations.evaluation.metrics import measure_queries
from m3_integrations.search import SearchMode
from m3_integrations.store.points import MultiVectorStorage
from tests.benchmarks.measure import PeakMemory, describe_machine, describe_versions
from tests.benchmarks.search_workload import Collection, KnownQueries, disk_bytes

N_QUERIES, K = 100, 10


def percentiles(search: Callable[[int], object], n: int = N_QUERIES) -> tuple[float, float, float]:
    """Give p50 and p95 on the wall clock and p50 of the process's CPU time, in milliseconds, after a warm-up."""
    for i in range(min(10, n // 2)):
        search(i)
    wall, cpu = [], []
    for i in range(n):
        start, cpu_start = time.perf_counter(), time.process_time()
        search(i)
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - cpu_start))
    p50, p95 = np.percentile(wall, [50, 95])
    return float(p50), float(p95), float(np.median(cpu))


def fill(store: Store, collection: Collection) -> float:
    """Give the seconds that adding took; making the vectors is not counted."""
    seconds = 0.0
    for batch in collection.batches():
        start = time.perf_counter()
        store.upsert(*batch)
        seconds += time.perf_counter() - start
    return seconds


def time_modes(store: Store, queries: M3Vectors, modes: tuple[SearchMode, ...]) -> None:
    """Time each mode with queries of its own, because a store remembers what earlier searches have found."""
    searcher = Searcher(KnownQueries(queries), store)
    for mode in modes:
        for what, filter_ in (("", None), (" year >= 2020", {"year": {"$gte": 2020}})):
            first = N_QUERIES * (2 * modes.index(mode) + (filter_ is not None))
            asked = partial(searcher.search, k=K, mode=mode, filter=filter_)
            p50, p95, cpu = percentiles(lambda i, asked=asked, first=first: asked(str(first + i)))  # type: ignore[misc]
            print(f"    {mode + what:<32} p50 {p50:8.2f} ms   p95 {p95:8.2f} ms   CPU {cpu:8.2f} ms")


def measure_size(n: int, n_token_vectors: int, modes: tuple[SearchMode, ...]) -> None:
    """Ingest, search, optimise, search again, open again."""
    print(f"\n{n} records, {n_token_vectors or 'no'} token vectors each")
    collection = Collection(n, n_token_vectors)
    queries = collection.queries(2 * N_QUERIES * len(modes))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "store"
        with open_store(folder) as store:
            with PeakMemory("cpu") as memory:  # not while searches are timed: it wakes up every 2 ms
                seconds = fill(store, collection)
            print(f"  added in {seconds:.1f} s, {n / seconds:.0f} records/s, {disk_bytes(folder) / 1e6:.0f} MB on disk")
            time_modes(store, queries, modes)
            start = time.perf_counter()
            with PeakMemory("cpu") as optimising:
                store.optimize()
            print(f"  optimised in {time.perf_counter() - start:.1f} s, {disk_bytes(folder) / 1e6:.0f} MB on disk")
            time_modes(store, queries, modes)
        start = time.perf_counter()
        with PeakMemory("cpu") as again, open_store(folder) as store:
            opened = time.perf_counter() - start
            searcher = Searcher(KnownQueries(queries), store)
            for i in range(N_QUERIES):
                searcher.search(str(i), k=K, mode=modes[-1])
        print(f"  opened again in {opened:.2f} s")
        peaks = {"adding": memory, "optimising": optimising, "opening and searching": again}
        print("  peak memory: " + ", ".join(f"{what} {peak.peak_mb:.0f} MB" for what, peak in peaks.items()))


def measure_searches_meanwhile(n: int) -> None:
    """Search a folder, with a pause of 20 ms after each search, while `optimize` works."""
    collection = Collection(n, 0)
    queries = collection.queries(N_QUERIES)
    with (
        tempfile.TemporaryDirectory() as place,
        open_store(Path(place) / "store") as store,
        ThreadPoolExecutor(1) as pool,
    ):
        fill(store, collection)
        searcher, waits, start = Searcher(KnownQueries(queries), store), list[float](), time.perf_counter()
        run = pool.submit(store.optimize)
        while not run.done():
            asked = time.perf_counter()
            searcher.search(str(len(waits) % N_QUERIES), k=K, mode="dense+lexical")
            waits.append(1000 * (time.perf_counter() - asked))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        print(f"\n{n} records, dense and lexical: optimised in {seconds:.1f} s, beside {len(waits)} searches")
        print(f"    a search: p50 {np.median(waits):.1f} ms, most {max(waits):.1f} ms, at the end")
        run.result()


def measure_wide_tables() -> None:
    """Add records with many keys to a folder, in a thread beside a ticking one, which an event loop might be."""
    print("\nwide tables, in a folder")
    one, hundred = Collection(1, 0), Collection(100, 0)
    rows: list[tuple[str, Collection, list[dict[str, Any]]]] = [
        ("1 record, 500 strings", one, [{f"k{i}": f"value {i}" for i in range(500)}]),
        ("1 record, 500 numbers", one, [{f"k{i}": i * 1.5 for i in range(500)}]),
        ("100 records, a number under a key of its own", hundred, [{f"k{i}": i} for i in range(100)]),
        ("100 records, 500 numbers", hundred, [{f"k{i}": i * row for i in range(500)} for row in range(100)]),
    ]
    for what, collection, metadatas in rows:
        ((ids, texts, _, vectors),) = collection.batches()
        seconds, still = [], []
        for _ in range(5):
            with tempfile.TemporaryDirectory() as place, open_store(Path(place) / "store") as store:
                store.upsert(["first"], [""], [{}], vectors[:1])
                with Ticking() as ticking:
                    start = time.perf_counter()
                    adding = threading.Thread(target=store.upsert, args=(ids, texts, metadatas, vectors))
                    adding.start()
                    adding.join()
                    seconds.append(time.perf_counter() - start)
                still.append(ticking.longest_s)
        took, stood = 1000 * float(np.median(seconds)), 1000 * float(np.median(still))
        print(f"  {what:<46} {took:7.1f} ms, another thread stood still for {stood:5.1f} ms at most")


def measure_callers(n: int) -> None:
    """Print searches a second of 1, 8 and 64 threads over one store, in memory and in a folder, all modes."""
    print(f"\nmany callers: {n} records with 40 token vectors, all modes, searches a second (CPU ms a search)")
    collection = Collection(n, 40)
    queries = collection.queries(N_QUERIES)
    batches = list(collection.batches())
    with tempfile.TemporaryDirectory() as place:
        for what, where in (("in memory", None), ("in a folder", Path(place) / "store")):
            with open_store(where) as store:
                for batch in batches:
                    store.upsert(*batch)
                store.optimize()
                searcher = Searcher(KnownQueries(queries), store)
                print(f"    {what:<14}" + "   ".join(search_together(searcher, callers) for callers in (1, 8, 64)))
        measure_gathered(Path(place) / "store" / "engine", queries)


def measure_gathered(engine: Path, queries: M3Vectors) -> None:
    """Print what gathering callers could save: the engine's CPU time for a query, if 1, 4 or 16 are in a call."""
    shard, nearest = edge.EdgeShard.load(str(engine)), edge.Query.Nearest
    exact, dense, tokens = edge.SearchParams(exact=True), queries.dense.tolist(), queries.multi_vector
    top = edge.QueryRequest(limit=200, query=nearest(dense[0], using="dense"), with_payload=False)
    among = edge.Filter(must=[edge.HasIdCondition({hit.id for hit in shard.query(top)})])

    def candidates(i: int) -> edge.QueryRequest:
        return edge.QueryRequest(limit=100, query=nearest(dense[i], using="dense"), with_payload=False)

    def max_sim(i: int) -> edge.QueryRequest:
        query = nearest(tokens[i].tolist(), using="multi_vector")
        return edge.QueryRequest(limit=200, query=query, filter=among, with_payload=False, params=exact)

    for what, ask in (("dense candidates", candidates), ("MaxSim of 200", max_sim)):
        asked, cpu_ms = [ask(i) for i in range(16)], dict[int, list[float]]()
        for _ in range(10):
            for size in (1, 4, 16):
                calls = [edge.QueryBatchRequest(asked[start : start + size]) for start in range(0, 16, size)]
                start_s = time.process_time()
                for call in calls:
                    shard.query_batch(call)
                cpu_ms.setdefault(size, []).append(1000 * (time.process_time() - start_s) / 16)
        print(f"    {what:<18}" + "   ".join(f"{n} a call {np.median(ms):.2f} CPU ms" for n, ms in cpu_ms.items()))
    shard.close()


def search_together(searcher: Searcher, callers: int, n: int = 128) -> str:
    """Let so many threads share n searches, five times after a warm-up; give the medians: a second, and CPU ms each."""
    rates, cpu_ms = [], []
    with ThreadPoolExecutor(callers) as pool:
        for turn in range(6):
            start, cpu = time.perf_counter(), time.process_time()
            list(pool.map(lambda i: searcher.search(str(i % N_QUERIES), k=K), range(n)))
            if turn:
                rates.append(n / (time.perf_counter() - start))
                cpu_ms.append(1000 * (time.process_time() - cpu) / n)
    return f"{callers:>3} threads {np.median(rates):6.0f} ({np.median(cpu_ms):5.1f})"


class Ticking:
    """A thread that wakes up every millisecond, and how long it had to wait at most."""

    def __enter__(self) -> Self:
        self.longest_s, self._is_over = 0.0, False
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def _tick(self) -> None:
        last = time.perf_counter()
        while not self._is_over:
            time.sleep(0.001)
            now = time.perf_counter()
            self.longest_s, last = max(self.longest_s, now - last), now


def measure_peers(n: int) -> None:
    """Time the three on the same vectors, and say how many of the exact best each finds."""
    try:
        from tests.benchmarks.search_peers import bge_m3_index, ensemble, top_exact
    except ModuleNotFoundError as error:
        print(f"\npeers are left out: {error}")
        return
    print(f"\n{n} documents of 40 token vectors, k={K}")
    collection = Collection(n, 40)
    queries = collection.queries(N_QUERIES)
    batches = list(collection.batches())
    documents = M3Vectors.concatenate([vectors for *_, vectors in batches])
    with tempfile.TemporaryDirectory() as place, open_store(Path(place) / "store") as store:
        for batch in batches:
            store.upsert(*batch)
        store.optimize()
        searcher = Searcher(KnownQueries(queries), store)
        contenders: dict[str, tuple[Callable[[int], Any], int]] = {
            "ours, all modes": (lambda i: [hit.id for hit in searcher.search(str(i), k=K)], N_QUERIES),
            "BGEM3Index": (bge_m3_index(documents, queries, K), 5),
            "EnsembleRetriever": (ensemble(documents, queries, K), 20),
        }
        medians = {}
        for name, (search, runs) in contenders.items():
            medians[name], p95, cpu = percentiles(search, runs)
            found = np.mean([len(set(search(i)) & set(top_exact(documents, queries[i], K))) / K for i in range(5)])
            times = f"p50 {medians[name]:9.2f} ms   p95 {p95:9.2f} ms   CPU {cpu:9.2f} ms"
            print(f"    {name:<20} {times}   of the exact best {found:.2f}")
    for name in ("BGEM3Index", "EnsembleRetriever"):
        print(f"    {name} over ours: {medians[name] / medians['ours, all modes']:.0f}")


def measure_storage(n: int, xquad: Path | None) -> None:
    """Print the table of storage choices."""
    print(f"\nstorage of token vectors: {n} records with 40 of 1024 numbers; nDCG@10 of all modes on XQuAD with tiny")
    print(f"    {'choice':<12}{'pooling':>8}{'bytes/record':>14}{'added s':>9}{'all p50 ms':>12}{'nDCG@10':>10}")
    for choice in get_args(MultiVectorStorage):
        for pooling in (1, 2, 3) if choice == "float16" else (1,):
            with tempfile.TemporaryDirectory() as place:
                collection = Collection(n, 40)
                queries = collection.queries(N_QUERIES)
                settings: dict[str, Any] = {"multi_vector": choice, "token_pooling": pooling}
                with open_store(Path(place) / "store", **settings) as store:
                    added = fill(store, collection)
                    store.optimize()
                    searcher = Searcher(KnownQueries(queries), store)
                    p50, _, _ = percentiles(lambda i, searcher=searcher: searcher.search(str(i)))  # type: ignore[misc]
                size = disk_bytes(Path(place) / "store" / "engine" / "segments") / n
                quality = xquad_ndcg(Path(place) / "xquad", xquad, settings) if xquad else float("nan")
            print(f"    {choice:<12}{pooling:>8}{size:>14.0f}{added:>9.1f}{p50:>12.2f}{quality:>10.4f}")


def xquad_ndcg(folder: Path, xquad: Path, settings: dict[str, Any]) -> float:
    """Give nDCG@10 of all modes at equal weights, over the 100 candidates of each leg."""
    dataset = read_dataset(xquad, titles=False)  # titles are English in every language
    with Searcher(M3Encoder("tiny", device="cpu"), open_store(folder, **settings)) as searcher:
        searcher.add(list(dataset.corpus.texts()), ids=list(dataset.corpus.ids))
        found = searcher.search_batch(list(dataset.queries.values()), k=K)
    ranked = {query: [hit.id for hit in hits] for query, hits in zip(dataset.queries, found, strict=True)}
    return float(measure_queries(ranked, dataset.qrels, [f"nDCG@{K}"])[f"nDCG@{K}"].mean())


async def measure_loop(n: int) -> None:
    """Print for how long an event loop stands still while a thread adds records and the loop searches."""
    collection = Collection(n, 40)
    queries = collection.queries(N_QUERIES)
    batches = list(collection.batches(100))
    gaps, is_done = [0.0], False

    async def tick() -> None:
        last = time.perf_counter()
        while not is_done:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    with tempfile.TemporaryDirectory() as place, open_store(Path(place) / "store") as store:
        searcher = Searcher(KnownQueries(queries), store)
        await asyncio.to_thread(store.upsert, *batches[0])
        await searcher.asearch("0", k=K)
        ticking = asyncio.create_task(tick())

        def add() -> None:
            for batch in batches[1:]:
                store.upsert(*batch)

        adding = asyncio.create_task(asyncio.to_thread(add))
        waits: list[float] = []
        while not adding.done():
            start = time.perf_counter()
            await searcher.asearch(str(len(waits) % N_QUERIES), k=K)
            waits.append(time.perf_counter() - start)
        await adding
        is_done = True
        await ticking
    print(f"\nan event loop while {n} records with 40 token vectors are added by a thread, {len(waits)} async searches")
    p50, p99 = np.percentile(gaps, [50, 99])
    print(
        f"    between two turns of the loop: p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, most {1e3 * max(gaps):.1f}"
    )
    print(f"    a search: p50 {1e3 * np.median(waits):.1f} ms, most {1e3 * max(waits):.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in (
        ("records", 100_000),
        ("with-tokens", 10_000),
        ("peers", 5_000),
        ("storage", 2_000),
        ("loop", 1_000),
        ("wide", 1),
        ("callers", 2_000),
        ("meanwhile", 6_000),
    ):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--xquad", type=Path)
    asked = parser.parse_args()
    print(describe_machine("cpu"))
    print(describe_versions("m3-integrations", "qdrant-edge-py", "numpy"))
    if asked.records:
        measure_size(asked.records, 0, ("dense", "lexical", "dense+lexical"))
    if asked.with_tokens:
        measure_size(asked.with_tokens, 40, ("dense", "lexical", "dense+lexical", "all"))
    if asked.peers:
        measure_peers(asked.peers)
    if asked.storage:
        measure_storage(asked.storage, asked.xquad)
    if asked.wide:
        measure_wide_tables()
    if asked.callers:
        measure_callers(asked.callers)
    if asked.meanwhile:
        measure_searches_meanwhile(asked.meanwhile)
    if asked.loop:
        asyncio.run(measure_loop(asked.loop))


if __name__ == "__main__":
    main()
