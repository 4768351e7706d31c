"""`m3 eval`: datasets and models in, tables, run files and a plot out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from m3_integrations.encoder import M3Encoder
from m3_integrations.evaluation import EvaluationResult, Protocol, evaluate, find_folders, read_dataset, tune_weights
from m3_integrations.evaluation.modes import DEFAULT_WEIGHTS, Column, check_columns
from m3_integrations.evaluation.report import make_tables, notes, write_report
from m3_integrations.vectors import MODES, ModeWeights

_FILE_WIDTH: Final = 160
"""Columns of a table that goes into a file or a pipe."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What `m3 eval` was asked; its options explain each."""

    data: Path
    models: Sequence[str]
    out: Path
    work: Path | None
    modes: Sequence[str]
    metrics: Sequence[str]
    weights: Sequence[str]
    queries_from: Path | None
    split: str | None
    titles: bool
    baseline: str
    rerank_depth: int
    pool_size: int
    encode_candidates: bool
    tune: bool
    max_length: int
    device: str


def run_evaluation(request: EvaluationRequest, console: Console) -> list[EvaluationResult]:
    """Evaluate every model on every dataset, print the tables and write the report.

    Args:
        request: What was asked.
        console: Where to print.

    Raises:
        FileNotFoundError: If data or a model is not there.
        ValueError: If data, a mode, a metric or weights are not as they must be.
    """
    (baseline,) = check_columns([request.baseline], MODES)
    weights = parse_weights(request.weights)
    protocol = Protocol(
        rerank_depth=request.rerank_depth, pool_size=request.pool_size, encode_candidates=request.encode_candidates
    )
    datasets = [
        read_dataset(folder, queries_from=request.queries_from, split=request.split, titles=request.titles)
        for folder in find_folders(request.data)
    ]
    work = request.work or request.out / "vectors"
    results, tuned = [], []
    for model in request.models:
        with M3Encoder(model, shared=False, device=request.device, max_length=request.max_length) as encoder:
            for dataset in datasets:
                console.print(f"[bold]{escape(model)}[/bold] on [bold]{escape(dataset.name)}[/bold]", highlight=False)
                results.append(
                    evaluate(
                        encoder,
                        dataset,
                        modes=request.modes or None,
                        metrics=request.metrics or None,
                        weights=weights,
                        protocol=protocol,
                        work=work,
                        show_progress=True,
                    )
                )
                if request.tune:
                    metric = results[0].metrics[0]
                    tuned.append(tune_weights(encoder, dataset, metric=metric, protocol=protocol, work=work))
    width = console.width if console.is_terminal else _FILE_WIDTH
    tables = list(make_tables(results, baseline, tuned))
    for title, columns, rows in tables:
        console.print(_table(title, columns, rows), width=width, crop=False)
    for note in notes(results):
        console.print(f"- {escape(note)}", style="dim", highlight=False)
    write_report(results, request.out, tables=tables, baseline=baseline, tuned=tuned)
    console.print(f"results.json, tables.md, plot.png and runs/ are in {escape(str(request.out))}", highlight=False)
    return results


def parse_weights(texts: Sequence[str]) -> dict[str, ModeWeights | str]:
    """Read weights as a user types them: PRESET, or D,L,M; for one column alone COLUMN=PRESET or COLUMN=D,L,M.

    Raises:
        ValueError: If a text is neither.
    """
    weights: dict[str, ModeWeights | str] = {}
    for text in texts:
        column, separator, value = text.rpartition("=")
        columns: Sequence[Column | str] = [column] if separator else list(DEFAULT_WEIGHTS)
        chosen: ModeWeights | str = value
        if "," in value:
            try:
                dense, lexical, multi_vector = map(float, value.split(","))
            except ValueError as error:
                raise ValueError(f"weights must be three numbers, dense,lexical,multi-vector, got {value!r}") from error
            chosen = ModeWeights(dense, lexical, multi_vector)
        weights |= dict.fromkeys(columns, chosen)
    return weights


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Give a table whose intervals stand on lines of their own, so that eight columns fit a screen."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if i else "left", overflow="fold")
    for cells in rows:
        table.add_row(*(escape(cell.replace(" [", "\n[").replace("] p", "]\np")) for cell in cells))
    return table
