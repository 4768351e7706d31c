"""`m3 load`: adding the records of Parquet files, from an encoding on many machines, to a store."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from m3_integrations.cli.shared import Collection, PipedConsole, counted, errors_in_one_line, is_new, open_place


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
    from m3_integrations.parquet import find_files, load_parquet

    if is_new(store) and not [file for path in paths for file in find_files(path, ".parquet")]:
        # A mistyped path must not make a store.
        raise ValueError(f"there is no Parquet file in {', '.join(paths)}: name files that an encoding has written")
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
