"""Results as files: JSON with every query, TREC runs, tables in Markdown, a plot."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from m3_integrations.evaluation.evaluate import EvaluationResult
from m3_integrations.evaluation.modes import Column
from m3_integrations.evaluation.plot import plot_estimates
from m3_integrations.evaluation.runs import write_trec_run
from m3_integrations.evaluation.tables import Table, model_names, short_names
from m3_integrations.evaluation.tuning import TUNED, TunedWeights
from m3_integrations.evaluation.verdict import Verdict

_PACKAGES: Final = ("numpy", "torch", "transformers", "ir-measures", "scipy", "rank-bm25")


def check_folders(models: Sequence[str], datasets: Sequence[str]) -> None:
    """Raise ValueError if two models or two data sets would have the same folder of run files.

    Args:
        models: The names of the models.
        datasets: The names of the data sets.
    """
    for kind, names in (("models", list(short_names(models).values())), ("data sets", datasets)):
        known: dict[str, str] = {}
        for name in names:
            folder = _file_name(name)
            if folder in known:
                raise ValueError(
                    f"run files of two {kind}, {known[folder]!r} and {name!r}, would be in one folder, {folder!r}: "
                    "rename one"
                )
            known[folder] = name


def write_report(
    results: Sequence[EvaluationResult],
    folder: Path,
    *,
    tables: Sequence[Table],
    verdicts: Sequence[Verdict],
    baseline: Column,
    tuned: Sequence[TunedWeights] = (),
) -> None:
    """Write results.json, tables.md, plot.png and runs/MODEL/DATASET/MODE.trec, and replace existing files.

    Args:
        results: One result for every model and dataset, all with the same columns and metrics.
        folder: The folder to write into; made if it does not exist.
        tables: The tables of `make_tables`.
        verdicts: The verdicts of `make_verdicts`.
        baseline: The column that the others are compared with.
        tuned: Weights found on each of the results' datasets, in their order, or none.

    Raises:
        ValueError: If an id has white space in it, which a TREC run file cannot hold, or for the reasons of
            `check_folders`.
    """
    check_folders(
        list(dict.fromkeys(result.model for result in results)),
        [result.dataset.name for result in results if result.model == results[0].model],
    )
    write_results(results, folder, baseline=baseline, tuned=tuned, verdicts=verdicts)
    names = model_names(results)
    for result in results:
        runs = folder / "runs" / _file_name(names[result.model]) / _file_name(result.dataset.name)
        runs.mkdir(parents=True, exist_ok=True)
        for column, rankings in result.rankings.items():
            write_trec_run(runs / f"{_file_name(column)}.trec", result.dataset, rankings, _file_name(column))
    (folder / "tables.md").write_text("\n".join(_markdown(results, tables, verdicts)), encoding="utf-8")
    plot_estimates(results, results[0].metrics[0], names, folder / "plot.png")


def write_results(
    results: Sequence[EvaluationResult],
    folder: Path,
    *,
    baseline: Column,
    tuned: Sequence[TunedWeights] = (),
    verdicts: Sequence[Verdict] = (),
) -> None:
    """Write only results.json; a run does this after every dataset, before it has ended.

    The arguments are those of `write_report`. Before the end of a run tuned may be shorter than results, and there are
    no verdicts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "baseline": baseline,
        "results": [_result(result, baseline) for result in results],
        "tuned": [_tuned(result, found) for result, found in zip(results, tuned, strict=False)],
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    new = folder / "results.json.new"
    new.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(folder / "results.json")


def notes(results: Sequence[EvaluationResult]) -> Iterator[str]:
    """Yield a line for each dataset with its size and what was left out, and a line on the statistics."""
    for result in {result.dataset.name: result for result in results}.values():
        judged = "judged by answers" if result.dataset.answers else "with judgements"
        left_out = f"; {result.dataset.unjudged} without judgements left out" if result.dataset.unjudged else ""
        counts = f"{len(result.dataset.queries):,} queries {judged}, {len(result.dataset.corpus):,} documents"
        yield f"{result.dataset.name}: {counts}{left_out}"
    yield "intervals: 95 %, bootstrap over queries; p: paired randomization test; both of 10,000 resamples"


def _markdown(
    results: Sequence[EvaluationResult], tables: Sequence[Table], verdicts: Sequence[Verdict]
) -> Iterator[str]:
    for table in tables:
        yield from (f"## {table.title}", "")
        for cells in (table.columns, ["---"] * len(table.columns), *table.rows):
            yield f"| {' | '.join(cells)} |"
        yield ""
        yield from (f"- {line}" for line in table.explanations)
        if table.explanations:
            yield ""
    yield from (f"- {note}" for note in notes(results))
    for verdict in verdicts:
        yield from ("", f"## Verdict: {verdict.about}", "")
        yield from verdict.sentences
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
