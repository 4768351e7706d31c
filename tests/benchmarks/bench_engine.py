"""Many callers of short queries at once, alone and under a bulk ingest: M3Encoder against FlagEmbedding behind a lock.

    python -m tests.benchmarks.bench_engine --callers 1,8,64 --checkpoint m3-benchmark-checkpoint

Each caller is a thread that asks its queries one after another, as a chain behind a web server does. FlagEmbedding is
not made for threads, so its callers share a lock, which is what its users do. Under bulk, one more thread encodes
passages all the while, call after call. Both load the same folder in the same dtype; nothing is cached.

Beside what was reached stands what the hardware allows: the rate of this machine's own matrix product, at the shapes
of the network's largest layer, by the operations that a token costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if not __package__:  # run by its path, not with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from m3_integrations import M3Encoder
from tests.benchmarks.measure import describe_machine, describe_versions
from tests.benchmarks.reference import FlagEmbedding
from tests.benchmarks.workload import MAX_LENGTH, CheckpointShape, TextSource, ensure_checkpoint, token_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Encode = Callable[[list[str]], object]

QUERY_TOKENS = 12
SEED = 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one contender did under one load.

    Attributes:
        latencies_s: Of every query, from asking to its vectors.
        wall_s: From the first query to the last answer.
        bulk_tokens: Tokens of passages whose vectors came meanwhile.
    """

    latencies_s: list[float]
    wall_s: float
    bulk_tokens: int

    def quantile_ms(self, q: float) -> float:
        return 1000 * float(np.quantile(self.latencies_s, q))

    @property
    def queries_per_s(self) -> float:
        return len(self.latencies_s) / self.wall_s


def run_traffic(
    query: Encode, bulk: Encode, queries: Sequence[str], *, n_callers: int, passages: list[str] | None, n_tokens: int
) -> Traffic:
    """Ask all queries from n_callers threads, each the next one when it has its answer.

    Args:
        query: Encodes one query.
        bulk: Encodes passages.
        queries: Shared out among the callers.
        n_callers: How many threads ask.
        passages: What another thread encodes meanwhile, again and again; None for nothing.
        n_tokens: Tokens of the passages.
    """
    latencies_s: list[float] = []
    bulk_ends: list[float] = []
    is_over = threading.Event()

    def ask(own: Sequence[str]) -> None:
        for text in own:
            started = time.perf_counter()
            query([text])
            latencies_s.append(time.perf_counter() - started)

    def ingest(texts: list[str]) -> None:
        while not is_over.is_set():
            bulk(texts)
            bulk_ends.append(time.perf_counter())

    ingesting = threading.Thread(target=ingest, args=(passages,)) if passages else None
    started = time.perf_counter()
    if ingesting:
        ingesting.start()
        time.sleep(0.05)  # so that the first query meets it
    callers = [threading.Thread(target=ask, args=(queries[i::n_callers],)) for i in range(n_callers)]
    asked = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    wall_s = time.perf_counter() - asked
    is_over.set()
    if ingesting:
        ingesting.join()
    # The bulk goes on to the end of its last call, so its rate is over that time.
    share = wall_s / (bulk_ends[-1] - started) if bulk_ends else 0.0
    return Traffic(latencies_s, wall_s, int(share * n_tokens * len(bulk_ends)))


