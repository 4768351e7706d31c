"""`m3 load`: adding the records of Parquet files, from an encoding on many machines, to a store."""

from __future__ import annotations

from typing import Annotated

import typer

from m3_integrations.cli.shared import Collection, PipedConsole, counted, errors_in_one_line, escape, is_new, open_place


@errors_in_one_line(stderr=True, after_interrupt="Finished work is kept: run the same command again to continue.")
def load(
    paths: Annotated[
        list[str],
        typer.Argument(help="Parquet files of an encoding, and folders of them, or their URIs.", show_default=False),
    ],
    *,
    store: Annotated[str, typer.Option(help="A folder, made if it does not exist, or the URL of a Qdrant server.")],
    multi_vector: Annotated[
        str | None, typer.Option(help="How a new store keeps token vectors: float16, turbo8, turbo4 or none.")
    ] = None,
    collection: Collection = None,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Build the indexes at the end: searches get faster.")
    ] = False,
) -> None:
    """Put encoded records and their vectors into a store. Nothing is encoded; records that it has are skipped."""
    from m3_integrations.parquet import load_parquet, open_files

    if is_new(store):  # a mistyped path or a damaged file must not make a store, which would fix its settings
        open_files(paths)
    with open_place(store, collection=collection, multi_vector=multi_vector) as opened:
        report = load_parquet(paths, opened, show_progress=True)
        if optimize:
            opened.optimize()
        n_records = opened.count()
    for line in (
        f"{counted(report.n_loaded, 'records')} loaded, {report.n_there:,} there already",
        f"{store} holds {counted(n_records, 'records')}",
    ):
        PipedConsole().print(escape(line), highlight=False, soft_wrap=True)
