"""nDCG@10 of a checkpoint on XQuAD, mode by mode, beside the same network untrained and BM25 over the same tokens.

    python -m tests.benchmarks.table_tiny FOLDER [--start CHECKPOINT]

FOLDER holds one folder per language in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv. Every query is
scored against every text, read without its title; equal scores keep the corpus's order. `all` is dense + 0.3 lexical +
multi-vector.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoConfig

from m3_integrations import M3Encoder, ModeWeights
from m3_integrations.bm25 import Bm25Index
from m3_integrations.checkpoint import find_checkpoint, load_tokenizer
from m3_integrations.scoring import combine, lexical_scores, max_sim
from m3_integrations.training.tiny.start import save_random_start
from m3_integrations.vectors import MODES, FloatArray, Mode, MultiVectorRows

LANGUAGES = ("en", "de", "es", "ru", "zh")
WEIGHTS = ModeWeights(dense=1.0, lexical=0.3, multi_vector=1.0)
COLUMNS = (*MODES, "all")
CUT = 10
RESAMPLES = 10_000


@dataclass(frozen=True)
class Collection:
    """One language: its texts, its queries and, for every query, the gain of every text, (queries, texts)."""

    texts: list[str]
    queries: list[str]
    gains: NDArray[np.float64]


def read_collection(folder: Path) -> Collection:
    texts = list(_read_jsonl(folder / "corpus.jsonl"))
    queries = list(_read_jsonl(folder / "queries.jsonl"))
    text_rows = {row["_id"]: i for i, row in enumerate(texts)}
    query_rows = {row["_id"]: i for i, row in enumerate(queries)}
    gains = np.zeros((len(queries), len(texts)))
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, text, gain = line.split("\t")
        gains[query_rows[query], text_rows[text]] = float(gain)
    judged = np.flatnonzero(gains.any(axis=1))
    return Collection(
        texts=[row["text"] for row in texts],  # without titles, which are English in every language
        queries=[queries[row]["text"] for row in judged],
        gains=gains[judged],
    )


def _read_jsonl(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines)


def ndcg(scores: FloatArray, gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """nDCG@10 of every query: (queries,)."""
    discounts = 1 / np.log2(np.arange(CUT) + 2)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :CUT]
    ideal = -np.sort(-gains, axis=1)[:, :CUT] @ discounts[: gains.shape[1]]
    return np.asarray(np.take_along_axis(gains, best, axis=1) @ discounts[: gains.shape[1]] / ideal)


def score_checkpoint(encoder: M3Encoder, collection: Collection) -> dict[str, FloatArray]:
    """(queries, texts) per column."""
    queries = encoder.encode(collection.queries, kind="query")
    texts = encoder.encode(collection.texts)
    modes: dict[Mode, FloatArray] = {
        "dense": queries.dense @ texts.dense.T,
        "lexical": np.stack([lexical_scores(queries.lexical[i], texts.lexical) for i in range(len(queries))]),
        "multi_vector": max_sim_matrix(queries.multi_vector, texts.multi_vector),
    }
    columns: dict[str, FloatArray] = {str(mode): scores for mode, scores in modes.items()}
    return columns | {"all": combine(modes, WEIGHTS)}


def max_sim_matrix(queries: MultiVectorRows, texts: MultiVectorRows) -> FloatArray:
    """(queries, texts): one product per text with the tokens of all queries, several times faster than query by query.

    Held to the package's own `max_sim` on the first and the last query.
    """
    starts, counts = queries.offsets[:-1], queries.lengths
    tokens = np.ascontiguousarray(queries.flat.T)
    best = np.stack([(texts[i] @ tokens).max(axis=0) for i in range(len(texts))], axis=1)  # (query tokens, texts)
    scores = np.asarray(np.add.reduceat(best, starts, axis=0) / counts[:, None], dtype=np.float32)
    for row in (0, len(queries) - 1):
        np.testing.assert_allclose(scores[row], max_sim(queries[row], texts), atol=1e-5)
    return scores


def score_bm25(model: str, collection: Collection) -> FloatArray:
    """BM25 over the checkpoint's own tokens, special ones left out."""
    tokenizer = load_tokenizer(find_checkpoint(model))

    def words(texts: Sequence[str]) -> list[list[str]]:
        return [[str(i) for i in tokens.ids[1:-1]] for tokens in tokenizer(texts, max_length=8192)]

    index = Bm25Index([str(i) for i in range(len(collection.texts))], words(collection.texts))
    return np.stack([index.scores(query) for query in words(collection.queries)])


