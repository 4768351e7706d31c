"""`m3 index`: adding files to a store, and keeping the store up to date with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from m3_integrations.cli.shared import (
    Collection,
    Device,
    ModelOfStore,
    PipedConsole,
    counted,
    errors_in_one_line,
    escape,
    folder_of,
    is_new,
    open_place_and_model,
)
from m3_integrations.vectors import MODES, absent_heads

if TYPE_CHECKING:
    from m3_integrations.indexing import IndexReport
    from m3_integrations.store.points import StoreFormat


@errors_in_one_line(stderr=True, after_interrupt="Finished work is kept: run the same command again to continue.")
def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Text, Markdown, reStructuredText, HTML and JSONL files, and folders of them.", show_default=False
        ),
    ],
    *,
    store: Annotated[
        str,
        typer.Option(
            help="A folder, made if it does not exist, or the URL of an m3 serve or a Qdrant server; a,b for nodes."
        ),
    ],
    model: ModelOfStore = None,
    size: Annotated[int, typer.Option(help="The most tokens of a part.")] = 256,
    overlap: Annotated[int, typer.Option(help="The most tokens that a part repeats of the one before it.")] = 32,
    multi_vector: Annotated[
        str | None, typer.Option(help="How a new store keeps token vectors: float16, turbo8, turbo4 or none.")
    ] = None,
    collection: Collection = None,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Build the indexes at the end: searches get faster.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Bring a store up to date with files: encode what is new or changed, and delete what no longer exists."""
    from m3_integrations.indexing import Splitter, Splitting, index_files
    from m3_integrations.indexing.files import find_files
    from m3_integrations.store.qdrant import QdrantStore

    splitting = Splitting(size, overlap)
    folder = folder_of(store)
    exclude = [folder] if folder is not None else []
    if is_new(store):  # checked first: a wrong path must not make a store, nor cost the seconds of loading a model
        if absent := [path for path in paths if not path.expanduser().exists()]:
            raise FileNotFoundError(f"no file or folder {absent[0]}")
        find_files(paths, exclude=exclude)
    if folder is not None and (within := [path for path in paths if _is_within(path, folder)]):
        raise ValueError(f"{within[0]} cannot be indexed into {store}, which is or contains it: name another --store")
    with open_place_and_model(
        store, model, device=device, collection=collection, multi_vector=multi_vector,
        check=lambda encoder: Splitter(encoder, splitting),
    ) as (opened, encoder):  # fmt: skip
        if lacking := [mode for mode in MODES if mode not in encoder.modes]:  # before hours go into it without them
            note = absent_heads(encoder.model, encoder.modes, lacking)
            Console(stderr=True).print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
        report = index_files(paths, encoder, opened, splitting=splitting, exclude=exclude, show_progress=True)
        if optimize:
            opened.optimize()
        _print_report(report, opened.count(), store)
        format_ = opened.format if isinstance(opened, QdrantStore) else None
    if folder is not None and format_ is not None:
        _print_size(folder, format_)
    for line in report.failures.values():
        Console(stderr=True).print(f"[red]not indexed:[/red] {escape(line)}", highlight=False, soft_wrap=True)
    if report.failures:
        raise typer.Exit(1)


def _is_within(path: Path, folder: Path) -> bool:
    return path.expanduser().resolve().is_relative_to(folder.resolve())


def _print_report(report: IndexReport, n_records: int, store: str) -> None:
    files = ", ".join(f"{len(getattr(report, name)):,} {name}" for name in ("added", "changed", "unchanged", "deleted"))
    lines = [
        f"files: {files}",
        f"parts: {report.parts_encoded:,} encoded, {report.parts_kept:,} kept, {report.parts_deleted:,} deleted",
    ]
    passed_over = {"files without text": report.empty, **report.skipped}
    if said := ", ".join(counted(len(paths), reason) for reason, paths in passed_over.items() if paths):
        lines.append(f"passed over: {said}")
    lines.append(f"{store} holds {counted(n_records, 'records')}")
    for line in lines:
        PipedConsole().print(escape(line), highlight=False, soft_wrap=True)


def _print_size(folder: Path, format_: StoreFormat) -> None:
    """Print the size of a closed store, and the ways to make it smaller."""
    from m3_integrations.store.edge_size import disk_use, smaller_storages, token_vector_bytes

    use = disk_use(folder)
    line = f"it takes {use.size_bytes / 1e6:,.1f} MB on the disk"
    if use.token_bytes:
        kept = token_vector_bytes(format_.multi_vector, format_.token_dim)
        factors = {
            each: use.size_bytes / use.with_token_vectors(token_vector_bytes(each, format_.token_dim) / kept)
            for each in smaller_storages(format_.multi_vector)
        }
        smaller = ", ".join(f"{each} {factor:.1f}" for each, factor in factors.items())
        if smaller:
            line += f", {use.token_bytes / 1e6:,.1f} of it token vectors. Times smaller with --multi-vector: {smaller}"
            line += " (m3 fit says at what cost)"
    PipedConsole().print(escape(line), highlight=False, soft_wrap=True)
