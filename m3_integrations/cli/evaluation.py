"""`m3 eval`: it evaluates models on datasets, and writes tables, run files and a plot."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from m3_integrations.cli.shared import Device, PipedConsole, errors_in_one_line, escape, open_model
from m3_integrations.vectors import MODES, Mode, ModeWeights

if TYPE_CHECKING:
    from m3_integrations.encoder import M3Encoder
    from m3_integrations.evaluation import Dataset, EvaluationResult, FittedCalibration, TunedWeights, Verdict
    from m3_integrations.evaluation.modes import Column
    from m3_integrations.evaluation.tables import Table
    from m3_integrations.remote import RemoteEncoder


@errors_in_one_line(after_interrupt="Vectors that were computed are kept: run the same command again to continue.")
def evaluate(  # noqa: PLR0917 - typer passes by name
    data: Annotated[Path, typer.Argument(help="A folder in BEIR's layout, or a folder of such folders.")],
    model: Annotated[list[str] | None, typer.Option(help="A checkpoint, or the URL of m3 serve; may be repeated. small "
                     "if none.")] = None,
    out: Annotated[Path, typer.Option(help="For the report.")] = Path("m3-eval"),
    work: Annotated[Path | None, typer.Option(help="For the vectors, which later runs reuse; in OUT if none.")] = None,
    modes: Annotated[str, typer.Option(help="Comma-separated: dense,lexical,multi_vector,dense+lexical,all,"
                     "search:all,bm25,bm25:words. All that every checkpoint can do if none.")] = "",
    metrics: Annotated[str, typer.Option(help="Comma-separated, as ir-measures spells them.")] = "",
    weights: Annotated[list[str] | None, typer.Option(help="PRESET or D,L,M for all hybrid modes, or "
                       "MODE=PRESET or MODE=D,L,M for one; may be repeated.")] = None,
    queries_from: Annotated[Path | None, typer.Option(help="Another BEIR folder whose queries are used, or a file of "
                            "MKQA's questions with answers.")] = None,
    split: Annotated[str | None, typer.Option(help="Which qrels; test if there are several.")] = None,
    titles: Annotated[bool, typer.Option(help="Put titles before the texts, as BEIR does.")] = True,
    baseline: Annotated[str | None, typer.Option(help="The mode that the others are compared with, one of MODES. dense "
                        "if none.")] = None,
    rerank_depth: Annotated[int, typer.Option(help="How many of the best by dense multi_vector and all rerank.")] = 200,
    pool_size: Annotated[int, typer.Option(help="Candidates of each leg of search:all.")] = 100,
    encode_candidates: Annotated[bool, typer.Option(help="Keep no token vectors of the corpus; encode candidates "
                                 "again.")] = False,
    tune: Annotated[bool, typer.Option(help="Find weights on half of the queries, report on the other half.")] = False,
    calibrate: Annotated[Path | None, typer.Option(help="Fit how probable it is that the best hit of search:all "
                         "answers, and write that into this file.")] = None,
    max_length: Annotated[int | None, typer.Option(min=3, help="The most tokens of a text; 8192 if none.")] = None,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Measure what every mode, weighting and checkpoint is worth on your data."""
    from m3_integrations import evaluation
    from m3_integrations.checkpoint import DEFAULT
    from m3_integrations.evaluation.modes import check_columns, check_weights, possible_columns
    from m3_integrations.evaluation.report import check_folders, notes, write_report, write_results
    from m3_integrations.evaluation.tables import make_tables, reliability_table
    from m3_integrations.evaluation.verdict import judge_calibration, make_verdicts

    console = PipedConsole()
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} exists and is a file: name a folder for the report")
    (compared_with,) = check_columns(["dense" if baseline is None else baseline], MODES)
    chosen, asked = parse_weights(weights or []), _names(metrics)
    protocol = evaluation.Protocol(rerank_depth=rerank_depth, pool_size=pool_size, encode_candidates=encode_candidates)
    datasets = [
        evaluation.read_dataset(folder, queries_from=queries_from, split=split, titles=titles)
        for folder in evaluation.find_folders(data)
    ]
    models = list(dict.fromkeys(model or [DEFAULT]))
    if calibrate is not None:
        _check_calibration(calibrate, len(models), len(datasets))
    opened = partial(open_model, shared=False, device=device, max_length=max_length)
    different, common = _tried(opened, models)
    models = list(different.values())
    columns = check_columns(_names(modes) or [], common, _joined(models)) if modes else possible_columns(common)
    check_weights(chosen)
    _check_used(baseline, weights or [], columns, calibrates=calibrate is not None)
    check_folders(list(different), [dataset.name for dataset in datasets])
    _check_datasets(datasets, asked, common, _joined(models), tune=tune or calibrate is not None)
    out.mkdir(parents=True, exist_ok=True)
    work = work or out / "vectors"
    results: list[EvaluationResult] = []
    tuned: list[TunedWeights] = []
    fitted: list[FittedCalibration] = []
    for name in models:
        with opened(name) as encoder:
            for dataset in datasets:
                console.print(f"[bold]{escape(name)}[/bold] on [bold]{escape(dataset.name)}[/bold]", highlight=False)
                result = evaluation.evaluate(
                    encoder, dataset, modes=columns, metrics=asked, weights=chosen, protocol=protocol, work=work,
                    show_progress=True,
                )  # fmt: skip
                results.append(result)
                write_results(results, out, baseline=compared_with, tuned=tuned)  # a later one may fail
                if tune:
                    metric = results[0].metrics[0]
                    tuned.append(evaluation.tune_weights(encoder, dataset, metric=metric, protocol=protocol, work=work))
                if calibrate is not None:
                    used = chosen.get("search:all")
                    fitted.append(evaluation.calibrate(encoder, dataset, weights=used, protocol=protocol, work=work))
                    fitted[0].calibration.save(calibrate)
    tables = [*make_tables(results, compared_with, tuned), *map(reliability_table, fitted)]
    verdicts = [*make_verdicts(results, tuned), *map(judge_calibration, fitted)]
    write_report(results, out, tables=tables, verdicts=verdicts, baseline=compared_with, tuned=tuned)
    _print_tables(tables, console)
    for note in notes(results):
        console.print(f"- {escape(note)}", style="dim", highlight=False)
    console.print(f"results.json, tables.md, plot.png and runs/ are in {escape(str(out))}", highlight=False)
    _print_verdicts(verdicts, console)


