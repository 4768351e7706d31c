"""`m3 migrate`: encoding a store's records with another model, comparing both stores, and switching to the new one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from rich.console import Console

from m3_integrations.cli.diff import IS_WORSE, is_worse, print_diff
from m3_integrations.cli.shared import (
    Collection,
    Device,
    PipedConsole,
    counted,
    errors_in_one_line,
    escape,
    folder_of,
    is_new,
    open_model,
    open_model_of,
    open_place,
)

if TYPE_CHECKING:
    from m3_integrations.evaluation import JudgedQueries
    from m3_integrations.store import Store
    from m3_integrations.store.migrating import MigrationReport
    from m3_integrations.store.points import StoreFormat
    from m3_integrations.store.server import ServerStore

_SHOWN: Final = 10
"""The most changed questions that are shown."""


@errors_in_one_line(stderr=True, after_interrupt="Finished work is kept: run the same command again to continue.")
def migrate(
    store: Annotated[str, typer.Argument(help="A folder, or the URL of an m3 serve or a Qdrant server.")],
    *,
    model: Annotated[str, typer.Option(help="The new model: a checkpoint, or m3 serve's URL.")],
    to: Annotated[
        str | None, typer.Option(help="The place of the new store; beside the old one if none. m3 serve needs it.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="With --to: delete records there that STORE does not have.")
    ] = False,
    multi_vector: Annotated[
        str | None,
        typer.Option(
            help="How a new store keeps token vectors: float16, turbo8, turbo4 or none. As STORE if not given."
        ),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="A folder with queries.jsonl and qrels/, to compare both stores on.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which qrels; test if there are several.")] = None,
    old_model: Annotated[
        str | None,
        typer.Option(help="The model of STORE, which asks it the questions; if none, the one in this package."),
    ] = None,
    switch: Annotated[
        bool,
        typer.Option(
            "--switch", help="Give the new store STORE's name (a folder's, or Qdrant's alias), unless it is worse."
        ),
    ] = False,
    collection: Collection = None,
    device: Device = "auto",
) -> None:
    """Encode a store's records with another model into a store beside it. Run it again to copy later changes."""
    from m3_integrations.store.migrating import migrate_store
    from m3_integrations.store.switching import finish_switch, switch_folder

    if split is not None and questions is None:
        raise ValueError(f"--split {split} chooses among the judgements of --questions FOLDER: name that too")
    judged = None if questions is None else _read(questions, split)
    console, store = PipedConsole(), _named(store)
    folder = folder_of(store)
    _check_target(store, to)
    if switch and to is not None:
        raise ValueError("--switch is for the new store beside the old one: leave out --to, or open the new store")
    if folder is not None and finish_switch(folder):
        console.print(
            f"completed the switch of {escape(store)}, which was interrupted", highlight=False, soft_wrap=True
        )
    if is_new(store):
        raise FileNotFoundError(f"no store at {store}: make one with m3 index PATH --store {store}")
    encoder, found = open_model(model, device=device), None
    with open_place(store, collection=collection) as source:
        if (old := source.fingerprint) is None:
            raise ValueError(f"{store} is empty and has no model yet: there is nothing to migrate")
        if old == encoder.fingerprint:
            _refuse_copy(store, model, to)
            console.print(f"{escape(store)} already has vectors of {escape(model)}", highlight=False, soft_wrap=True)
            return
        of_alias = _opened_by_alias(store, source, encoder.fingerprint) if switch and folder is None else None
        where, beside = (to, None) if to is not None else _beside(store, source, encoder.fingerprint, collection)
        settings = _settings(source, multi_vector, where, beside)
        with open_place(where, collection=beside, **settings) as target:
            report = migrate_store(source, target, encoder, delete_absent=to is None or delete, show_progress=True)
            _print_report(report, target.count(), where if beside is None else f"{where} ({beside})", console)
            if judged is not None:
                from m3_integrations.evaluation import diff_searches
                from m3_integrations.search import Searcher

                old_encoder = open_model_of(source, old_model, device=device, option="--old-model")
                old_side = Searcher(old_encoder, source)
                found = diff_searches(old_side, Searcher(encoder, target), judged, explained=_SHOWN)
                print_diff(found, "the old store", "the new one", _SHOWN, console)
            if found is not None and is_worse(found, None):
                what = "the new store is worse" + (", so it is not switched to" if switch else "")
                Console(stderr=True).print(f"[red]{what}[/red]", highlight=False)
                raise typer.Exit(IS_WORSE)
            if of_alias is not None and not report.is_in_step:
                raise RuntimeError(f"{store} kept changing, so its alias stays: stop the writers and run this again")
            if of_alias is not None and beside is not None:
                replaced = of_alias.switch(beside)
                said = f"{of_alias.collection} names {beside} now; {replaced} is kept: what is open goes on with it"
                console.print(escape(said), highlight=False, soft_wrap=True)
    if switch and folder is not None:
        aside = switch_folder(folder, old, encoder.fingerprint)
        said = (
            f"{store} now has vectors of {model}; the old store is {aside}. To go back, name the old model as --model"
        )
        console.print(escape(said), highlight=False, soft_wrap=True)