def interval(better: NDArray[np.float64], worse: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean difference: a bootstrap over queries, both systems resampled together."""
    differences = better - worse
    random_state = np.random.default_rng(0)
    means = [differences[random_state.integers(0, len(differences), len(differences))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def evaluate(model: str, collection: Collection) -> dict[str, NDArray[np.float64]]:
    """nDCG@10 of every query per column."""
    with M3Encoder.load(model, device="cpu", cache_size_bytes=0) as encoder:
        columns = score_checkpoint(encoder, collection)
    result = {name: ndcg(scores, collection.gains) for name, scores in columns.items()}
    print(f"{model}: " + ", ".join(f"{name} {values.mean():.3f}" for name, values in result.items()), flush=True)
    return result


def print_table(results: Mapping[str, Mapping[str, Mapping[str, NDArray[np.float64]]]]) -> None:
    """results: system, then language, then column, then a number for every query."""
    for system, by_language in results.items():
        columns = list(next(iter(by_language.values())))
        print(f"\n{system}\n{'':>8}" + "".join(f"{column:>15}" for column in columns))
        for language, by_column in by_language.items():
            print(f"{language:>8}" + "".join(f"{by_column[column].mean():15.3f}" for column in columns))
        means = [np.mean([by_column[column].mean() for by_column in by_language.values()]) for column in columns]
        print(f"{'mean':>8}" + "".join(f"{mean:15.3f}" for mean in means))


def print_differences(
    better: Mapping[str, Mapping[str, NDArray[np.float64]]],
    worse: Mapping[str, Mapping[str, NDArray[np.float64]]],
    against: str,
) -> None:
    print(f"\ntrained minus {against}, with the 95 % interval of a paired bootstrap over queries")
    for language, columns in better.items():
        cells = []
        for column in COLUMNS:
            low, high = interval(columns[column], worse[language][column])
            mean = (columns[column] - worse[language][column]).mean()
            cells.append(f"{column} {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        print(f"{language:>8}  " + "  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description="nDCG@10 on XQuAD, mode by mode.")
    parser.add_argument("data", type=Path, help="a folder with one folder per language, in BEIR's layout")
    parser.add_argument("--model", default="tiny", help="a checkpoint; the bundled one by default")
    parser.add_argument("--start", help="the checkpoint that its training started from, as the recipe leaves it")
    parser.add_argument("--seed", type=int, default=0, help="of the untrained network")
    arguments = parser.parse_args()
    languages = [language for language in LANGUAGES if (arguments.data / language / "corpus.jsonl").is_file()]
    if not languages:
        print(f"skipped: {arguments.data} has no folder of {', '.join(LANGUAGES)} with corpus.jsonl")
        return
    print(
        f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"float32, {torch.get_num_threads()} threads"
    )
    began = time.perf_counter()
    collections = {language: read_collection(arguments.data / language) for language in languages}
    for language, collection in collections.items():
        print(f"{language}: {len(collection.queries)} queries, {len(collection.texts)} texts")
    with tempfile.TemporaryDirectory() as untrained:
        folder = find_checkpoint(arguments.model)
        save_random_start(Path(untrained), folder, AutoConfig.from_pretrained(folder), seed=arguments.seed)
        systems = {"trained": arguments.model, "untrained": untrained}
        if arguments.start:
            systems["start of the training"] = arguments.start
        results = {
            name: {language: evaluate(model, collection) for language, collection in collections.items()}
            for name, model in systems.items()
        }
    bm25 = {
        language: {"BM25": ndcg(score_bm25(arguments.model, collection), collection.gains)}
        for language, collection in collections.items()
    }
    print_table({**results, "BM25 over the same tokens": bm25})
    for name in systems:
        if name != "trained":
            print_differences(results["trained"], results[name], name)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
