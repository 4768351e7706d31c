"""`evaluate`: the metrics of every column on a dataset."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_integrations.evaluation.data import Dataset
from m3_integrations.evaluation.encoding import EncodedCorpus, EvaluatedEncoder, encode_corpus
from m3_integrations.evaluation.metrics import cutoff_of, measure_queries
from m3_integrations.evaluation.modes import (
    DEPTH,
    NEEDED,
    Column,
    check_columns,
    check_weights,
    possible_columns,
)
from m3_integrations.evaluation.ranking import Ranking
from m3_integrations.evaluation.runs import Protocol, gather_evidence, rank_bm25, rank_column
from m3_integrations.evaluation.statistics import Comparison, Estimate, compare_paired, estimate_mean
from m3_integrations.vectors import MODES, Mode, ModeWeights, WeightsLike


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EvaluationResult:
    """The metrics and rankings of the columns on one dataset.

    Attributes:
        dataset: The dataset.
        model: The name of the checkpoint.
        fingerprint: The fingerprint of the checkpoint.
        weights: The weights of every column that has weights.
        protocol: The choice of candidates.
        values: For each column and metric (queries,) float64, in the order of the dataset's queries.
        rankings: For each column a ranking for every query.
    """

    dataset: Dataset
    model: str
    fingerprint: str
    weights: Mapping[Column, ModeWeights]
    protocol: Protocol
    values: Mapping[Column, Mapping[str, NDArray[np.float64]]]
    rankings: Mapping[Column, Sequence[Ranking]]
    # Caches: resampling is slow, and tables, JSON and the plot need the same values.
    _estimates: dict[tuple[Column, str], Estimate] = field(default_factory=dict, init=False, repr=False)
    _comparisons: dict[tuple[Column, Column, str], Comparison] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        return f"EvaluationResult({self.model!r} on {self.dataset!r}, {', '.join(self.columns)})"

    @property
    def columns(self) -> tuple[Column, ...]:
        """The evaluated columns."""
        return tuple(self.values)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return tuple(next(iter(self.values.values())))

    def estimate(self, column: Column, metric: str) -> Estimate:
        """Return a metric's mean over queries with its 95 % interval (a bootstrap over queries)."""
        if (column, metric) not in self._estimates:
            self._estimates[column, metric] = estimate_mean(self.values[column][metric])
        return self._estimates[column, metric]

    def compare(self, column: Column, other: Column, metric: str) -> Comparison:
        """Return the mean difference, column minus other, with its interval and a paired test's p-value."""
        key = column, other, metric
        if key not in self._comparisons:
            self._comparisons[key] = compare_paired(self.values[column][metric], self.values[other][metric])
        return self._comparisons[key]


def evaluate(
    encoder: EvaluatedEncoder,
    dataset: Dataset,
    *,
    modes: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    weights: Mapping[str, WeightsLike] | None = None,
    protocol: Protocol | None = None,
    work: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> EvaluationResult:
    """Rank a dataset's corpus for its queries by every column, and measure the rankings.

    The corpus is encoded once for all columns. `Column` explains the columns.

    Args:
        encoder: The checkpoint.
        dataset: The dataset, as `read_dataset` returns it.
        modes: The columns, some of `COLUMNS`; by default all that the checkpoint can fill.
        metrics: The metrics, as ir-measures spells them; by default nDCG@10, Recall@100, MRR@10 and MAP. If relevance
            is decided by answers, only Success is allowed, and the default is Success@20 and Success@100.
        weights: The weights of `dense+lexical`, `all` and `search:all`, each any `WeightsLike`. The default is the
            paper's for the first two and equal weights for the third, as in `SearchOptions`.
        protocol: The choice of candidates; by default with the numbers of the paper and of `SearchOptions`.
        work: The folder for vectors: a killed run continues from there, and a second run encodes nothing. By default a
            temporary folder, which is deleted in the end.
        show_progress: Whether to draw progress bars.

    Raises:
        BlockingIOError: If another process encodes the same into the work folder.
        TypeError: If modes or metrics is one string.
        ValueError: For an unknown mode, metric or preset, a mode that the checkpoint has no head for, or a metric that
            has no meaning for answers.
    """
    columns = possible_columns(encoder.modes) if modes is None else check_columns(modes, encoder.modes, encoder.model)
    protocol, chosen = protocol or Protocol(), check_weights(weights)
    metrics = dataset.check_metrics(metrics)
    rankings: dict[Column, Sequence[Ranking]] = {}
    by_model = [column for column in columns if NEEDED[column]]
    if by_model:
        with encoded_corpus(encoder, dataset, by_model, protocol, work, show_progress=show_progress) as encoded:
            evidence = gather_evidence(encoder, dataset, encoded, by_model, protocol, show_progress=show_progress)
        rankings |= {column: rank_column(evidence, column, chosen.get(column)) for column in by_model}
    rankings |= {column: rank_bm25(encoder, dataset, column) for column in columns if not NEEDED[column]}
    return EvaluationResult(
        dataset=dataset,
        model=encoder.model,
        fingerprint=encoder.fingerprint,
        weights={column: chosen[column] for column in columns if column in chosen},
        protocol=protocol,
        values={column: measure_rankings(dataset, found, metrics) for column, found in rankings.items()},
        rankings=rankings,
    )


@contextmanager
def encoded_corpus(
    encoder: EvaluatedEncoder,
    dataset: Dataset,
    columns: Sequence[Column],
    protocol: Protocol,
    work: str | os.PathLike[str] | None,
    *,
    show_progress: bool,
) -> Iterator[EncodedCorpus]:
    """Yield the dataset's corpus, encoded in the modes that the columns need."""
    needed = {mode for column in columns for mode in NEEDED[column]}
    modes: list[Mode] = [
        mode for mode in MODES if mode in needed and not (mode == "multi_vector" and protocol.encode_candidates)
    ]
    if work is not None:
        yield encode_corpus(encoder, dataset.corpus, Path(work), modes, show_progress=show_progress)
        return
    with tempfile.TemporaryDirectory(prefix="m3-evaluation-") as folder:
        yield encode_corpus(encoder, dataset.corpus, Path(folder), modes, show_progress=show_progress)


def measure_rankings(
    dataset: Dataset, rankings: Sequence[Ranking], metrics: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return for each metric its value for every query's ranking: (queries,) float64, in the order of the queries."""
    ids = dataset.corpus.ids
    depth = max(cutoff_of(metric) or DEPTH for metric in metrics)
    found = {query: ranking.rows[:depth] for query, ranking in zip(dataset.queries, rankings, strict=True)}
    ranked = {query: [ids[row] for row in rows.tolist()] for query, rows in found.items()}
    return measure_queries(ranked, dataset.judge(found), metrics)
