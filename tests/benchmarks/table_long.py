"""How well a checkpoint finds long texts, whole or cut: mean reciprocal rank with 95 % intervals.

    python -m tests.benchmarks.table_long XQUAD_FOLDER/en [--model small] [--join 5 15] [--limits 512 4096]

A long text is some paragraphs of a collection in BEIR's layout, joined in its order; in XQuAD that is the order of
articles. A question is for the text that has its paragraph. Every text competes. The last two columns have the
questions whose paragraph is in the first or the last third of its text.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m3_integrations import M3Encoder, M3Vectors, ModeWeights
from m3_integrations.evaluation import Dataset, read_dataset
from m3_integrations.evaluation.statistics import estimate_mean
from m3_integrations.scoring import combine, raw_scores
from m3_integrations.vectors import MODES, FloatArray
from tests.benchmarks.table_small import cell


def join(dataset: Dataset, size: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Return texts of so many paragraphs, and for every paragraph the text that has it and its place there."""
    texts = list(dataset.corpus.texts())
    joined = ["\n\n".join(texts[start : start + size]) for start in range(0, len(texts), size)]
    return joined, {id_: divmod(place, size) for place, id_ in enumerate(dataset.corpus.ids)}


def reciprocal_ranks(queries: M3Vectors, texts: M3Vectors, rows: list[int]) -> dict[str, NDArray[np.float64]]:
    """Return for every mode, and for three with equal weights, one over the rank of every query's own text."""
    found: dict[str, list[float]] = {}
    for query, row in enumerate(rows):
        scores = raw_scores(queries[query], texts, MODES)
        columns: list[tuple[str, FloatArray]] = [*scores.items(), ("equal weights", combine(scores, ModeWeights()))]
        for name, values in columns:
            found.setdefault(name, []).append(1 / (1 + int((values > values[row]).sum())))
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def main() -> None:
    """Print a table for every length of text, a block as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.table_long", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="small")
    parser.add_argument("--join", nargs="*", type=int, default=[5, 15])
    parser.add_argument("--limits", nargs="*", type=int, default=[512, 4096])
    parser.add_argument("--every", type=int, default=1, help="of the questions, one in so many")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*longer than")
    dataset = read_dataset(arguments.data, titles=False)
    chosen = list(dataset.queries)[:: arguments.every]
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {arguments.model}, {len(chosen)} questions")
    for size in arguments.join:
        texts, places = join(dataset, size)
        own = [places[next(iter(dataset.qrels[query]))] for query in chosen]
        for limit in arguments.limits:
            with M3Encoder(arguments.model, max_length=limit) as encoder:
                vectors = encoder.encode(texts)
                queries = encoder.encode([dataset.queries[query] for query in chosen], kind="query")
            tokens = np.median(vectors.multi_vector.lengths)
            print(f"\n| {len(texts)} texts, {tokens:.0f} tokens read | all | first third | last third |")
            print("|---|---|---|---|")
            thirds = np.array([3 * place // size for _, place in own])
            for name, values in reciprocal_ranks(queries, vectors, [row for row, _ in own]).items():
                cells = [cell(estimate_mean(each)) for each in (values, values[thirds == 0], values[thirds == 2])]
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