def _named(store: str) -> str:
    """Return a folder such as "." or "..", which has no name to give to what is beside it, as a whole path."""
    folder = folder_of(store)
    if folder is None or folder.name not in ("", ".."):
        return store
    return os.path.abspath(folder)  # noqa: PTH100 - resolve() would follow a link


def _check_target(store: str, to: str | None) -> None:
    """Raise ValueError if the new place is the old one."""
    old, new = folder_of(store), None if to is None else folder_of(to)
    if old is not None and new is not None and os.path.realpath(old) == os.path.realpath(new):
        raise ValueError(f"--to {to} is STORE itself: name a new place, or leave it out")


def _refuse_copy(store: str, model: str, to: str | None) -> None:
    """Raise ValueError if a copy by the same model was asked for."""
    if to is not None:
        raise ValueError(
            f"{store} already has vectors of {model}, so nothing is to be encoded: copy it with copy_store of "
            "m3_integrations.store"
        )


def _read(questions: Path, split: str | None) -> JudgedQueries:
    """Read the questions before hours of encoding; this also raises an error now if the extra is not installed."""
    from m3_integrations.evaluation import read_queries

    return read_queries(questions, split=split)


def _settings(source: Store, multi_vector: str | None, where: str, collection: str | None) -> dict[str, Any]:
    """Return the settings of the new store: those of the old one, unless one is given or the store is there already.

    An `m3 serve` has its own settings.
    """
    from m3_integrations.store.served import ServedStore

    is_made = is_new(where)
    if folder_of(where) is None:
        with open_place(where, collection=collection) as store:
            if isinstance(store, ServedStore):
                return {"multi_vector": multi_vector}  # `open_place` refuses one that was given
            is_made = not store.modes
    format_: StoreFormat | None = getattr(source, "format", None)  # none of a store in memory behind m3 serve
    if is_made and format_ is not None:
        return {"multi_vector": multi_vector or format_.multi_vector, "token_pooling": format_.token_pooling}
    return {"multi_vector": multi_vector or (None if "multi_vector" in source.kept_modes else "none")}


def _beside(store: str, source: Store, fingerprint: str, collection: str | None) -> tuple[str, str | None]:
    """Return the place, and on a Qdrant server the collection, of the new store beside the old one.

    Raises:
        ValueError: If the store is behind m3 serve, which has no place beside it.
    """
    from m3_integrations.store.served import ServedStore
    from m3_integrations.store.switching import collection_beside, folder_beside

    if (folder := folder_of(store)) is not None:
        return str(folder_beside(folder, fingerprint)), None
    if not isinstance(source, ServedStore):
        return store, collection_beside(collection or "m3", fingerprint)
    raise ValueError(
        f"{store} is behind m3 serve, which has one store: name a place for the new one, --to FOLDER_OR_URL"
    )


def _opened_by_alias(store: str, source: Store, fingerprint: str) -> ServerStore:
    """Return a store on a Qdrant server that an alias opened.

    Raises:
        ValueError: If it is another store: nothing can be given its name.
    """
    from m3_integrations.store.served import ServedStore
    from m3_integrations.store.switching import collection_beside

    if isinstance(source, ServedStore):
        raise ValueError(  # noqa: TRY004 - it is the wrong store, not a wrong type of argument
            f"--switch cannot rename what is behind {store}: end that m3 serve, switch its store where it lies "
            "(m3 migrate STORE --model NEW --switch), and start it again with the new model"
        )
    opened = cast("ServerStore", source)
    if opened.opened_collection == opened.collection:
        raise ValueError(
            f"--switch moves an alias, and {opened.collection} is a collection, or the key may not list aliases. "
            "Qdrant cannot rename a collection: "
            f"migrate without it to {collection_beside(opened.collection, fingerprint)}, and have your programs and "
            "--collection name an alias of that from then on (Qdrant's POST /collections/aliases makes it)"
        )
    return opened


def _print_report(report: MigrationReport, n_records: int, where: str, console: Console) -> None:
    done = f"{report.n_encoded:,} encoded, {report.n_updated:,} with new metadata, {report.n_deleted:,} deleted"
    lines = [f"records: {done}, {report.n_kept:,} were there", f"{where} holds {counted(n_records, 'records')}"]
    if not report.is_in_step:
        lines.append("the source kept changing: run the same command again to copy later changes")
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)
