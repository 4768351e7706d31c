"""`m3 demo`: one network, one index and two frameworks, on real text that every machine has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer
from rich.console import Console
from rich.table import Table

from m3_integrations.cli.collection import read_collection
from m3_integrations.cli.shared import (
    Device,
    Model,
    PipedConsole,
    errors_in_one_line,
    escape,
    open_model,
    print_explanation,
)

if TYPE_CHECKING:
    from m3_integrations.encoder import M3Encoder
    from m3_integrations.engine import EncoderStats
    from m3_integrations.langchain import M3Document, M3HybridRetriever
    from m3_integrations.remote import RemoteEncoder

QUESTIONS: Final = (
    "copy a whole directory tree recursively",
    "generate a secure random token that is safe in a URL",
    "run a blocking function in a separate thread from asyncio",
)
"""Three questions that `small` answers. tests/demo checks for how many of 50 questions, and of 50 paraphrases, one of
the first three results answers (856 passages of Python 3.11).
"""


@errors_in_one_line()
def demo(
    questions: Annotated[
        list[str] | None, typer.Argument(help="Questions about Python; three examples if none.")
    ] = None,
    model: Model = None,
    llm: Annotated[
        str | None, typer.Option(help="A chat model as LangChain names it, such as openai:gpt-5-mini.")
    ] = None,
    device: Device = "auto",
    k: Annotated[int, typer.Option(min=1, help="Passages to find for each question.")] = 4,
) -> None:
    """Index docstrings of Python's library and answer questions through LangChain and through LlamaIndex."""
    from m3_integrations.cli.frameworks import answer_with_langchain, answer_with_llama_index, open_chat_model
    from m3_integrations.langchain import M3HybridRetriever
    from m3_integrations.remote import RemoteEncoder
    from m3_integrations.store import open_store

    console = PipedConsole()
    chat_model = open_chat_model(llm)
    start = time.perf_counter()
    encoder = open_model(model, device=device)
    if isinstance(encoder, RemoteEncoder):
        console.print(f"Asking m3 serve at [bold]{escape(str(model))}[/bold].")
    else:
        seconds = time.perf_counter() - start
        console.print(f"Loaded [bold]{escape(encoder.model)}[/bold] on {encoder.device} in {seconds:.1f} s.")
    retriever = M3HybridRetriever(encoder=encoder, store=open_store(), k=k, show_progress=True)
    _index(retriever, encoder, console)
    for question in questions or QUESTIONS:
        before = _stats(encoder)
        console.rule(f"[bold]{escape(question)}")
        documents = retriever.invoke(question)
        console.print(_score_table(cast("Sequence[M3Document]", documents)))
        if documents:
            console.print(f"Why [bold]{escape(str(documents[0].id))}[/bold]:")
            print_explanation(retriever.explain(question, str(documents[0].id)), console)
        console.print("[bold]LangChain[/bold]  ", escape(answer_with_langchain(retriever, chat_model, question)))
        console.print("[bold]LlamaIndex[/bold] ", escape(answer_with_llama_index(retriever, chat_model, question)))
        if before is not None and (after := _stats(encoder)) is not None:
            console.print(_cost(before, after), style="dim")
    console.print(f"\nOne network {'answered' if before is None else 'was loaded'}, and both frameworks used it.")


def _index(retriever: M3HybridRetriever, encoder: M3Encoder | RemoteEncoder, console: Console) -> None:
    from langchain_core.documents import Document

    passages = read_collection()
    start = time.perf_counter()
    retriever.add_documents(
        [Document(id=p.id, page_content=p.text, metadata={"kind": p.kind, "module": p.module}) for p in passages]
    )
    seconds = time.perf_counter() - start
    stats = _stats(encoder)
    cost = "" if stats is None else f"{stats.encoded_tokens:,} tokens, {stats.forward_passes:,} forward passes, "
    console.print(
        f"Indexed {len(passages):,} docstrings of Python's library ({cost}three views each) in {seconds:.1f} s."
    )


def _stats(encoder: M3Encoder | RemoteEncoder) -> EncoderStats | None:
    """Return the network's statistics so far; None for a server, whose network has other users too."""
    from m3_integrations.encoder import M3Encoder

    return encoder.stats if isinstance(encoder, M3Encoder) else None


def _score_table(documents: Sequence[M3Document]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("score", "dense", "lexical", "multi-vector"):
        table.add_column(column, justify="right")
    table.add_column("passage")
    for document in documents:
        scores = document.m3_scores
        values = [document.score, *(scores.get(m) for m in ("dense", "lexical", "multi_vector"))]
        table.add_row(*("" if v is None else f"{v:.3f}" for v in values), escape(str(document.id)))
    return table


def _cost(before: EncoderStats, after: EncoderStats) -> str:
    return (
        "cost of both answers, reranking and explanation included: "
        f"{after.encoded_texts - before.encoded_texts} text encoded (the question) in "
        f"{after.forward_passes - before.forward_passes} forward pass"
    )