def _tried(
    opened: Callable[[str], M3Encoder | RemoteEncoder], models: Sequence[str]
) -> tuple[dict[str, str], tuple[Mode, ...]]:
    """Return the different models, each with the name to open it by, and the modes that all have heads for.

    All are opened: a damaged one raises an error at once.
    """
    common, different = MODES, dict[str, str]()
    for name in models:
        with opened(name) as encoder:
            common = tuple(mode for mode in common if mode in encoder.modes)
            different.setdefault(encoder.model, name)  # m and ./m are one folder
    return different, common


def _check_used(baseline: str | None, weights: Sequence[str], columns: Sequence[Column], *, calibrates: bool) -> None:
    """Raise ValueError if an option is for modes of which none is measured, so that it would have no effect."""
    options = [] if baseline is None else [(f"--baseline {baseline}", {baseline})]
    options += [(f"--weights {text}", set(parse_weights([text]))) for text in weights]
    for option, wanted in options:
        is_fitted = calibrates and option.startswith("--weights") and "search:all" in wanted
        if not is_fitted and wanted.isdisjoint(columns):
            raise ValueError(
                f"{option} is for {' or '.join(sorted(wanted))}, but only {', '.join(columns)} would be measured: "
                "leave it out, or change --modes"
            )


def _check_datasets(
    datasets: Sequence[Dataset], metrics: Sequence[str] | None, modes: Sequence[Mode], model: str, *, tune: bool
) -> None:
    """Raise an error for data that cannot be measured, tuned on or written, before the first text is encoded."""
    from m3_integrations.evaluation.runs import check_run_ids
    from m3_integrations.evaluation.tuning import check_tuning

    for dataset in datasets:
        check_run_ids(dataset)
        dataset.check_metrics(metrics)
        if tune:
            check_tuning(dataset, modes, model)


def _check_calibration(file: Path, n_models: int, n_datasets: int) -> None:
    if n_models * n_datasets > 1:
        raise ValueError(f"--calibrate is for one model on one dataset, got {n_models} and {n_datasets}")
    if file.is_dir():
        raise IsADirectoryError(
            f"--calibrate {file} is a folder: name a file in it, such as {file / 'calibration.json'}"
        )
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of the calibration {file} does not exist: make it, or name another file")


def _joined(models: Sequence[str]) -> str:
    return models[0] if len(models) == 1 else f"(one of {', '.join(models)})"


def _names(text: str | None) -> list[str] | None:
    """Return the names in a comma-separated list; None without one. A comma in brackets belongs to a name."""
    return [name.strip() for name in re.split(r",(?![^()]*\))", text)] if text else None


def parse_weights(texts: Sequence[str]) -> dict[str, ModeWeights | str]:
    """Parse weights as a user types them: PRESET or D,L,M, and for one column COLUMN=PRESET or COLUMN=D,L,M.

    Raises:
        ValueError: If a text is neither.
    """
    from m3_integrations.evaluation.modes import DEFAULT_WEIGHTS

    weights: dict[str, ModeWeights | str] = {}
    for text in texts:
        column, separator, value = text.rpartition("=")
        columns: Sequence[str] = [column] if separator else list(DEFAULT_WEIGHTS)
        chosen: ModeWeights | str = value
        if "," in value:
            try:
                dense, lexical, multi_vector = map(float, value.split(","))
            except ValueError as error:
                raise ValueError(f"weights must be three numbers, dense,lexical,multi-vector, got {value!r}") from error
            chosen = ModeWeights(dense, lexical, multi_vector)
        weights |= dict.fromkeys(columns, chosen)
    return weights


def _print_tables(tables: Sequence[Table], console: Console) -> None:
    """Print tables at their full width, so that no interval is cut in a narrow terminal."""
    from m3_integrations.evaluation.tables import WIDTH

    console.width = max(console.width, WIDTH)
    for table in tables:
        shown = RichTable(title=table.title, title_justify="left")
        for i, column in enumerate(table.columns):
            shown.add_column(escape(column), justify="right" if i else "left", no_wrap=True)
        for cells in table.rows:
            shown.add_row(*map(escape, cells))
        console.print(shown)
        for line in table.explanations:
            console.print(escape(line), style="dim", highlight=False, soft_wrap=True)


def _print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    for verdict in verdicts:
        console.print(f"\n[bold]{escape(verdict.about)}[/bold]", highlight=False, soft_wrap=True)
        for sentence in verdict.sentences:
            console.print(escape(sentence), highlight=False, soft_wrap=True)
