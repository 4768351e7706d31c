"""`m3 search`: a question to a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from rich.console import Console
from rich.markup import escape

from m3_integrations.cli.shared import (
    Collection,
    Device,
    Model,
    errors_in_one_line,
    is_new,
    open_place,
    print_explanation,
)
from m3_integrations.vectors import ModeWeights

if TYPE_CHECKING:
    from m3_integrations.search import Explanation, Hit, SearchMode, SearchOptions

_SHOWN_LENGTH: Final = 300
"""Characters of a text that are shown; `--json` gives all."""

_FILTER_EXAMPLE: Final = """{"year": {"$gte": 2024}}"""


@errors_in_one_line(stderr=True)
def search(
    store: Annotated[str, typer.Argument(help="A folder, or the URL of a Qdrant server.")],
    question: Annotated[str, typer.Argument(help="What to look for.")],
    *,
    model: Model = "tiny",
    k: Annotated[int, typer.Option(min=1, help="How many results at most.")] = 4,
    mode: Annotated[str, typer.Option(help="dense, lexical, dense+lexical, multi_vector or all.")] = "all",
    weights: Annotated[
        str | None, typer.Option(help="How the modes count: three numbers such as 1,0.3,1, or a preset such as miracl.")
    ] = None,
    filter: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help='JSON on metadata, such as \'{"year": {"$gte": 2024}}\'.')
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say which tokens matched.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    collection: Collection = None,
    device: Device = "auto",
) -> None:
    """Ask a store that m3 index, or a retriever, has filled."""
    from m3_integrations.encoder import M3Encoder
    from m3_integrations.search import Searcher, SearchOptions

    known = cast("SearchMode", mode)  # SearchOptions refuses other strings
    options = SearchOptions(k=k, mode=known, weights=_weights(weights), filter=_filter(filter))
    if not question.strip():
        raise ValueError("the question is blank: say what to look for")
    if is_new(store):
        raise FileNotFoundError(f"no store at {store}: make one with m3 index PATH --store {store}")
    encoder = M3Encoder(model, device=device)
    with Searcher(encoder, open_place(store, collection=collection), options) as searcher:
        hits = searcher.search(question)
        reasons = [searcher.explain(question, hit.id) for hit in hits] if explain else []
    if as_json:
        print(json.dumps(_document(question, options, hits, reasons), ensure_ascii=False, indent=2))  # noqa: T201
    elif not hits:
        Console().print("nothing found")
    else:
        _print_hits(hits, reasons)


def _weights(text: str | None) -> ModeWeights | str | None:
    if text is None or "," not in text:
        return text
    try:
        dense, lexical, multi_vector = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--weights must be three numbers (dense, lexical, multi-vector) such as 1,0.3,1, or a preset, got {text!r}"
        ) from error
    return ModeWeights(dense, lexical, multi_vector)


def _filter(text: str | None) -> dict[str, Any] | None:
    from m3_integrations.store import parse_filter

    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--filter must be JSON such as {_FILTER_EXAMPLE}, got {text!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--filter must be a JSON object such as {_FILTER_EXAMPLE}, got {text!r}")  # noqa: TRY004
    try:
        parse_filter(found)
    except TypeError as error:  # where a filter stands in a filter
        raise ValueError(f"--filter: {error}") from error
    return found


def _document(
    question: str, options: SearchOptions, hits: Sequence[Hit], reasons: Sequence[Explanation]
) -> dict[str, Any]:
    found = [asdict(hit) for hit in hits]
    for entry, reason in zip(found, reasons, strict=False):
        lexical = [asdict(match) | {"score": match.score} for match in reason.lexical]
        entry["explanation"] = asdict(reason) | {"lexical": lexical}
    return {"question": question, "mode": options.mode, "k": options.k, "hits": found}


def _print_hits(hits: Sequence[Hit], reasons: Sequence[Explanation]) -> None:
    console = Console()
    for rank, hit in enumerate(hits, 1):
        id_ = hit.id.removeprefix(f"{Path.cwd()}/")
        trail = "".join(f" > {heading}" for heading in hit.metadata.get("headings", []))
        scores = "  ".join(f"{mode.replace('_', '-')} {score:.3f}" for mode, score in hit.scores.items())
        console.print(f"[bold]{rank}.  {hit.score:.3f}  {escape(id_ + trail)}[/bold]", highlight=False, soft_wrap=True)
        console.print(f"  {scores}", style="dim", highlight=False)
        console.print(f"  {escape(_shortened(hit.text))}", highlight=False, soft_wrap=True)
        if reasons:
            print_explanation(reasons[rank - 1], console)


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN_LENGTH else f"{flat[:_SHOWN_LENGTH].rstrip()} …"
