"""`m3 mine`: hard negatives for a training file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from m3_integrations.cli.shared import (
    Collection,
    Device,
    ModelOfStore,
    PipedConsole,
    errors_in_one_line,
    escape,
    is_new,
    open_model,
    open_place_and_model,
)

if TYPE_CHECKING:
    from m3_integrations.encoder import M3Encoder
    from m3_integrations.remote import RemoteEncoder
    from m3_integrations.search import SearchMode
    from m3_integrations.store import Store
    from m3_integrations.training.mining import MiningReport


@errors_in_one_line(stderr=True, after_interrupt="Mined negatives are kept: run the same command again to continue.")
def mine(
    data: Annotated[Path, typer.Argument(help="Examples in FlagEmbedding's JSONL: query, pos and maybe prompt a line.",
                    show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="The file for the examples with their negatives.")],
    corpus: Annotated[Path | None, typer.Option(help="The passages: JSONL with text and maybe title, as BEIR's "
                      "corpus.jsonl. The file's own texts if neither this nor --store is named.")] = None,
    store: Annotated[str | None, typer.Option(help="Instead of a corpus: a store that holds the passages, by the same "
                     "model; a folder or a URL.")] = None,
    model: ModelOfStore = None,
    modes: Annotated[str, typer.Option(help="Rankings to draw from, with commas: dense, lexical, multi_vector, "
                     "dense+lexical, all. Each mode alone if none.")] = "",
    n: Annotated[int, typer.Option("-n", help="Negatives of a query.")] = 7,
    ranks: Annotated[str, typer.Option(help="FIRST-LAST: the ranks to draw from, positives not counted.")] = "10-100",
    margin: Annotated[float | None, typer.Option(help="A negative scores at least this share less than every positive; "
                      "0.05 against passages that answer too.")] = None,
    duplicates: Annotated[float, typer.Option(help="Jaccard index of runs of 5 characters from which a passage repeats "
                          "another.")] = 0.8,
    cross_encoder: Annotated[str | None, typer.Option(help="A reranker, such as BAAI/bge-reranker-v2-m3, that writes "
                             "pos_scores and neg_scores.")] = None,
    query_instruction: Annotated[str, typer.Option(help="Put before queries whose example has no prompt.")] = "",
    titles: Annotated[bool, typer.Option(help="Put titles before the corpus's texts, as BEIR does.")] = True,
    work: Annotated[Path | None, typer.Option(help="For the vectors of the corpus, which later runs reuse; OUT.vectors "
                    "if none.")] = None,
    seed: Annotated[int, typer.Option(help="For the choice among the ranks.")] = 0,
    collection: Collection = None,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Find hard negatives for training examples in all three modes; a killed run continues when it is run again."""
    from m3_integrations.training.mining import CrossEncoder, MiningOptions, mine_negatives

    if corpus is not None and store is not None:
        raise ValueError("--corpus and --store both name the passages: leave one out")
    if store is None and collection is not None:
        raise ValueError("--collection is for a store on a server: name it with --store URL")
    if store is not None and work is not None:
        raise ValueError("--work is for the vectors of a corpus, and --store has its own: leave --work out")
    if out.exists():  # checked before minutes of loading a model and encoding a corpus
        raise FileExistsError(f"{out} exists already: choose another file")
    if store is not None and is_new(store):  # a mistyped path must not make a store
        raise FileNotFoundError(f"no store at {store}: make one with m3 index PATH --store {store}")
    first, last = _parse_ranks(ranks)
    options = MiningOptions(
        modes=cast("tuple[SearchMode, ...]", tuple(name.strip() for name in modes.split(",") if name.strip())),
        n=n, first_rank=first, last_rank=last, margin=margin, duplicates=duplicates,
        query_instruction=query_instruction, seed=seed,
    )  # fmt: skip
    for path in (data, corpus):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"no file {path}")
    teacher = None if cross_encoder is None else CrossEncoder(cross_encoder, device=device)
    work = work or out.with_name(f"{out.name}.vectors")
    with (
        open_place_and_model(store, model, device=device, collection=collection)
        if store is not None
        else _indexed(open_model(model, device=device), data, corpus, work, titles=titles)
    ) as (opened, encoder):
        report = mine_negatives(
            encoder, opened, data, out, options,
            teacher=teacher, teacher_name=cross_encoder or "", show_progress=True,
        )  # fmt: skip
    _print_report(report, out, n)


def _parse_ranks(ranks: str) -> tuple[int, int]:
    first, _, last = ranks.partition("-")
    try:
        return int(first), int(last)
    except ValueError as error:
        raise ValueError(f"--ranks must be two numbers such as 10-100, got {ranks!r}") from error


@contextmanager
def _indexed(
    encoder: M3Encoder | RemoteEncoder, data: Path, corpus: Path | None, work: Path, *, titles: bool
) -> Iterator[tuple[Store, M3Encoder | RemoteEncoder]]:
    """Open the store of these passages by this model, and add the passages that it lacks after a killed run.

    The model is yielded too, as by `open_place_and_model`. Changed passages are another corpus, with another folder.
    """
    from m3_integrations.store import open_store
    from m3_integrations.training.data import read_examples
    from m3_integrations.training.mining import index_passages, read_passages

    def passages() -> Iterator[str]:
        if corpus is not None:
            yield from read_passages(corpus, titles=titles)
            return
        for example in read_examples([data]):
            yield from (*example.positives, *example.negatives)

    digest = hashlib.blake2b(encoder.fingerprint.encode(), digest_size=8)
    for text in passages():
        digest.update(json.dumps(text).encode())
    with open_store(work / digest.hexdigest()) as opened:
        index_passages(encoder, opened, passages(), show_progress=True)
        yield opened, encoder


def _print_report(report: MiningReport, out: Path, n: int) -> None:
    lines: Sequence[str] = (
        f"{report.negatives:,} negatives for {report.examples:,} queries are in {out}"
        + (f" ({report.resumed:,} queries were mined before)" if report.resumed else ""),
        *([f"{report.short:,} queries got fewer than {n}, {report.without:,} none: widen --ranks, or lower --margin"]
          if report.short else []),
    )  # fmt: skip
    for line in lines:
        PipedConsole().print(escape(line), highlight=False, soft_wrap=True)
