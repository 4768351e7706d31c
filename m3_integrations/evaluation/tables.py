"""Results as tables: modes are rows, and every table fits a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from m3_integrations.evaluation.calibrating import FittedCalibration
from m3_integrations.evaluation.evaluate import EvaluationResult
from m3_integrations.evaluation.modes import Column
from m3_integrations.evaluation.statistics import Comparison, Estimate, compare_paired
from m3_integrations.evaluation.tuning import TUNED, TunedWeights
from m3_integrations.vectors import PRESETS, ModeWeights

WIDTH: Final = 80
"""The width of every table in characters; a table is wider only if a single metric does not fit."""

_FRAME: Final = 3
"""The characters between two cells: a line with a space on either side."""

_COMPARED: Final = ("difference", "95 % interval", "p")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells with their headings.

    Attributes:
        title: The title.
        columns: The heading of every column; the first column has the names of the rows.
        rows: The rows, each with one cell for every column.
        explanations: Lines that explain rows.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    explanations: Sequence[str] = ()


def make_tables(
    results: Sequence[EvaluationResult], baseline: Column, tuned: Sequence[TunedWeights] = ()
) -> Iterator[Table]:
    """Yield all tables: for every model and dataset, the means over datasets, comparisons of models, tuned weights.

    Args:
        results: One result for every model and dataset, with the same columns and metrics; the oldest model first.
        baseline: The mode that the others are compared with.
        tuned: Weights found on each of the results' datasets, in their order, or none.
    """
    names = model_names(results)
    for model, name in names.items():
        own = [result for result in results if result.model == model]
        for result in own:
            title = f"{name} on {result.dataset.name}"
            rows = [[c, *_cells(result, c)] for c in result.columns]
            yield from _fitting(title, result.metrics, rows, explain_columns(result))
            if baseline in result.columns and len(result.columns) > 1:
                yield _less_baseline(title, result, baseline)
        if len(own) > 1:
            yield from _means(f"{name}: mean of {len(own)} datasets", own)
    yield from _model_tables(results, names)
    for result, found in zip(results, tuned, strict=bool(tuned)):
        yield from _tuning_tables(f"{names[result.model]} on {result.dataset.name}", found)


def model_names(results: Sequence[EvaluationResult]) -> dict[str, str]:
    """Return a short name for each model of the results, as `short_names` does."""
    return short_names(list(dict.fromkeys(result.model for result in results)))


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return a short name for each model: the fewest last parts of their names that keep all names different."""
    parts = {model: PurePosixPath(model.replace("\\", "/")).parts for model in models}
    for n in range(1, max(map(len, parts.values()))):
        short = ["/".join(parts[model][-n:]) for model in models]
        if len(set(short)) == len(models):
            return dict(zip(models, short, strict=True))
    return {model: model for model in models}


def explain_columns(result: EvaluationResult) -> list[str]:
    """Return a line for each column that needs one: how it finds candidates, and by which scores it ranks."""
    depth, pool = result.protocol.rerank_depth, result.protocol.pool_size
    known: dict[Column, str] = {
        "dense+lexical": "the best 1,000 of both legs, by their weighted sum",
        "multi_vector": f"the {depth} best by dense, by token vectors",
        "all": f"the {depth} best by dense, by all three modes, as in the paper",
        "search:all": f"the {pool} best of both legs, by all three modes: what the retrievers here do",
        "bm25": "BM25 over the model's tokens, without any vector",
        "bm25:words": "BM25 over words, without the model",
    }
    lines = []
    for column in (column for column in result.columns if column in known):
        weights = f" ({_share(result.weights[column], column)})" if column in result.weights else ""
        lines.append(f"{column}: {known[column]}{weights}")
    return lines


def _share(weights: ModeWeights, column: Column = "all") -> str:
    shown = [weights.dense, weights.lexical, *([weights.multi_vector] if column != "dense+lexical" else [])]
    return " / ".join(f"{value:g}" for value in shown)


def _cells(result: EvaluationResult, column: Column) -> list[str]:
    first, *others = result.metrics
    return [
        shown_estimate(result.estimate(column, first)),
        *(f"{result.estimate(column, metric).mean:.3f}" for metric in others),
    ]


