"""`m3 diff`: the questions that win or lose between two ways to search, and why; its exit status is for CI."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from rich.console import Console

from m3_integrations.cli.shared import (
    Device,
    PipedConsole,
    errors_in_one_line,
    escape,
    folder_of,
    is_new,
    open_model,
    open_place,
)

if TYPE_CHECKING:
    from m3_integrations.encoder import M3Encoder
    from m3_integrations.evaluation import ChangedQuestion, Corpus, SearchDiff
    from m3_integrations.remote import RemoteEncoder
    from m3_integrations.search import Searcher, SearchOptions
    from m3_integrations.store import Store

IS_WORSE: Final = 3
"""The exit status if B is worse than A; 1 is an error and 2 a wrong command line."""

_SETTINGS: Final = ("weights", "mode", "dtype", "multi_vector", "token_pooling", "store")
_NEEDS_CORPUS: Final = ("multi_vector", "token_pooling")

_SYNTAX: Final = (
    "a way to search is a model with settings after it, such as small, small,weights=1/0.3/1, small,mode=dense, "
    "small,dtype=bfloat16, small,multi_vector=turbo4, small,token_pooling=2 or BAAI/bge-m3,store=./idx"
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to search, from the command line.

    Attributes:
        text: The text as it was typed.
        model: A checkpoint, or the URL of m3 serve.
        settings: The settings after the model, by their names.
    """

    text: str
    model: str
    settings: Mapping[str, str]


def read_way(text: str) -> Way:
    """Parse a way to search.

    Raises:
        ValueError: If it has no model, an unknown setting, or settings that contradict each other.
    """
    model, *parts = text.split(",")
    pairs = [part.partition("=") for part in parts]
    settings = {name.strip(): value.strip() for name, _, value in pairs}
    wrong = [name for name in settings if name not in _SETTINGS or not settings[name]]
    if not model.strip() or wrong or len(settings) < len(pairs):
        raise ValueError(f"{_SYNTAX}; got {text!r}")
    if "store" in settings and (extra := [name for name in _NEEDS_CORPUS if name in settings]):
        raise ValueError(f"an existing store has its own {extra[0]}: leave it out of {text!r}")
    if not settings.get("token_pooling", "1").isdecimal():
        raise ValueError(f"token_pooling must be a whole number, got {settings['token_pooling']!r}")
    return Way(text, model.strip(), settings)


