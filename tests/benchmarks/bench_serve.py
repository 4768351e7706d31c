"""What `m3 serve` costs and saves: one short query and bulk by HTTP, and many processes over one model.

    python -m tests.benchmarks.bench_serve --model tiny
    python -m tests.benchmarks.bench_serve --wide --bulk 32 --processes 0  # two layers of BGE-M3's width

The server is a process of its own on this machine. Queries are new each time, in all three modes, in turns with those
of an encoder in this process; bulk is texts of 100 words by `encode_batches`, in turns too, nothing cached. Then four
processes with LangChain's retriever each search at the same time: over one server, and each with a model of its own.
Their clock covers `invoke`; memory is the proportional set size (Pss) after the searches, the server's included.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from m3_integrations import Encoder, RemoteEncoder
from m3_integrations.langchain import M3HybridRetriever
from m3_integrations.search import open_encoder

N_RECORDS, N_SEARCHES = 200, 50
_WORDS = ("keys", "vault", "rain", "museum", "train", "night", "yearly", "rotate", "seal", "window", "river", "stone")


def text(number: int, n_words: int) -> str:
    """Return words that no other number has in this order."""
    random = np.random.default_rng(number)
    return f"{number} " + " ".join(random.choice(_WORDS, n_words))


def pss_mb(process_id: int | str) -> float:
    """Return the memory of a process, with its share of what it shares."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{process_id}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1000


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Yield the URL and the process of an `m3 serve` with further options."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from m3_integrations.cli import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", model, "--port", str(port), *options], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                RemoteEncoder(url).close()
                break
            except ConnectionError:
                time.sleep(0.1)
        yield url, process
    finally:
        process.terminate()
        process.wait()


def in_turns(calls: dict[str, Callable[[int], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every call, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call(i)
            if i:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def compare(local: Encoder, remote: Encoder, repeats: int, n_bulk: int) -> None:
    """Print one query's and bulk's table."""
    encoders = {"in the process": local, "by HTTP": remote}
    offset = {name: 10**6 * (i + 1) for i, name in enumerate(encoders)}
    queries = in_turns(
        {
            name: lambda i, n=name, e=encoder: e.encode([text(offset[n] + i, 8)], kind="query")  # type: ignore[misc]
            for name, encoder in encoders.items()
        },
        40 * repeats,
    )
    for name, seconds in queries.items():
        p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
        print(f"one query, {name:<15} p50 {p50:6.2f} ms, p95 {p95:6.2f} ms")
    overhead = np.median(queries["by HTTP"]) - np.median(queries["in the process"])
    print(f"HTTP adds {overhead * 1000:.2f} ms to p50")

    def bulk(encoder: Encoder, start: int) -> None:
        for _ in encoder.encode_batches([text(start + i, 100) for i in range(n_bulk)]):
            pass

    runs = in_turns(
        {
            name: lambda i, n=name, e=encoder: bulk(e, 10 * offset[n] + 1000 * i)  # type: ignore[misc]
            for name, encoder in encoders.items()
        },
        repeats,
    )
    for name, seconds in runs.items():
        print(f"{n_bulk} texts, {name:<15} {n_bulk / np.median(seconds):7.1f} texts/s")
    ratios = np.divide(runs["by HTTP"], runs["in the process"])
    print(
        f"HTTP takes {np.median(ratios):.3f} times the time; {min(ratios):.3f} to {max(ratios):.3f} in {repeats} pairs"
    )


def work(model: str) -> None:
    """Fill a retriever, wait for a line on standard input, search, and print what it took as JSON."""
    retriever = M3HybridRetriever(model=model, k=4)
    retriever.add_texts([text(i, 40) for i in range(N_RECORDS)], ids=[str(i) for i in range(N_RECORDS)])
    retriever.invoke("warm up")
    print("ready", flush=True)
    start = int(sys.stdin.readline())
    seconds, n_right = [], 0
    for i in range(N_SEARCHES):
        row = (start + i) % N_RECORDS
        question = f"{start + i} " + text(row, 40)
        began = time.perf_counter()
        found = retriever.invoke(question)
        seconds.append(time.perf_counter() - began)
        n_right += found[0].id == str(row)
    print(json.dumps({"seconds": seconds, "right": n_right, "mb": pss_mb("self")}), flush=True)
    sys.stdin.readline()  # memory is shared with the others until all have said how much they have


def many(model: str, n: int, label: str, server_id: int | None = None) -> None:
    """Print what n processes at the same time take."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_serve", "--work", model]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(n)]
    pipes = [(worker.stdin, worker.stdout) for worker in workers]
    for _, out in pipes:
        assert out is not None
        out.readline()
    began = time.perf_counter()
    for i, (into, _) in enumerate(pipes):
        assert into is not None
        into.write(f"{1000 * i}\n")
        into.flush()
    results = [json.loads(out.readline()) for _, out in pipes if out is not None]
    wall_s = time.perf_counter() - began
    server_mb = 0.0 if server_id is None else pss_mb(server_id)
    for worker in workers:
        worker.communicate("\n")
    p50, p95 = np.quantile(np.concatenate([result["seconds"] for result in results]), [0.5, 0.95]) * 1000
    mb = sum(result["mb"] for result in results)
    print(
        f"{n} processes, {label:<22} p50 {p50:6.1f} ms, p95 {p95:6.1f} ms, {n * N_SEARCHES / wall_s:5.0f} searches/s, "
        f"{sum(result['right'] for result in results)} of {n * N_SEARCHES} right, {mb + server_mb:6.0f} MB "
        f"({mb / n:.0f} MB each{f', server {server_mb:.0f} MB' if server_id else ''})"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--wide", action="store_true", help="make and use a checkpoint of BGE-M3's width")
    parser.add_argument("--bulk", type=int, default=512)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return
    with TemporaryDirectory() as folder:
        if args.wide:
            from tests.benchmarks.workload import CheckpointShape, ensure_checkpoint

            args.model = f"{folder}/wide"
            ensure_checkpoint(Path(args.model), CheckpointShape(layers=2))
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Print the tables of a model."""
    from tests.benchmarks.measure import describe_machine, describe_versions  # loads torch, which a worker must not

    print(f"machine: {describe_machine('cpu')}")
    print(f"versions: {describe_versions('torch', 'h11', 'fastapi', 'uvicorn')}; model {args.model}")
    with server(args.model) as (url, process):
        with RemoteEncoder(url) as remote:
            compare(open_encoder(args.model, model_kwargs={"device": "cpu"}), remote, args.repeats, args.bulk)
        if args.processes:
            many(url, args.processes, "one m3 serve", process.pid)
    if args.processes:
        many(args.model, args.processes, "a model each")


if __name__ == "__main__":
    main()
