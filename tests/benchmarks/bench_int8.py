"""What `dtype="int8"` is worth on this CPU: the same texts in float32 and in int8, in turns.

    python -m tests.benchmarks.bench_int8 --checkpoint m3-benchmark-checkpoint

Prints CPU seconds (of all threads of the process) and seconds on the clock, medians of the rounds, of 64 texts and of
one query of 16 tokens, nothing cached. The checkpoint has BGE-M3's widths, 4 of its 24 layers and random weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from m3_integrations import M3Encoder
from tests.benchmarks.measure import describe_machine, describe_versions, measure
from tests.benchmarks.workload import MAX_LENGTH, CheckpointShape, TextSource, ensure_checkpoint, token_lengths

N_TEXTS, QUERY_TOKENS = 64, 16


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder to keep the checkpoint in; a temporary one otherwise")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"machine: {describe_machine('cpu')}")
    print(f"versions: {describe_versions('torch', 'transformers', 'numpy')}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.checkpoint or Path(temporary)
        ensure_checkpoint(folder, CheckpointShape())
        source = TextSource(folder, seed=0)
        workloads = {
            f"{N_TEXTS} texts": source.texts(token_lengths(N_TEXTS, seed=0)),
            "one query": source.texts(np.array([QUERY_TOKENS])),
        }
        encoders = {
            dtype: M3Encoder(folder, shared=False, device="cpu", dtype=dtype, max_length=MAX_LENGTH, cache_size_bytes=0)
            for dtype in ("float32", "int8")
        }
        for name, texts in workloads.items():
            measured = measure(
                {dtype: lambda _, e=e, t=texts: e.encode(t) for dtype, e in encoders.items()},  # type: ignore[misc]
                repeats=args.repeats if len(texts) > 1 else 4 * args.repeats,
                budget_s=600,
                device="cpu",
            )
            full, rounded = measured["float32"], measured["int8"]
            print(
                f"{name:<12} float32 {full.cpu_quantile():7.3f} CPU s, {full.wall_quantile():7.3f} s;  "
                f"int8 {rounded.cpu_quantile():7.3f} CPU s, {rounded.wall_quantile():7.3f} s;  "
                f"ratio {full.cpu_quantile() / rounded.cpu_quantile():.1f} (CPU), "
                f"{full.wall_quantile() / rounded.wall_quantile():.1f}"
            )


if __name__ == "__main__":
    main()
