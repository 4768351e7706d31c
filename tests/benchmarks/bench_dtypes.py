"""Measure every dtype of this CPU beside ONNX Runtime, FlagEmbedding and the machine's own matrix rate, in turns.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_dtypes --checkpoint m3-benchmark-checkpoint --bulk 64

Prints CPU milliseconds (of all threads of the process), medians of the rounds, nothing cached, and the operations of
the products a second beside what `nn.Linear` reaches with 1,024 rows (in int8 `Int8Linear`). The checkpoint has
BGE-M3's widths, 4 of its 24 layers unless told otherwise, and random weights. What this machine cannot do, or lacks, is
left out and named.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from m3_integrations import M3Encoder
from m3_integrations.model.devices import DTYPES, is_emulated
from m3_integrations.model.int8 import Int8Linear, has_int8_kernel
from tests.benchmarks.measure import Call, describe_machine, describe_versions, measure
from tests.benchmarks.workload import MAX_LENGTH, CheckpointShape, TextSource, ensure_checkpoint, token_lengths

WIDTH, N_QUERIES = 1024, 40


def dtypes_here() -> list[str]:
    """Return the dtypes that this CPU computes in, and print which it does not."""
    here = ["float32"]
    for name in ("bfloat16", "int8"):
        is_here = has_int8_kernel() if name == "int8" else not is_emulated(DTYPES[name])
        if is_here:
            here.append(name)
        else:
            print(f"{name} is left out: this CPU has no instructions for it")
    return here


@torch.inference_mode()
def matrix_rate(dtype: str) -> float:
    """Return the most operations a CPU second, in 1e9, of 1,024 rows by 1,024 x 4,096."""
    linear = torch.nn.Linear(WIDTH, 4 * WIDTH)
    layer = Int8Linear(linear) if dtype == "int8" else linear.to(DTYPES[dtype])
    rows = torch.randn(1024, WIDTH, dtype=torch.float32 if dtype == "int8" else DTYPES[dtype])
    best = float("inf")
    for _ in range(12):
        started = time.process_time()
        layer(rows)
        best = min(best, time.process_time() - started)
    return 2 * rows.numel() * 4 * WIDTH / best / 1e9


def contenders(folder: Path, files: Path, workload: list[list[str]]) -> dict[str, Call]:
    """Return what encodes the texts of round i, by name."""
    calls: dict[str, Call] = {}
    for dtype in dtypes_here():
        ours = M3Encoder(folder, shared=False, device="cpu", dtype=dtype, max_length=MAX_LENGTH, cache_size_bytes=0)
        calls[f"ours {dtype}"] = lambda i, e=ours: e.encode(workload[i % len(workload)])  # type: ignore[misc]
    try:
        from tests.benchmarks.reference import FlagEmbedding
    except ImportError as error:
        print(f"FlagEmbedding is left out: {error}")
    else:
        flag = FlagEmbedding(folder, device="cpu", dtype="float32")
        calls["FlagEmbedding float32"] = lambda i: flag.encode(workload[i % len(workload)])
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        print("ONNX Runtime is left out: pip install onnxruntime onnx onnxscript")
        return calls
    from tests.benchmarks.onnx_runtime import OnnxRuntime

    for dtype in ("float32", "int8"):
        theirs = OnnxRuntime(folder, files, dtype=dtype)
        calls[f"ONNX Runtime {dtype}"] = lambda i, r=theirs: r.encode(  # type: ignore[misc]
            workload[i % len(workload)], max_length=MAX_LENGTH
        )
    return calls


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder to keep the checkpoint in; a temporary one otherwise")
    parser.add_argument("--onnx", type=Path, help="folder to keep the exported networks in; a temporary one otherwise")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bulk", type=int, default=0, help="texts in one call more, of every length; 0 for none")
    parser.add_argument("--layers", type=int, default=4, help="24 take 12 GB of memory")
    args = parser.parse_args()
    print(f"machine: {describe_machine('cpu')}")
    print(f"versions: {describe_versions('torch', 'transformers', 'numpy')}")
    with tempfile.TemporaryDirectory() as temporary:
        folder, files = args.checkpoint or Path(temporary), args.onnx or Path(temporary)
        files.mkdir(exist_ok=True)
        shape = CheckpointShape(layers=args.layers)
        ensure_checkpoint(folder, shape)
        source, random = TextSource(folder, seed=0), np.random.default_rng(1)
        workloads = {
            "one query of 10 tokens": (N_QUERIES, [source.texts(np.full(1, 10)) for _ in range(N_QUERIES + 1)]),
            "12 passages of 125": (args.repeats, [source.texts(np.full(12, 125))]),
            "16 texts of 6 to 253": (args.repeats, [source.texts(random.integers(6, 254, 16))]),
        }
        if args.bulk:
            texts_of_all_lengths = source.texts(token_lengths(args.bulk, seed=0))
            workloads[f"{args.bulk} texts of every length"] = (min(args.repeats, 2), [texts_of_all_lengths])
        current: list[list[str]] = []
        calls = contenders(folder, files, current)
        rates = {name: matrix_rate(name.rpartition(" ")[2]) for name in calls}
        for name, (repeats, texts) in workloads.items():
            current[:] = texts
            tokens = int(source.lengths_of(texts[0]).sum())
            operations = 2 * tokens * (shape.layers * 12 + 1) * WIDTH**2
            measured = measure(calls, repeats=repeats, budget_s=600, device="cpu")
            print(f"{name} ({tokens} tokens)")
            for who, result in measured.items():
                ms = 1000 * result.cpu_quantile()
                rate = operations / ms / 1e6
                print(
                    f"  {who:<24}{ms:9.1f} CPU ms (least {1000 * result.cpu_quantile(0):.1f}){rate:8.0f} G/s of "
                    f"{rates[who]:.0f} ({rate / rates[who]:.0%})",
                    flush=True,
                )
    print(f"load at the end: {describe_machine('cpu').rpartition('load ')[2]}")


if __name__ == "__main__":
    main()