@errors_in_one_line(stderr=True)
def diff(
    a: Annotated[str, typer.Argument(help="How one searches today: MODEL[,SETTING=VALUE...].", show_default=False)],
    b: Annotated[str, typer.Argument(help="The other way to search, written alike.", show_default=False)],
    questions: Annotated[
        Path,
        typer.Argument(help="A folder in BEIR's layout; without corpus.jsonl if both have a store."),
    ],
    *,
    metric: Annotated[str, typer.Option(help="As ir-measures spells it.")] = "nDCG@10",
    show: Annotated[int, typer.Option(min=0, help="How many changed questions to show and explain.")] = 20,
    max_loss: Annotated[
        float | None,
        typer.Option(min=0, help="Exit with 3 if B's mean is lower by more; without it, if B is shown to be worse."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which qrels; test if there are several.")] = None,
    titles: Annotated[bool, typer.Option(help="Put titles before the texts, as BEIR does.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    device: Device = "auto",
) -> None:
    """Tell which questions win or lose from A to B, and which token decided; exit with 3 if B is worse.

    A and B are a model, with settings after it: weights=miracl or 1/0.3/1, mode=, dtype=, multi_vector=float16, turbo8,
    turbo4 or none, token_pooling=, store=FOLDER_OR_URL. Without a store the corpus of QUESTIONS is encoded.
    """
    from m3_integrations.evaluation import diff_searches, read_dataset, read_queries
    from m3_integrations.evaluation.metrics import check_judgements, check_metrics

    check_metrics([metric])  # before a corpus is encoded
    ways = [read_way(a), read_way(b)]
    judged, corpus = read_queries(questions, split=split), None
    check_judgements([metric], judged.qrels)
    if not all("store" in way.settings for way in ways):
        corpus = read_dataset(questions, split=split, titles=titles).corpus
    with ExitStack() as stack:
        sides = _open_all(ways, corpus, device, stack)
        found = diff_searches(sides[0], sides[1], judged, metric=metric, explained=show)
    worse = is_worse(found, max_loss)
    if as_json:
        print(json.dumps(_document(found, ways, worse=worse), ensure_ascii=True, indent=1))  # noqa: T201
    else:
        print_diff(found, a, b, show, PipedConsole())
    if worse:
        Console(stderr=True).print(f"[red]{escape(b)} is worse[/red]", highlight=False, soft_wrap=True)
        raise typer.Exit(IS_WORSE)


def _open_all(ways: list[Way], corpus: Corpus | None, device: str, stack: ExitStack) -> list[Searcher]:
    """Return the searchers of two ways; a model, a store or an encoded corpus that both use is opened once.

    A corpus is encoded when both ways are open and fit together, so that a mistake in one costs no encoding.
    """
    from m3_integrations.search import Searcher

    asked = [_options(way) for way in ways]
    if absent := [way.settings["store"] for way in ways if "store" in way.settings and is_new(way.settings["store"])]:
        raise FileNotFoundError(f"no store at {absent[0]}: make one with m3 index PATH --store {absent[0]}")
    encoders: dict[tuple[str, ...], M3Encoder | RemoteEncoder] = {}
    stores: dict[tuple[str, ...], Store] = {}
    unfilled: list[tuple[Way, Searcher]] = []
    searchers = []
    for way, options in zip(ways, asked, strict=True):
        of_model = way.model, way.settings.get("dtype", "")
        if of_model not in encoders:
            encoders[of_model] = open_model(way.model, device=device, dtype=of_model[1] or None)
            stack.callback(encoders[of_model].close)
        encoder, place = encoders[of_model], way.settings.get("store")
        of_store = (_key(place),) if place else (*of_model, *(way.settings.get(name, "") for name in _NEEDS_CORPUS))
        is_there = of_store in stores
        if not is_there:
            stores[of_store] = stack.enter_context(open_place(place, collection=None)) if place else _make(way, stack)
        searchers.append(Searcher(encoder, stores[of_store], options))
        searchers[-1].search("")  # refuses another model's store, and a mode that the store does not keep
        if not is_there and not place:
            unfilled.append((way, searchers[-1]))
    for way, searcher in unfilled:
        assert corpus is not None  # noqa: S101 - it is read unless every way has a store
        Console(stderr=True).print(f"encoding the corpus for {escape(way.text)}", highlight=False, soft_wrap=True)
        searcher.add(list(corpus.texts()), ids=corpus.ids, show_progress=True)
    return searchers


def _key(place: str) -> str:
    """Return one name for a store's folder, whichever way it is written; a URL as it is."""
    folder = folder_of(place)
    return place if folder is None else os.path.realpath(folder)


def _options(way: Way) -> SearchOptions:
    from m3_integrations.search import SearchOptions

    weights: Any = way.settings.get("weights")
    if weights and "/" in weights:
        try:
            dense, lexical, multi_vector = map(float, weights.split("/"))
        except ValueError as error:
            raise ValueError(f"weights must be three numbers, dense/lexical/multi-vector, got {weights!r}") from error
        weights = dense, lexical, multi_vector
    return SearchOptions(
        mode=cast("Any", way.settings.get("mode")),  # SearchOptions refuses other strings
        weights=weights,
    )


def _make(way: Way, stack: ExitStack) -> Store:
    """Return an empty store in memory, or in a temporary folder if the way has settings of storage."""
    from m3_integrations.store import open_store

    settings: dict[str, Any] = {name: way.settings[name] for name in _NEEDS_CORPUS if name in way.settings}
    if "token_pooling" in settings:
        settings["token_pooling"] = int(settings["token_pooling"])
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="m3-diff-")) if settings else None
    return stack.enter_context(open_store(folder, **settings))


def is_worse(found: SearchDiff, max_loss: float | None) -> bool:
    """Return whether the second way's mean is lower by more than max_loss, or if None, whether it is shown worse."""
    comparison = found.compare()
    loss = -comparison.difference.mean
    return loss > max_loss if max_loss is not None else loss > 0 and comparison.p_value < 0.05


def _document(found: SearchDiff, ways: list[Way], *, worse: bool) -> dict[str, Any]:
    return {
        "a": ways[0].text,
        "b": ways[1].text,
        "metric": found.metric,
        "questions": len(found.questions),
        "mean_a": float(found.old.mean()),
        "mean_b": float(found.new.mean()),
        "b_less_a": asdict(found.compare()),
        "is_worse": worse,
        "changed": [asdict(each) for each in found.changed],
    }


def print_diff(found: SearchDiff, a: str, b: str, show: int, console: Console) -> None:
    """Print the questions that changed most, and the result over all of them.

    Args:
        found: The comparison.
        a: The name of the first way.
        b: The name of the second way.
        show: The most questions to print.
        console: The console to print to.
    """
    for each in found.changed[:show]:
        for line in _lines(each):
            console.print(escape(line), highlight=False, soft_wrap=True)
    if (left := len(found.changed) - show) > 0:
        console.print(f"... and {left:,} more", highlight=False)
    difference, p_value = found.compare().difference, found.compare().p_value
    n_same = len(found.questions) - len(found.changed)
    console.print(
        f"{found.metric} {found.old.mean():.3f} with {escape(a)}, {found.new.mean():.3f} with "
        f"{escape(b)}: {difference.mean:+.3f} {escape(f'[{difference.low:+.3f}, {difference.high:+.3f}]')}, "
        f"p = {p_value:.4f}; {len(found.won):,} questions won, {len(found.lost):,} lost, {n_same:,} are as before",
        highlight=False,
        soft_wrap=True,
    )


def _lines(each: ChangedQuestion) -> list[str]:
    places = " → ".join("not found" if rank is None else f"place {rank}" for rank in (each.old_rank, each.new_rank))
    kind = "won " if each.new > each.old else "lost"
    lines = [f"{kind} {each.new - each.old:+.3f}  {each.id}: {each.text}"]
    lines += [] if each.document is None else [f"      {each.document}: {places}"]
    if (why := each.decision) is not None:
        modes = ", ".join(f"{mode.replace('_', '-')} {amount:+.3f}" for mode, amount in why.by_mode.items())
        token = f"{why.token.strip('▁') or why.token!r} {why.amount:+.3f}" if why.token else "no token, by dense alone"
        lines.append(f"      margin to {why.rival}: decided by {token} (by mode {modes})")
    return lines
