"""Compare M3Encoder with FlagEmbedding at its defaults, in one process, on one checkpoint with random weights.

    python tests/benchmarks/bench_encode.py --sizes 256,1000,10000 --checkpoint m3-benchmark-checkpoint

Both load the same folder and run in the same dtype (float32 on the CPU, float16 on CUDA) at a length limit of 512
tokens; each returns its own types. Before anything is timed, both must give the same numbers. They are timed in turns,
after a warm-up of each workload. A workload that would take longer than --max-minutes is skipped, and says so: nothing
is extrapolated.

The checkpoint has BGE-M3's widths and 4 of its 24 layers, unless told otherwise. What does not grow with the layers
(tokenising, post-processing, scoring) weighs more here than it would in 24 layers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if not __package__:  # run by its path, not with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from m3_integrations import M3Encoder
from tests.benchmarks.measure import Call, Measurement, Row, describe_machine, describe_versions, measure
from tests.benchmarks.reference import (
    BATCH_SIZE,
    FlagEmbedding,
    forwarded_tokens,
    score_differences,
    vector_differences,
)
from tests.benchmarks.workload import MAX_LENGTH, CheckpointShape, TextSource, ensure_checkpoint, token_lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m3_integrations.vectors import Mode
    from tests.benchmarks.workload import IntArray

FLAG, OURS, OURS_WARM = "FlagEmbedding", "ours", "ours, warm"
ALL_MODES: tuple[Mode, ...] = ("dense", "lexical", "multi_vector")
WORKLOADS = ("bulk", "dense+lexical", "query", "score")
N_CHECKED, N_TWO_MODES, N_PASSAGES, N_QUERIES, QUERY_TOKENS = 32, 256, 100, 20, 12
WARM_CACHE_BYTES = 2**31
SEED = 0
TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
"""The largest difference allowed in any number of unit vectors, lexical weights (about 1) and scores."""


class Bench:
    """Both contenders, the texts, and the rows measured so far.

    Args:
        folder: The checkpoint that both load.
        device: "cpu" or "cuda:0".
        dtype: "float32" or "float16".
        repeats: Timed rounds of every workload that can afford them.
        max_minutes: What one workload may take.
    """

    def __init__(self, folder: Path, *, device: str, dtype: str, repeats: int, max_minutes: float) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self.repeats, self.budget_s = repeats, 60 * max_minutes
        self.source = TextSource(folder, seed=SEED)
        _read_once(folder)
        self.flag = FlagEmbedding(folder, device=device, dtype=dtype)
        self.ours = self.load_ours(cache_size_bytes=0)
        self.rows: list[Row] = []
        self._seconds_per_token: dict[str, float] = {}

    def load_ours(self, *, cache_size_bytes: int) -> M3Encoder:
        """A handle on our one network, with a cache of this size; 0 is none."""
        return M3Encoder(
            str(self.folder),
            device=self.device,
            dtype=self.dtype,
            max_length=MAX_LENGTH,
            cache_size_bytes=cache_size_bytes,
        )

    def check_equal(self) -> None:
        """Refuse to go on unless both give the same numbers; note how long that took each, for the estimates."""
        lengths = token_lengths(N_CHECKED, seed=SEED)
        texts, query = self.source.texts(lengths), self._query()
        self.flag.encode(texts[:1])
        self.ours.encode(texts[:1])
        started = time.perf_counter()
        theirs = self.flag.encode(texts)
        halfway = time.perf_counter()
        ours = self.ours.encode(texts, kind="document", modes=ALL_MODES)
        self._note_rates(lengths, halfway - started, time.perf_counter() - halfway)
        differences = vector_differences(theirs, ours)
        differences |= score_differences(self.flag.score(query, texts), self.ours.score(query, texts))
        limit = TOLERANCE[self.dtype]
        line = ", ".join(f"{what} {value:.1e}" for what, value in differences.items())
        if not all(value <= limit for value in differences.values()):  # so that NaN refuses too
            raise SystemExit(f"not timed: they differ by more than {limit:g} on {N_CHECKED} texts: {line}")
        print(f"largest differences on {N_CHECKED} texts (limit {limit:g}): {line}\n", flush=True)

    def run_encode(self, name: str, n_texts: int, modes: Sequence[Mode]) -> None:
        """Encode n texts in one call."""
        lengths = token_lengths(n_texts, seed=SEED)
        expected_s = self._seconds_per_token[FLAG] * forwarded_tokens(lengths)
        expected_s += self._seconds_per_token[OURS] * int(lengths.sum())
        if 2 * expected_s > self.budget_s:
            reason = f"a warm-up and one run would take about {expected_s / 30:.2g} minutes"
            print(f"{name:<24}{n_texts:>6} skipped: {reason}, over --max-minutes", flush=True)
            return
        texts = self.source.texts(lengths)
        contenders: dict[str, Call] = {
            FLAG: lambda _: self.flag.encode(texts, multi_vector="multi_vector" in modes),
            OURS: lambda _: self.ours.encode(texts, kind="document", modes=modes),
        }
        measured = self._measure(contenders, self.repeats)
        self._note_rates(lengths, measured[FLAG].wall_quantile(), measured[OURS].wall_quantile())
        self._add(Row(name, n_texts, int(lengths.sum()), measured[FLAG], measured[OURS]))

    def run_query(self) -> None:
        """Encode one short query per call, another one each time."""
        n_calls = max(N_QUERIES, self.repeats)
        queries = self.source.texts(np.full(n_calls + 1, QUERY_TOKENS))
        contenders: dict[str, Call] = {
            FLAG: lambda i: self.flag.encode([queries[i]]),
            OURS: lambda i: self.ours.encode([queries[i]], kind="query", modes=ALL_MODES),
        }
        measured = self._measure(contenders, n_calls)
        for name, quantile in (("query, median", 0.5), ("query, 95th percentile", 0.95), ("query, quickest", 0.0)):
            self._add(Row(name, 1, QUERY_TOKENS, measured[FLAG], measured[OURS], quantile=quantile))

    def run_score(self) -> None:
        """Score passages for one query: from nothing, and with the query and the passages in our cache already."""
        lengths = token_lengths(N_PASSAGES, seed=SEED)
        passages, query = self.source.texts(lengths), self._query()
        batch_size = self.flag.affordable_score_batch_size(N_PASSAGES, QUERY_TOKENS, int(lengths.max()))
        if batch_size < BATCH_SIZE:
            print(f"compute_score's batch_size is {batch_size} in place of {BATCH_SIZE}, for want of memory")
        warm = self.load_ours(cache_size_bytes=WARM_CACHE_BYTES)
        contenders: dict[str, Call] = {
            FLAG: lambda _: self.flag.score(query, passages, batch_size=batch_size),
            OURS: lambda _: self.ours.score(query, passages),
            OURS_WARM: lambda _: warm.score(query, passages),
        }
        measured = self._measure(contenders, self.repeats)
        warm.close()
        tokens = int(lengths.sum())
        self._add(Row("score, nothing cached", N_PASSAGES, tokens, measured[FLAG], measured[OURS]))
        self._add(Row("score, all cached", N_PASSAGES, tokens, measured[FLAG], measured[OURS_WARM], is_encoded=False))

    def _query(self) -> str:
        (query,) = self.source.texts(np.array([QUERY_TOKENS]))
        return query

    def _note_rates(self, lengths: IntArray, flag_s: float, ours_s: float) -> None:
        self._seconds_per_token = {FLAG: flag_s / forwarded_tokens(lengths), OURS: ours_s / int(lengths.sum())}

    def _measure(self, contenders: dict[str, Call], repeats: int) -> dict[str, Measurement]:
        return measure(contenders, repeats=repeats, budget_s=self.budget_s, device=self.device)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)


def _read_once(folder: Path) -> None:
    """Bring the files into the system's cache: weights are read when first used, and the first user would pay."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def describe(args: argparse.Namespace) -> dict[str, str]:
    """What the numbers depend on."""
    lengths = token_lengths(max(args.sizes), seed=SEED)
    low, middle, high = np.percentile(lengths, [10, 50, 90])
    return {
        "machine": describe_machine(args.device),
        "versions": describe_versions("torch", "transformers", "FlagEmbedding", "numpy"),
        "network": f"{args.layers} layers, width {args.width}, random weights, {args.dtype} on {args.device}",
        "token lengths": f"of {len(lengths)} texts: median {middle:.0f}, mean {lengths.mean():.0f}, "
        f"10 % {low:.0f}, 90 % {high:.0f}, least {lengths.min()}, most {lengths.max()}",
        "clock": "one call, from strings to results on the host: tokenising, forward passes, post-processing, copies; "
        "the device is synchronised before and after; loading and the warm-up are not in it",
        "CPU s": "of all threads of the process, waiting in a spin included; where others share the machine, the CPU "
        "ratio says more than the clock's",
        "peak MB": "above what was held before the call, results included: "
        + ("of the process, without weights mapped from files" if args.device == "cpu" else "of CUDA's allocator"),
        "ratio": "FlagEmbedding's seconds by ours; tokens are the texts' own, padding and queries not counted",
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; device and dtype come back resolved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: sorted(map(int, text.split(","))), default=[256, 1000, 10_000])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024, help="hidden width, a multiple of 64")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:0")
    parser.add_argument("--dtype", choices=["auto", *TOLERANCE], default="auto")
    parser.add_argument("--repeats", type=int, default=5, help=f"timed runs each; queries get {N_QUERIES} or more")
    parser.add_argument("--max-minutes", type=float, default=30, help="for one workload, warm-up included")
    parser.add_argument("--skip", choices=WORKLOADS, nargs="+", default=[])
    parser.add_argument("--checkpoint", type=Path, help="folder to keep the checkpoint in; a temporary one otherwise")
    parser.add_argument("--json", type=Path, help="file to write the header and the rows to")
    args = parser.parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if args.dtype == "auto":
        args.dtype = "float32" if args.device == "cpu" else "float16"
    return args


def run(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Check, then measure every workload that is not skipped."""
    bench = Bench(folder, device=args.device, dtype=args.dtype, repeats=args.repeats, max_minutes=args.max_minutes)
    bench.check_equal()
    print(Row.HEADER, flush=True)
    if "query" not in args.skip:
        bench.run_query()
    if "score" not in args.skip:
        bench.run_score()
    if "dense+lexical" not in args.skip:
        bench.run_encode("encode, dense+lexical", min(N_TWO_MODES, max(args.sizes)), ALL_MODES[:2])
    for size in args.sizes if "bulk" not in args.skip else []:
        bench.run_encode("encode, all modes", size, ALL_MODES)
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    bench.ours.close()
    return bench.rows


def main() -> None:
    """Print the header and the table; write both as JSON if asked."""
    args = parse()
    header = describe(args)
    for key, value in header.items():
        print(f"{key}: {value}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.checkpoint or Path(temporary)
        ensure_checkpoint(folder, CheckpointShape(layers=args.layers, width=args.width, seed=SEED))
        rows = run(args, folder)
    if args.json:
        args.json.write_text(json.dumps({"header": header, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
