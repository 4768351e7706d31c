"""`m3 index`: files into a store, and up to date there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from m3_integrations.cli.place import folder_of, is_new, open_place
from m3_integrations.encoder import M3Encoder
from m3_integrations.indexing import IndexReport, Splitting, index_files


def run_index(
    paths: Sequence[Path],
    where: str,
    *,
    model: str,
    device: str,
    splitting: Splitting,
    multi_vector: str | None,
    collection: str | None,
    optimize: bool,
    console: Console,
    errors: Console,
) -> bool:
    """Index files, and print what was done.

    Args:
        paths: Files and folders.
        where: The store: a folder, made if it is not there, or a URL.
        model: As `M3Encoder` takes it.
        device: As `M3Encoder` takes it.
        splitting: How texts are cut.
        multi_vector: How a new store keeps token vectors.
        collection: The collection on a server.
        optimize: Whether to optimise the store at the end.
        console: Where the summary goes.
        errors: Where files that could not be read are named.

    Returns:
        Whether everything could be read.

    Raises:
        FileNotFoundError: If there is no such path or model.
        ValueError: For what `index_files` and `open_store` refuse.
    """
    # Before a mistyped path has made a store, and before seconds go into loading a model.
    if is_new(where) and (absent := [path for path in paths if not path.expanduser().exists()]):
        raise FileNotFoundError(f"no file or folder {absent[0]}")
    encoder = M3Encoder(model, device=device)
    folder = folder_of(where)
    with open_place(where, collection=collection, multi_vector=multi_vector) as store:
        exclude = [folder] if folder is not None else []
        report = index_files(paths, encoder, store, splitting=splitting, exclude=exclude, show_progress=True)
        if optimize:
            store.optimize()
        _print_report(report, store.count(), where, console)
    for line in report.failures.values():
        errors.print(f"[red]not indexed:[/red] {escape(line)}", highlight=False, soft_wrap=True)
    return not report.failures


def _print_report(report: IndexReport, n_records: int, where: str, console: Console) -> None:
    files = ", ".join(f"{len(getattr(report, name)):,} {name}" for name in ("added", "changed", "unchanged", "deleted"))
    lines = [
        f"files: {files}",
        f"parts: {report.parts_encoded:,} encoded, {report.parts_kept:,} kept, {report.parts_deleted:,} deleted",
    ]
    passed_over = {"files without text": report.empty, **report.skipped}
    if said := ", ".join(f"{len(paths):,} {reason}" for reason, paths in passed_over.items() if paths):
        lines.append(f"passed over: {said}")
    lines.append(f"{where} holds {n_records:,} records")
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)
