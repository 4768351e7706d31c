"""Results as files: JSON with every query, TREC runs, tables in Markdown, a plot."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from m3_integrations.evaluation.evaluate import EvaluationResult
from m3_integrations.evaluation.modes import Column
from m3_integrations.evaluation.plot import plot_estimates
from m3_integrations.evaluation.runs import write_trec_run
from m3_integrations.evaluation.statistics import Comparison, Estimate, compare_paired
from m3_integrations.evaluation.tuning import TUNED, TunedWeights

_PACKAGES: Final = ("numpy", "torch", "transformers", "ir-measures", "scipy", "rank-bm25")


Table = tuple[str, list[str], list[list[str]]]
"""A title, the names of the columns, and the rows of cells."""


def write_report(
    results: Sequence[EvaluationResult],
    folder: Path,
    *,
    tables: Sequence[Table],
    baseline: Column,
    tuned: Sequence[TunedWeights] = (),
) -> None:
    """Write results.json, tables.md, plot.png and runs/MODEL/DATASET/MODE.trec; what is there is replaced.

    Args:
        results: One for every model and dataset, of the same columns and metrics.
        folder: Where to write; made if it is not there.
        tables: What `make_tables` gave.
        baseline: The column that the others are compared with.
        tuned: Weights found on each of the results' datasets, in their order, or none.

    Raises:
        ValueError: If an id has white space in it, which a TREC run file cannot hold.
    """
    write_results(results, folder, baseline=baseline, tuned=tuned)
    names = model_names(results)
    for result in results:
        runs = folder / "runs" / _file_name(names[result.model]) / _file_name(result.dataset.name)
        runs.mkdir(parents=True, exist_ok=True)
        for column, rankings in result.rankings.items():
            write_trec_run(runs / f"{_file_name(column)}.trec", result.dataset, rankings, _file_name(column))
    (folder / "tables.md").write_text("\n".join(_markdown(results, tables)), encoding="utf-8")
    plot_estimates(results, results[0].metrics[0], names, folder / "plot.png")


def write_results(
    results: Sequence[EvaluationResult], folder: Path, *, baseline: Column, tuned: Sequence[TunedWeights] = ()
) -> None:
    """Write results.json alone, which a run that has not ended can do after every dataset.

    Arguments are those of `write_report`; of tuned the last may be missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "baseline": baseline,
        "results": [_result(result, baseline) for result in results],
        "tuned": [_tuned(result, found) for result, found in zip(results, tuned, strict=False)],
    }
    new = folder / "results.json.new"
    new.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(folder / "results.json")


def model_names(results: Sequence[EvaluationResult]) -> dict[str, str]:
    """Return what tables call each model: the last part of its name, or the whole name if two models end alike."""
    models = list(dict.fromkeys(result.model for result in results))
    short = [Path(model).name for model in models]
    return {model: name if short.count(name) == 1 else model for model, name in zip(models, short, strict=True)}


def make_tables(
    results: Sequence[EvaluationResult], baseline: Column, tuned: Sequence[TunedWeights] = ()
) -> Iterator[Table]:
    """Yield all tables: every metric of every model, its modes compared, models compared, tuned weights.

    Arguments are those of `write_report`.
    """
    names = model_names(results)
    columns, metrics = results[0].columns, results[0].metrics
    for model, name in names.items():
        own = [result for result in results if result.model == model]
        for metric in metrics:
            rows = [[r.dataset.name, *_estimates(r, metric, with_interval=metric == metrics[0])] for r in own]
            if len(own) > 1:
                means = [sum(r.estimate(c, metric).mean for r in own) / len(own) for c in columns]
                rows.append(["mean", *(f"{mean:.3f}" for mean in means)])
            yield f"{name}: {metric}", ["", *columns], rows
        others = [column for column in columns if column != baseline]
        if others and baseline in columns:
            rows = [[r.dataset.name, *(_comparison(r.compare(c, baseline, metrics[0])) for c in others)] for r in own]
            yield f"{name}: {metrics[0]}, less that of {baseline}", ["", *others], rows
    yield from _model_tables(results, names)
    if tuned:
        yield _tuning_table(results, names, tuned)


