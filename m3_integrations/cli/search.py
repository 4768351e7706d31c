"""`m3 search`: searching a store for a question."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

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
    print_explanation,
)
from m3_integrations.vectors import ModeWeights

if TYPE_CHECKING:
    from m3_integrations.search import Explanation, Hit, Searcher, SearchMode, SearchOptions

_SHOWN_LENGTH: Final = 300
"""The most characters of a text that are shown; `--json` prints all."""

_BEFORE_MATCH: Final = 40
"""The most characters that are shown before the first token that matched."""

_FILTER_EXAMPLE: Final = """{"year": {"$gte": 2024}}"""


@errors_in_one_line(stderr=True)
def search(
    store: Annotated[
        str, typer.Argument(help="A folder, or the URL of an m3 serve or a Qdrant server; a,b for nodes of a cluster.")
    ],
    words: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What to look for, quoted or not.")],
    *,
    model: ModelOfStore = None,
    k: Annotated[int, typer.Option(min=1, help="How many results at most.")] = 4,
    mode: Annotated[str, typer.Option(help="dense, lexical, dense+lexical, multi_vector or all.")] = "all",
    weights: Annotated[
        str | None, typer.Option(help="How the modes count: three numbers such as 1,0.3,1, or a preset such as miracl.")
    ] = None,
    filter: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help='JSON on metadata, such as \'{"year": {"$gte": 2024}}\'.')
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="The file that m3 eval --calibrate wrote."),
    ] = None,
    min_probability: Annotated[
        float | None, typer.Option(help="Return nothing if the best result answers with a lower probability, 0 to 1.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show which tokens matched.")] = False,
    why_not: Annotated[
        str | None, typer.Option(metavar="ID", help="Show why the search does not find this record, instead of hits.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    collection: Collection = None,
    device: Device = "auto",
) -> None:
    """Ask a store that m3 index, or a retriever, has filled."""
    from m3_integrations.search import Searcher, SearchOptions

    question = " ".join(words)
    known = cast("SearchMode", mode)  # SearchOptions refuses other strings
    options = SearchOptions(
        k=k, mode=known, weights=_weights(weights), filter=_filter(filter), calibration=calibration,
        min_probability=min_probability,
    )  # fmt: skip
    if is_new(store):
        raise FileNotFoundError(f"no store at {store}: make one with m3 index PATH --store {store}")
    with open_place_and_model(store, model, device=device, collection=collection) as (opened, encoder):
        searcher = Searcher(encoder, opened, options)
        if why_not is not None:
            _print_missing(searcher, question, why_not, as_json=as_json)
            return
        hits = searcher.search(question)
        reasons = [searcher.explain(question, hit.id) for hit in hits] if explain or not as_json else []
    if as_json:
        _print_json(_document(question, options, hits, reasons))
    elif not hits:
        PipedConsole().print("Nothing here answers that." if min_probability else "nothing found")
    else:
        _print_hits(hits, reasons, is_explained=explain)


def _print_json(document: dict[str, Any]) -> None:
    # If the output has another encoding than UTF-8, as on Windows, other characters are escaped.
    is_utf8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    print(json.dumps(document, ensure_ascii=not is_utf8, indent=2, default=str))  # noqa: T201 - dates are strings


def _print_missing(searcher: Searcher, question: str, id_: str, *, as_json: bool) -> None:
    """Print why a record is not found. Its id may be as results show it: relative to the current folder."""
    whole = f"{Path.cwd()}/{id_}"
    there = {record.id for record in searcher.store.get([id_, whole])}
    found = searcher.explain_missing(question, whole if id_ not in there and whole in there else id_)
    if not found.is_stored:
        raise ValueError(str(found))
    if as_json:
        said = {name: value for name, value in asdict(found).items() if name not in {"query", "options"}}
        _print_json({"question": question, "is_found": found.is_found} | said)
    else:
        PipedConsole().print(escape(str(found)), highlight=False, soft_wrap=True)


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--filter must be JSON such as {_FILTER_EXAMPLE}, got {text[:200]!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--filter must be a JSON object such as {_FILTER_EXAMPLE}, got {text!r}")  # noqa: TRY004
    try:
        parse_filter(found)
    except TypeError as error:  # raised for a filter inside a filter
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


def _print_hits(hits: Sequence[Hit], reasons: Sequence[Explanation], *, is_explained: bool) -> None:
    console = PipedConsole()
    for rank, (hit, reason) in enumerate(zip(hits, reasons, strict=True), 1):
        id_ = hit.id.removeprefix(f"{Path.cwd()}/")
        trail = "".join(f" > {heading}" for heading in _headings(hit.metadata))
        scores = "  ".join(f"{mode.replace('_', '-')} {score:.3f}" for mode, score in hit.scores.items())
        console.print(f"[bold]{rank}.  {hit.score:.3f}  {escape(id_ + trail)}[/bold]", highlight=False, soft_wrap=True)
        console.print(f"  {scores}", style="dim", highlight=False)
        weights = {match.token.strip("▁"): match.score for match in reason.lexical}
        console.print(f"  {escape(excerpt(hit.text, weights))}", highlight=False, soft_wrap=True)
        if is_explained:
            print_explanation(reason, console)


def _headings(metadata: Mapping[str, Any]) -> list[str]:
    """Return the headings that `m3 index` has found; none if a user's own metadata have something else there."""
    found = metadata.get("headings")
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else []


def excerpt(text: str, weights: Mapping[str, float]) -> str:
    """Return the part of a text to show: the one whose tokens have the most weight together.

    Args:
        text: The text; its white space becomes single spaces.
        weights: The weight of each token; of parts with equal weight the first is taken.
    """
    flat = " ".join(text.split())
    if len(flat) <= _SHOWN_LENGTH:
        return flat
    reach = _SHOWN_LENGTH - _BEFORE_MATCH
    by_start = sorted(
        (match.start(), match.end(), token)
        for token in weights
        if 0 < len(token) <= reach
        for match in re.finditer(re.escape(token), flat, re.IGNORECASE)
    )
    by_end = sorted(by_start, key=lambda each: each[1])
    shown, n_entered, n_left = Counter[str](), 0, 0  # how often each token is in the part that begins at a match
    best, start = 0.0, 0
    for first, *_ in by_start:
        while n_entered < len(by_end) and by_end[n_entered][1] <= first + reach:
            shown[by_end[n_entered][2]] += 1
            n_entered += 1
        while by_start[n_left][0] < first:
            shown[by_start[n_left][2]] -= 1
            n_left += 1
        if (sum_ := sum(weights[token] for token, n in shown.items() if n)) > best:
            best, start = sum_, first
    start = max(0, min(start - _BEFORE_MATCH, len(flat) - _SHOWN_LENGTH))
    if start:
        start = flat.find(" ", start, start + _BEFORE_MATCH) + 1 or start
    end = start + _SHOWN_LENGTH
    return f"{'… ' if start else ''}{flat[start:end].strip()}{' …' if end < len(flat) else ''}"
