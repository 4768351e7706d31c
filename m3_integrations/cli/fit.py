"""`m3 fit`: the cost of a smaller store on your questions."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3_integrations.cli.shared import (
    Collection,
    Device,
    ModelOfStore,
    PipedConsole,
    errors_in_one_line,
    escape,
    is_new,
    open_place_and_model,
    urls_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from m3_integrations.evaluation.storage import StorageFit


@errors_in_one_line(stderr=True)
def fit(
    store: Annotated[str, typer.Argument(help="A folder, or the URL of an m3 serve or a Qdrant server.",
                                         show_default=False)],
    *,
    questions: Annotated[Path, typer.Option(help="A folder in BEIR's layout; its qrels name records of the store, or "
                         "the files or the entries of JSONL files that m3 index read.")],
    max_loss: Annotated[str, typer.Option(help="The most of nDCG@10 that may be lost: 1% or 0.01.")] = "1%",
    model: ModelOfStore = None,
    split: Annotated[str | None, typer.Option(help="Which qrels; test if there are several.")] = None,
    collection: Collection = None,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Find the smallest store that answers your questions as well, within a loss; nothing is changed."""
    from m3_integrations.evaluation import read_dataset
    from m3_integrations.evaluation.storage import fit_storage

    share = _share(max_loss)
    asked = read_dataset(questions, split=split)
    if is_new(store):
        raise FileNotFoundError(f"no store at {store}")
    with open_place_and_model(store, model, device=device, collection=collection) as (opened, encoder):
        found = fit_storage(opened, encoder, asked)
    for line in (*_table(found), "", verdict(found, share), *_command(found, share, store, collection)):
        PipedConsole().print(escape(line), highlight=False, soft_wrap=True)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError(f"--max-loss must be a share such as 1% or 0.01, got {text!r}")
    return share


def _table(fit: StorageFit) -> Iterator[str]:
    """Yield the lines of a table of at most 80 columns."""
    yield f"{'token vectors':<20}{'bytes a token':>14}{'MB in all':>11}{fit.metric:>9}{'loss':>9}  95 % interval"
    for cost in (fit.kept, *fit.smaller):
        size = "" if cost.size_bytes is None else f"{cost.size_bytes / 1e6:,.1f}"
        line = f"{cost.storage!s:<20}{cost.bytes_per_token:>14,.0f}{size:>11}{cost.values.mean():>9.4f}"
        if cost is not fit.kept:
            loss = fit.compare(cost).difference
            line += f"{100 * loss.mean:>7.2f} %  {100 * loss.low:.2f} to {100 * loss.high:.2f} %"
        yield line


def verdict(fit: StorageFit, max_loss: float) -> str:
    """Return the last sentence: the smallest way to keep token vectors whose loss is shown to be within a share."""
    from m3_integrations.evaluation.storage import LEAST_QUESTIONS

    of, n = f"{100 * max_loss:g} % of {fit.metric}", len(fit.kept.values)
    if n < LEAST_QUESTIONS:
        asked = "1 question is" if n == 1 else f"{n} questions are"
        return (
            f"Keep {fit.kept.storage}: {asked} too few to show what a smaller store loses, ask at least "
            f"{LEAST_QUESTIONS}."
        )
    chosen = fit.smallest(max_loss)
    if chosen is None:
        needed = fit.needed(max_loss)
        return (
            f"Keep {fit.kept.storage}: of no smaller store {n} questions show that it loses at most {of} "
            "(the upper end of the interval)."
            + (f" Even of one that changes nothing it takes {needed} to show that." if needed else "")
        )
    smaller = (
        f"token vectors {_times(fit.kept.bytes_per_token, chosen.bytes_per_token)}"
        if fit.kept.size_bytes is None or chosen.size_bytes is None
        else f"store {_times(fit.kept.size_bytes, chosen.size_bytes)}"
    )
    return (
        f"{chosen.storage} is the smallest that loses at most {of}, shown on {n} questions: a {smaller}, "
        f"for {100 * fit.compare(chosen).difference.mean:.2f} %."
    )


def _times(more: float, less: float) -> str:
    return f"{more / less:.1f} times smaller" if less else "gone"


def _command(fit: StorageFit, max_loss: float, store: str, collection: str | None) -> Iterator[str]:
    chosen = fit.smallest(max_loss)
    if chosen is not None:
        yield "A copy like that, which encodes nothing:"
        urls = urls_of(store)
        where = repr(urls[0] if len(urls) == 1 else urls) + (f", collection={collection!r}" if collection else "")
        program = (
            "from m3_integrations.store import copy_store, open_store; "
            f'copy_store(open_store({where}), open_store("NEW", {chosen.storage.settings}))'
        )
        yield f"python -c {shlex.quote(program)}"
