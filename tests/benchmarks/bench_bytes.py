"""Bytes on the disk and loss in ranking of every way to keep token vectors, by language.

    python -m tests.benchmarks.bench_bytes ../shared/data/xquad --model tiny

DATA is a folder in BEIR's layout, or a folder of such folders. A store is made for every way and measured closed,
before `optimize`; "kB" is thousands of bytes for 1,000 tokens, all that a record has included. The loss is of nDCG@10
of mode "all", equal weights, as a share of that with float16, with its 95 % interval over queries (positive: worse).
The error is the largest difference of a candidate's multi-vector score from that with float16. Queries: every fourth,
or every `--every`th.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from m3_integrations import M3Encoder, open_store
from m3_integrations.evaluation import Dataset, find_folders, read_dataset
from m3_integrations.evaluation.storage import Storage, StorageFit, fit_storage
from m3_integrations.store.edge_size import disk_use
from m3_integrations.vectors import M3Vectors


def size_bytes(folder: Path, storage: Storage, dataset: Dataset, vectors: M3Vectors) -> int:
    """Make a store and return what it takes once it is closed, its log and all."""
    with open_store(folder, **storage._asdict()) as store:
        ids, texts = dataset.corpus.ids, list(dataset.corpus.texts())
        store.upsert(ids, texts, [{}] * len(ids), vectors)
    return disk_use(folder).size_bytes


def print_table(name: str, fit: StorageFit, sizes: dict[Storage, int], n_tokens: int, n_text_bytes: int) -> None:
    """Print a line for every way."""
    print(f"\n{name}: {n_text_bytes:,} bytes of text, {n_tokens:,} token vectors, {len(fit.kept.values)} queries")
    print(f"{'token vectors':<20}{'MB':>7}{'kB':>7}{'nDCG@10':>9}{'loss':>9}  {'95 % interval':<18}{'error':>8}")
    for cost in (fit.kept, *fit.smaller):
        size = sizes[cost.storage]
        line = f"{cost.storage!s:<20}{size / 1e6:>7.1f}{size / n_tokens:>7.0f}{cost.values.mean():>9.4f}"
        if cost is not fit.kept:
            loss = fit.compare(cost).difference
            interval = f"{100 * loss.low:.2f} to {100 * loss.high:.2f} %"
            line += f"{100 * loss.mean:>7.2f} %  {interval:<18}"
            line += f"{cost.largest_error:>8.1e}" if cost.storage.multi_vector != "none" else ""
        print(line, flush=True)


def measure(folder: Path, encoder: M3Encoder, every: int) -> None:
    """Measure one language."""
    whole = read_dataset(folder, titles=False)
    queries = dict(list(whole.queries.items())[::every])
    qrels = {id_: whole.qrels[id_] for id_ in queries}
    asked = Dataset(name=whole.name, corpus=whole.corpus, queries=queries, qrels=qrels, answers={})
    texts = list(whole.corpus.texts())
    vectors = encoder.encode(texts)
    with tempfile.TemporaryDirectory() as place:
        kept = Storage("float16")
        sizes = {kept: size_bytes(Path(place) / "kept", kept, whole, vectors)}
        with open_store(Path(place) / "kept") as store:
            fit = fit_storage(store, encoder, asked)
        for cost in fit.smaller:
            sizes[cost.storage] = size_bytes(Path(place) / str(len(sizes)), cost.storage, whole, vectors)
    n_bytes = sum(len(text.encode()) for text in texts)
    print_table(whole.name, fit, sizes, int(vectors.multi_vector.lengths.sum()), n_bytes)


def main() -> None:
    """Read the command line, and print a table for every language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--every", type=int, default=4)
    asked = parser.parse_args()
    with M3Encoder(asked.model, device="cpu") as encoder:
        print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {encoder!r}")
        for folder in find_folders(asked.data):
            measure(folder, encoder, asked.every)


if __name__ == "__main__":
    main()
