"""`tune_weights`: weights found on half of the queries, and measured on the other half."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations.evaluation.data import Dataset
from m3_integrations.evaluation.encoding import EvaluatedEncoder
from m3_integrations.evaluation.evaluate import encoded_corpus
from m3_integrations.evaluation.metrics import cutoff_of, measure_queries
from m3_integrations.evaluation.modes import DEPTH, Column, check_columns
from m3_integrations.evaluation.ranking import Candidates
from m3_integrations.evaluation.runs import Protocol, gather_evidence
from m3_integrations.evaluation.statistics import Comparison, Estimate, compare_paired, estimate_mean
from m3_integrations.vectors import MODES, PRESETS, IntArray, Mode, ModeWeights

_COLUMN: Final[Column] = "search:all"
TUNED: Final = "tuned"


@dataclass(frozen=True, eq=False)
class Half:
    """One half of the queries with their candidates and judgements; it has no data of the other half.

    Attributes:
        queries: The ids of the queries.
        candidates: For each query its candidates with exact scores in all three modes.
        qrels: For each query the gain of its judged documents.
        ids: The id of every row of the corpus.
    """

    queries: Sequence[str]
    candidates: Sequence[Candidates]
    qrels: Mapping[str, Mapping[str, int]]
    ids: Sequence[str]

    def measure(self, weightings: Sequence[ModeWeights], metric: str) -> NDArray[np.float64]:
        """Return the metric of every query with each of these weights: (weightings, queries) float64."""
        depth = cutoff_of(metric) or DEPTH
        values = np.zeros((len(weightings), len(self.queries)))
        for column, (query, candidates) in enumerate(zip(self.queries, self.candidates, strict=True)):
            # Many weightings make the same ranking of a query, and each different ranking is measured once.
            ranked, ranking_of = np.unique(_best(candidates, weightings, depth), axis=0, return_inverse=True)
            runs = {f"{query} {i}": [self.ids[row] for row in rows] for i, rows in enumerate(ranked.tolist())}
            measured = measure_queries(runs, dict.fromkeys(runs, self.qrels[query]), [metric])[metric]
            values[:, column] = measured[ranking_of.ravel()]
        return values


def _best(candidates: Candidates, weightings: Sequence[ModeWeights], depth: int) -> IntArray:
    """Return (weightings, depth) rows of the corpus, best first, in the order of `combine` and a stable sort."""
    shares = [weights.normalized(MODES) for weights in weightings]
    total = np.zeros((len(weightings), len(candidates.rows)))
    for mode in MODES:
        total += np.array([share[mode] for share in shares])[:, None] * candidates.scores[mode].astype(np.float64)
    order = np.argsort(-total.astype(np.float32), axis=1, kind="stable")  # rows ascend, so ties are in corpus order
    return candidates.rows[order[:, :depth]]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TunedWeights:
    """Tuned weights, with their metric on queries that they were not found on.

    Attributes:
        weights: The best weights of the grid on the first half.
        metric: The name of the metric.
        found_on: The ids of the queries of the first half.
        reported_on: The ids of the queries of the other half.
        values: The metric on the other half, (queries,) float64 for "tuned" and for every preset.
    """

    weights: ModeWeights
    metric: str
    found_on: Sequence[str]
    reported_on: Sequence[str]
    values: Mapping[str, NDArray[np.float64]]

    def __repr__(self) -> str:
        n_queries = f"{len(self.found_on)} queries, reported on {len(self.reported_on)}"
        return f"TunedWeights({self.weights!r}, by {self.metric} on {n_queries})"

    def estimate(self, name: str = TUNED) -> Estimate:
        """Return the mean on the other half, of "tuned" or a preset, with its 95 % interval."""
        return estimate_mean(self.values[name])

    def compare(self, preset: str) -> Comparison:
        """Return the mean difference on the other half, tuned weights minus a preset."""
        return compare_paired(self.values[TUNED], self.values[preset])


def tune_weights(
    encoder: EvaluatedEncoder,
    dataset: Dataset,
    *,
    metric: str = "nDCG@10",
    steps: int = 20,
    seed: int = 0,
    protocol: Protocol | None = None,
    work: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> TunedWeights:
    """Find the weights of `search:all` on a random half of the queries, and report them on the other half.

    All weights of the grid rank the same candidates, those that the two legs find, by the same exact scores. Queries
    with the same text are in the same half. Of equally good weights, those nearest to equal weights are returned.

    Args:
        encoder: The checkpoint.
        dataset: A dataset of `read_dataset`, with qrels.
        metric: The metric to maximize, as ir-measures spells it.
        steps: The grid is all weights that are multiples of 1 / steps and sum to 1.
        seed: The seed of the random halves.
        protocol: The choice of candidates.
        work: The folder for vectors, as in `evaluate`.
        show_progress: Whether to draw progress bars.

    Raises:
        BlockingIOError: If another process encodes the same into the work folder.
        ValueError: If the checkpoint lacks a head, relevance is decided by answers, there are fewer than two different
            queries, steps is less than 1, or the metric is unknown.
    """
    check_tuning(dataset, encoder.modes, encoder.model)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    cutoff_of(metric)  # raises for an unknown metric before the corpus is encoded
    first, second = split_queries(dataset.queries, seed=seed)
    protocol = protocol or Protocol()
    with encoded_corpus(encoder, dataset, [_COLUMN], protocol, work, show_progress=show_progress) as encoded:
        evidence = gather_evidence(encoder, dataset, encoded, [_COLUMN], protocol, show_progress=show_progress)
    candidates = dict(zip(dataset.queries, evidence.pooled, strict=True))
    seen, unseen = (
        Half(half, [candidates[id_] for id_ in half], {id_: dataset.qrels[id_] for id_ in half}, dataset.corpus.ids)
        for half in (first, second)
    )
    weights = find_weights(seen, metric, steps=steps)
    reported = {TUNED: weights, **PRESETS}
    values = dict(zip(reported, unseen.measure(list(reported.values()), metric), strict=True))
    return TunedWeights(weights=weights, metric=metric, found_on=first, reported_on=second, values=values)


def check_tuning(dataset: Dataset, modes: Sequence[Mode], model: str) -> None:
    """Raise ValueError if weights cannot be tuned on a dataset with a checkpoint that has heads for these modes.

    Raises:
        ValueError: If a head is missing, relevance is decided by answers, or there are not two different queries.
    """
    check_columns([_COLUMN], modes, model)
    if dataset.answers:
        raise ValueError(f"weights are tuned on judged documents, and {dataset.name} has answers instead")
    split_queries(dataset.queries, seed=0)


def split_queries(queries: Mapping[str, str], *, seed: int) -> tuple[list[str], list[str]]:
    """Return the ids of two random halves. No text is in both.

    Raises:
        ValueError: If there are fewer than two different texts.
    """
    texts = sorted(set(queries.values()))
    if len(texts) < 2:
        raise ValueError(f"two halves need two different queries at least, got {len(texts)}")
    order = np.random.default_rng(seed).permutation(len(texts))
    first = {texts[i] for i in order[: len(texts) // 2]}
    return [id_ for id_, text in queries.items() if text in first], [
        id_ for id_, text in queries.items() if text not in first
    ]


def find_weights(half: Half, metric: str, *, steps: int) -> ModeWeights:
    """Return the weights of the grid with the highest mean."""
    grid = weight_grid(steps)
    means = half.measure(grid, metric).mean(axis=1)
    return grid[int(np.argmax(means))]  # the first of equals


def weight_grid(steps: int) -> list[ModeWeights]:
    """Return all weights that are multiples of 1 / steps and sum to 1; those nearest to equal weights come first."""
    cuts = [(a, b) for a in range(steps + 1) for b in range(a, steps + 1)]
    points = [tuple((high - low) / steps for low, high in pairwise((0, a, b, steps))) for a, b in cuts]
    points.sort(key=lambda point: (sum((part - 1 / len(MODES)) ** 2 for part in point), point))
    return [ModeWeights(*point) for point in points]