def _fitting(
    title: str, metrics: Sequence[str], rows: Sequence[Sequence[str]], explanations: Sequence[str]
) -> Iterator[Table]:
    """Yield one table, or several if a table of all metrics would be wider than `WIDTH`."""
    widths = [max(len(cell) for cell in cells) for cells in zip(["", *metrics], *rows, strict=True)]
    groups, used = [[1]], widths[0] + widths[1] + 2 * _FRAME + 1
    for i in range(2, len(widths)):
        used += widths[i] + _FRAME
        if used > WIDTH:
            groups.append([])
            used = widths[0] + widths[i] + 2 * _FRAME + 1
        groups[-1].append(i)
    for group in groups:
        columns = ["", *(metrics[i - 1] for i in group)]
        last = explanations if group is groups[-1] else ()
        yield Table(title, columns, [[row[0], *(row[i] for i in group)] for row in rows], last)


def _less_baseline(title: str, result: EvaluationResult, baseline: Column) -> Table:
    metric = result.metrics[0]
    others = [column for column in result.columns if column != baseline]
    rows = [[column, *_compared(result.compare(column, baseline, metric))] for column in others]
    return Table(f"{title}: {metric}, less that of {baseline}", ["", *_COMPARED], rows)


def _means(title: str, own: Sequence[EvaluationResult]) -> Iterator[Table]:
    metrics = own[0].metrics
    rows = [
        [column, *(f"{sum(r.estimate(column, metric).mean for r in own) / len(own):.3f}" for metric in metrics)]
        for column in own[0].columns
    ]
    yield from _fitting(title, metrics, rows, ())


def _model_tables(results: Sequence[EvaluationResult], names: Mapping[str, str]) -> Iterator[Table]:
    """Yield for every later model and dataset a table of its differences from the first model, column by column."""
    for old, new in compared_results(results):
        metric = old.metrics[0]
        rows = [
            [column, *_compared(compare_paired(new.values[column][metric], old.values[column][metric]))]
            for column in old.columns
        ]
        title = f"{old.dataset.name}: {metric}, {names[new.model]} less {names[old.model]}"
        yield Table(title, ["", *_COMPARED], rows)


def compared_results(results: Sequence[EvaluationResult]) -> Iterator[tuple[EvaluationResult, EvaluationResult]]:
    """Yield for every later model and every dataset the first model's result and the later model's result."""
    of_first = {result.dataset.name: result for result in results if result.model == results[0].model}
    for result in results:
        if result.model != results[0].model:
            yield of_first[result.dataset.name], result


def _tuning_tables(title: str, found: TunedWeights) -> Iterator[Table]:
    weightings = {TUNED: found.weights, **PRESETS}
    half = f"{len(found.reported_on):,} questions that weights were not found on"
    rows = [[name, _share(weightings[name]), shown_estimate(found.estimate(name))] for name in found.values]
    yield Table(f"{title}: search:all on {half}", ["", "dense / lexical / multi", found.metric], rows)
    others = [name for name in found.values if name != TUNED]
    compared = [[name, *_compared(found.compare(name))] for name in others]
    yield Table(f"{title}: {found.metric} of the tuned weights, less that of", ["", *_COMPARED], compared)


def reliability_table(fitted: FittedCalibration) -> Table:
    """Return a table of probabilities and outcomes, on the half that the calibration was not fitted on."""
    rows = [[f"{b.said:.2f}", f"{b.right:.2f}", f"{b.n:,}"] for b in fitted.reliability()]
    title = f"{fitted.calibration.model}: the predicted probability that the best hit answers, and how often it did"
    return Table(title, ["said", "right", "searches"], rows)


def shown_estimate(estimate: Estimate) -> str:
    """Return a mean with its interval, such as "0.512 [0.444, 0.582]"."""
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _compared(comparison: Comparison) -> list[str]:
    found = comparison.difference
    return [f"{found.mean:+.3f}", f"[{found.low:+.3f}, {found.high:+.3f}]", f"{comparison.p_value:.4f}"]
