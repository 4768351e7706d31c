"""What `m3` understands; each command's work is in a module of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    help="BGE-M3's dense, lexical and multi-vector retrieval for LangChain and LlamaIndex.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _main() -> None:
    """Keep the commands' names even while there is one alone."""


@app.command()
def demo(
    questions: Annotated[
        list[str] | None, typer.Argument(help="What to ask about Python; three questions of its own if none.")
    ] = None,
    model: Annotated[str, typer.Option(help="A checkpoint folder, or a repository such as BAAI/bge-m3.")] = "tiny",
    llm: Annotated[
        str | None, typer.Option(help="A chat model as LangChain names it, such as openai:gpt-5-mini.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ... or auto.")] = "auto",
    k: Annotated[int, typer.Option(min=1, help="Passages to find for each question.")] = 4,
) -> None:
    """Index docstrings of Python's library and answer questions from them, through LangChain and through LlamaIndex."""
    console = Console()
    with _errors_in_one_line(console):
        from m3_integrations.cli.demo import run_demo  # noqa: PLC0415 - needs both frameworks

        run_demo(questions or None, model=model, llm=llm, device=device, k=k, console=console)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file; TrainingConfig explains its settings.")],
) -> None:
    """Fine-tune a checkpoint with self-knowledge distillation; a run that was killed goes on where it was."""
    console = Console()
    with _errors_in_one_line(console):
        from m3_integrations.training import run_training  # noqa: PLC0415 - needs accelerate and matplotlib

        folder = run_training(config)
        console.print(
            f"The trained checkpoint is in {escape(str(folder))}, the losses in {folder.parent / 'loss.png'}."
        )


@app.command(name="eval")
def evaluate(  # noqa: PLR0917 - typer passes by name
    data: Annotated[Path, typer.Argument(help="A folder in BEIR's layout, or a folder of such folders.")],
    model: Annotated[list[str] | None, typer.Option(help="A checkpoint; may be repeated. tiny if none.")] = None,
    out: Annotated[Path, typer.Option(help="For the report.")] = Path("m3-eval"),
    work: Annotated[Path | None, typer.Option(help="For the vectors, which later runs reuse; in OUT if none.")] = None,
    modes: Annotated[str, typer.Option(help="Comma-separated: dense,lexical,multi_vector,dense+lexical,all,"
                     "search:all,bm25,bm25:words. All that the checkpoint can do if none.")] = "",
    metrics: Annotated[str, typer.Option(help="Comma-separated, as ir-measures spells them.")] = "",
    weights: Annotated[list[str] | None, typer.Option(help="PRESET or D,L,M for all hybrid modes, or "
                       "MODE=PRESET or MODE=D,L,M for one; may be repeated.")] = None,
    queries_from: Annotated[Path | None, typer.Option(help="Another BEIR folder whose queries are used, or a file of "
                            "MKQA's questions with answers.")] = None,
    split: Annotated[str | None, typer.Option(help="Which qrels; test if there are several.")] = None,
    titles: Annotated[bool, typer.Option(help="Put titles before the texts, as BEIR does.")] = True,
    baseline: Annotated[str, typer.Option(help="The mode that the others are compared with.")] = "dense",
    rerank_depth: Annotated[int, typer.Option(help="How many of the best by dense multi_vector and all rerank.")] = 200,
    pool_size: Annotated[int, typer.Option(help="Candidates of each leg of search:all.")] = 100,
    encode_candidates: Annotated[bool, typer.Option(help="Keep no token vectors of the corpus; encode candidates "
                                 "again.")] = False,
    tune: Annotated[bool, typer.Option(help="Find weights on half of the queries, report on the other half.")] = False,
    max_length: Annotated[int, typer.Option(min=3, help="The most tokens of a text.")] = 8192,
    device: Annotated[str, typer.Option(help="cpu, cuda, ... or auto.")] = "auto",
) -> None:  # fmt: skip
    """Measure what every mode, weighting and checkpoint is worth on your data."""
    console = Console()
    with _errors_in_one_line(console):
        from m3_integrations.cli.evaluation import EvaluationRequest, run_evaluation  # noqa: PLC0415 - needs scipy

        request = EvaluationRequest(
            data=data,
            models=model or ["tiny"],
            out=out,
            work=work,
            modes=modes.split(",") if modes else [],
            metrics=metrics.split(",") if metrics else [],
            weights=weights or [],
            queries_from=queries_from,
            split=split,
            titles=titles,
            baseline=baseline,
            rerank_depth=rerank_depth,
            pool_size=pool_size,
            encode_candidates=encode_candidates,
            tune=tune,
            max_length=max_length,
            device=device,
        )
        run_evaluation(request, console)


_Model = Annotated[str, typer.Option(help="A checkpoint folder, or a repository such as BAAI/bge-m3.")]
_Device = Annotated[str, typer.Option(help="cpu, cuda, ... or auto.")]
_Collection = Annotated[str | None, typer.Option(help="The collection, on a server; its key is in QDRANT_API_KEY.")]


@app.command()
def index(
    paths: Annotated[
        list[Path], typer.Argument(help="Text, Markdown and JSONL files, and folders of them.", show_default=False)
    ],
    *,
    store: Annotated[str, typer.Option(help="A folder, made if it is not there, or the URL of a Qdrant server.")],
    model: _Model = "tiny",
    size: Annotated[int, typer.Option(help="The most tokens of a part.")] = 256,
    overlap: Annotated[int, typer.Option(help="The most tokens that a part repeats of the one before it.")] = 32,
    multi_vector: Annotated[
        str | None, typer.Option(help="How a new store keeps token vectors: float16, turbo8, turbo4 or none.")
    ] = None,
    collection: _Collection = None,
    optimize: Annotated[bool, typer.Option("--optimize", help="At the end do what makes searching fast.")] = False,
    device: _Device = "auto",
) -> None:
    """Bring a store up to date with files: what did not change is not encoded again, what went is deleted."""
    errors = Console(stderr=True)
    with _errors_in_one_line(errors):
        from m3_integrations.cli.index import run_index  # noqa: PLC0415 - loads torch
        from m3_integrations.indexing import Splitting  # noqa: PLC0415

        is_whole = run_index(
            paths, store, model=model, device=device, splitting=Splitting(size, overlap), multi_vector=multi_vector,
            collection=collection, optimize=optimize, console=Console(), errors=errors,
        )  # fmt: skip
    if not is_whole:
        raise typer.Exit(1)


@app.command()
def search(
    store: Annotated[str, typer.Argument(help="A folder, or the URL of a Qdrant server.")],
    question: Annotated[str, typer.Argument(help="What to look for.")],
    *,
    model: _Model = "tiny",
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
    collection: _Collection = None,
    device: _Device = "auto",
) -> None:
    """Ask a store that m3 index, or a retriever, has filled."""
    with _errors_in_one_line(Console(stderr=True)):
        from m3_integrations.cli.search import parse_options, run_search  # noqa: PLC0415 - loads torch

        options = parse_options(k=k, mode=mode, weights=weights, filter_text=filter)
        run_search(
            store, question, options, model=model, device=device, collection=collection, explain=explain,
            as_json=as_json, console=Console(),
        )  # fmt: skip


@contextmanager
def _errors_in_one_line(console: Console) -> Iterator[None]:
    """End with status 1 and one line for what a user can cause; anything else keeps its traceback."""
    try:
        yield
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