class Bench:
    """Both contenders on one checkpoint."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.args = args
        source = TextSource(folder, seed=SEED)
        self.flag = FlagEmbedding(folder, device=args.device, dtype=args.dtype)
        self.ours = M3Encoder(folder, device=args.device, dtype=args.dtype, max_length=MAX_LENGTH, cache_size_bytes=0)
        self.queries = source.texts(np.full(max(args.callers) * args.rounds, QUERY_TOKENS))
        lengths = token_lengths(args.passages, seed=SEED)
        self.passages, self.n_tokens = source.texts(lengths), int(lengths.sum())
        lock = threading.Lock()

        def flag(texts: list[str]) -> object:
            with lock:
                return self.flag.encode(texts)

        self.contenders: dict[str, tuple[Encode, Encode]] = {
            "FlagEmbedding": (flag, flag),
            "ours": (lambda texts: self.ours.encode(texts, kind="query"), self.ours.encode),
        }

    def single_passes_ms(self) -> tuple[float, float]:
        """Give how long one query takes alone, and one full pass of passages: the median of five."""
        engine = self.ours._live_engine()
        longest = int(engine.scheduler.max_tokens) // 8
        tokens = engine.tokenizer([self.passages[0] * 99] * 8, max_length=min(longest, MAX_LENGTH))
        times: dict[str, list[float]] = {"query": [], "pass": []}
        for _ in range(6):
            started = time.perf_counter()
            self.ours.encode(self.queries[:1], kind="query")
            between = time.perf_counter()
            engine.network.launch(tokens, multi_vector=[True] * 8).wait()
            times["query"].append(between - started)
            times["pass"].append(time.perf_counter() - between)
        return 1000 * float(np.median(times["query"][1:])), 1000 * float(np.median(times["pass"][1:]))

    def run(self) -> None:
        query_ms, pass_ms = self.single_passes_ms()
        print(f"ours, alone and idle: one query {query_ms:.0f} ms, one full pass of passages {pass_ms:.0f} ms")
        print(
            f"{'callers':>7} {'bulk':<5}{'contender':<15}{'queries/s':>10}{'p50 ms':>8}{'p95 ms':>8}{'bulk tok/s':>11}"
            f"{'ratio queries/s':>17}{'ratio p95':>11}{'p95 by (pass + query)':>23}"
        )
        for with_bulk in (False, True):
            for n_callers in self.args.callers:
                self._run_load(n_callers, query_ms + pass_ms, with_bulk=with_bulk)

    def _run_load(self, n_callers: int, turn_ms: float, *, with_bulk: bool) -> None:
        queries = self.queries[: n_callers * self.args.rounds]
        passages = self.passages if with_bulk else None
        results = {
            name: run_traffic(query, bulk, queries, n_callers=n_callers, passages=passages, n_tokens=self.n_tokens)
            for name, (query, bulk) in self.contenders.items()
        }
        flag = results["FlagEmbedding"]
        for name, traffic in results.items():
            line = f"{n_callers:>7} {'yes' if with_bulk else 'no':<5}{name:<15}{traffic.queries_per_s:>10.1f}"
            line += f"{traffic.quantile_ms(0.5):>8.0f}{traffic.quantile_ms(0.95):>8.0f}"
            line += f"{traffic.bulk_tokens / traffic.wall_s:>11.0f}"
            if name == "ours":
                line += f"{traffic.queries_per_s / flag.queries_per_s:>16.1f}x"
                line += f"{flag.quantile_ms(0.95) / traffic.quantile_ms(0.95):>10.1f}x"
                line += f"{traffic.quantile_ms(0.95) / turn_ms:>23.2f}"
            print(line, flush=True)

    def run_bulk(self) -> None:
        """Print what the machine's matrix products allow, and what a bulk call reaches of it."""
        config: Any = self.ours._live_engine().network.backbone.config
        rate = matrix_rate(self.args, config.hidden_size, config.intermediate_size)
        operations = 2 * config.num_hidden_layers * config.hidden_size
        operations *= 4 * config.hidden_size + 2 * config.intermediate_size
        self.ours.encode(self.passages)
        times = []
        for _ in range(self.args.repeats):
            started = time.perf_counter()
            self.ours.encode(self.passages)
            times.append(time.perf_counter() - started)
        reached = self.n_tokens / float(np.median(times))
        print(
            f"bulk of {len(self.passages)} texts: {reached:.0f} tokens/s; matrix products of {rate / 1e9:.0f} GFLOP/s "
            f"allow {rate / operations:.0f} ({operations / 1e6:.0f} MFLOP a token, attention and heads not counted): "
            f"{100 * reached * operations / rate:.0f} %"
        )


def matrix_rate(args: argparse.Namespace, width: int, inner: int) -> float:
    """Give the operations per second of a (1024, width) x (width, inner) product in the network's dtype."""
    dtype = torch.float32 if args.dtype == "float32" else torch.float16
    rows = 1024 if args.device == "cpu" else 16_384
    a = torch.randn(rows, width, dtype=dtype, device=args.device)
    b = torch.randn(width, inner, dtype=dtype, device=args.device)
    best = np.inf
    for _ in range(20):
        _synchronise(args.device)
        started = time.perf_counter()
        a @ b
        _synchronise(args.device)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * inner / best


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; device and dtype come back resolved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=lambda text: sorted(map(int, text.split(","))), default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5, help="queries of each caller")
    parser.add_argument("--passages", type=int, default=64, help="of one bulk call")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024, help="hidden width, a multiple of 64")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:0")
    parser.add_argument("--dtype", choices=["auto", "float32", "float16"], default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="of the bulk call by itself")
    parser.add_argument("--checkpoint", type=Path, help="folder to keep the checkpoint in; a temporary one otherwise")
    args = parser.parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if args.dtype == "auto":
        args.dtype = "float32" if args.device == "cpu" else "float16"
    return args


def main() -> None:
    """Print the header and the tables."""
    args = parse()
    print(f"machine: {describe_machine(args.device)}")
    print(f"versions: {describe_versions('torch', 'transformers', 'FlagEmbedding', 'numpy')}")
    print(f"network: {args.layers} layers, width {args.width}, random weights, {args.dtype} on {args.device}")
    print(
        f"queries of {QUERY_TOKENS} tokens, {args.rounds} of each caller; a bulk call has {args.passages} passages of "
        f"{int(token_lengths(args.passages, seed=SEED).sum())} tokens; clock: from strings to vectors on the host"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.checkpoint or Path(temporary)
        ensure_checkpoint(folder, CheckpointShape(layers=args.layers, width=args.width, seed=SEED))
        bench = Bench(folder, args)
        bench.run()
        bench.run_bulk()


if __name__ == "__main__":
    main()