def _model_tables(results: Sequence[EvaluationResult], names: Mapping[str, str]) -> Iterator[Table]:
    """Compare the first model with each of the others, column by column."""
    first, *others = names
    metric, columns = results[0].metrics[0], results[0].columns
    of = {(result.model, result.dataset.name): result for result in results}
    for other in others:
        rows = []
        for result in (result for result in results if result.model == first):
            theirs = of[other, result.dataset.name]
            cells = [compare_paired(result.values[c][metric], theirs.values[c][metric]) for c in columns]
            rows.append([result.dataset.name, *map(_comparison, cells)])
        yield f"{metric}, {names[first]} less {names[other]}", ["", *columns], rows


def _tuning_table(
    results: Sequence[EvaluationResult], names: Mapping[str, str], tuned: Sequence[TunedWeights]
) -> Table:
    rows = []
    for result, found in zip(results, tuned, strict=True):
        label = result.dataset.name if len(names) == 1 else f"{names[result.model]}, {result.dataset.name}"
        weights = found.weights
        shown = f"{weights.dense:g} / {weights.lexical:g} / {weights.multi_vector:g}"
        rows.append([label, shown, *(_estimate(found.estimate(name)) for name in found.values)])
    title = f"search:all, {tuned[0].metric} on the half of the queries that the weights were not found on"
    return title, ["", "dense / lexical / multi-vector", *tuned[0].values], rows


def _estimates(result: EvaluationResult, metric: str, *, with_interval: bool) -> list[str]:
    estimates = [result.estimate(column, metric) for column in result.columns]
    return [_estimate(estimate) if with_interval else f"{estimate.mean:.3f}" for estimate in estimates]


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _comparison(comparison: Comparison) -> str:
    found = comparison.difference
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] p={comparison.p_value:.4f}"


def notes(results: Sequence[EvaluationResult]) -> Iterator[str]:
    """Yield what was measured, how, and what was left out."""
    for result in {result.dataset.name: result for result in results}.values():
        judged = "judged by answers" if result.dataset.answers else "with judgements"
        left_out = f"; {result.dataset.unjudged} without judgements left out" if result.dataset.unjudged else ""
        counts = f"{len(result.dataset.queries):,} queries {judged}, {len(result.dataset.corpus):,} documents"
        yield f"{result.dataset.name}: {counts}{left_out}"
    protocol = results[0].protocol
    yield (
        f"multi_vector and all rerank the {protocol.rerank_depth} best by dense; search:all scores the union of the "
        f"{protocol.pool_size} best of both legs"
    )
    for column, weights in results[0].weights.items():
        yield f"weights of {column}: {weights.dense:g} dense, {weights.lexical:g} lexical, " + (
            f"{weights.multi_vector:g} multi-vector" if column != "dense+lexical" else "no multi-vector"
        )
    yield "intervals: 95 %, bootstrap over queries; p: paired randomization test; both of 10,000 resamples"


def _markdown(results: Sequence[EvaluationResult], tables: Sequence[Table]) -> Iterator[str]:
    for title, columns, rows in tables:
        yield from (f"## {title}", "")
        for cells in (columns, ["---"] * len(columns), *rows):
            yield f"| {' | '.join(cells)} |"
        yield ""
    yield from (f"- {note}" for note in notes(results))
    yield ""


def _result(result: EvaluationResult, baseline: Column) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for column in result.columns:
        columns[column] = {
            metric: {
                **asdict(result.estimate(column, metric)),
                "per_query": [round(value, 6) for value in result.values[column][metric].tolist()],
            }
            for metric in result.metrics
        }
        if column != baseline and baseline in result.columns:
            metric = result.metrics[0]
            columns[column]["less_baseline"] = {metric: asdict(result.compare(column, baseline, metric))}
    return {
        "dataset": result.dataset.name,
        "documents": len(result.dataset.corpus),
        "corpus_digest": result.dataset.corpus.digest,
        "queries": list(result.dataset.queries),
        "unjudged": result.dataset.unjudged,
        "model": result.model,
        "fingerprint": result.fingerprint,
        "protocol": asdict(result.protocol),
        "weights": {column: asdict(weights) for column, weights in result.weights.items()},
        "modes": columns,
    }


def _tuned(result: EvaluationResult, found: TunedWeights) -> dict[str, Any]:
    return {
        "dataset": result.dataset.name,
        "model": result.model,
        "metric": found.metric,
        "weights": asdict(found.weights),
        "found_on": list(found.found_on),
        "reported_on": list(found.reported_on),
        "values": {name: asdict(found.estimate(name)) for name in found.values},
        "tuned_less": {name: asdict(found.compare(name)) for name in found.values if name != TUNED},
    }


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]", "-", name)
