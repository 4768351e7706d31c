"""`m3 search`: a question to a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, cast

from rich.console import Console
from rich.markup import escape

from m3_integrations.cli.explanation import print_explanation
from m3_integrations.cli.place import is_new, open_place
from m3_integrations.encoder import M3Encoder
from m3_integrations.search import Explanation, Hit, Searcher, SearchMode, SearchOptions
from m3_integrations.store import parse_filter
from m3_integrations.vectors import ModeWeights

_SHOWN_LENGTH: Final = 300
"""Characters of a text that are shown; `--json` gives all."""

_FILTER_EXAMPLE: Final = """{"year": {"$gte": 2024}}"""


def run_search(
    where: str,
    question: str,
    options: SearchOptions,
    *,
    model: str,
    device: str,
    collection: str | None,
    explain: bool,
    as_json: bool,
    console: Console,
) -> None:
    """Ask a store, and print what it finds.

    Args:
        where: The store: a folder or a URL.
        question: What to look for.
        options: How.
        model: The one that the store was filled with.
        device: As `M3Encoder` takes it.
        collection: The collection on a server.
        explain: Whether to say why each one matched.
        as_json: Whether to print one JSON document and nothing else.
        console: Where to print.

    Raises:
        FileNotFoundError: If there is no such store or model.
        ValueError: If the question is blank, or the store was filled with another model or has not the modes.
    """
    if not question.strip():
        raise ValueError("the question is blank: say what to look for")
    if is_new(where):
        raise FileNotFoundError(f"no store at {where}: make one with m3 index PATH --store {where}")
    encoder = M3Encoder(model, device=device)
    with Searcher(encoder, open_place(where, collection=collection), options) as searcher:
        hits = searcher.search(question)
        reasons = [searcher.explain(question, hit.id) for hit in hits] if explain else []
    if as_json:
        print(json.dumps(_document(question, options, hits, reasons), ensure_ascii=False, indent=2))  # noqa: T201
    elif not hits:
        console.print("nothing found")
    else:
        _print_hits(hits, reasons, console)


def parse_options(*, k: int, mode: str, weights: str | None, filter_text: str | None) -> SearchOptions:
    """Read what a command line asks for.

    Args:
        k: How many results at most.
        mode: A mode of search.
        weights: Three numbers with commas between, or the name of a preset.
        filter_text: A JSON object.

    Raises:
        ValueError: If one is not as it must be.
    """
    known = cast(SearchMode, mode)  # SearchOptions refuses what is none
    return SearchOptions(k=k, mode=known, weights=_weights(weights), filter=_filter(filter_text))


def _filter(text: str | None) -> dict[str, Any] | None:
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


def _document(
    question: str, options: SearchOptions, hits: Sequence[Hit], reasons: Sequence[Explanation]
) -> dict[str, Any]:
    found = [asdict(hit) for hit in hits]
    for entry, reason in zip(found, reasons, strict=False):
        lexical = [asdict(match) | {"score": match.score} for match in reason.lexical]
        entry["explanation"] = asdict(reason) | {"lexical": lexical}
    return {"question": question, "mode": options.mode, "k": options.k, "hits": found}


def _print_hits(hits: Sequence[Hit], reasons: Sequence[Explanation], console: Console) -> None:
    for rank, hit in enumerate(hits, 1):
        trail = "".join(f" > {heading}" for heading in hit.metadata.get("headings", []))
        scores = "  ".join(f"{mode.replace('_', '-')} {score:.3f}" for mode, score in hit.scores.items())
        console.print(
            f"[bold]{rank}.  {hit.score:.3f}  {escape(_near(hit.id) + trail)}[/bold]", highlight=False, soft_wrap=True
        )
        console.print(f"  {scores}", style="dim", highlight=False)
        console.print(f"  {escape(_shortened(hit.text))}", highlight=False, soft_wrap=True)
        if reasons:
            print_explanation(reasons[rank - 1], console)


def _near(id_: str) -> str:
    """Give an id without the folder that the command runs in."""
    return id_.removeprefix(f"{Path.cwd()}/")


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN_LENGTH else f"{flat[:_SHOWN_LENGTH].rstrip()} …"
