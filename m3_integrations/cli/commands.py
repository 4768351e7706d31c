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
    """Index Python's own documentation and answer questions about it, through LangChain and through LlamaIndex."""
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


@contextmanager
def _errors_in_one_line(console: Console) -> Iterator[None]:
    """End with status 1 and one line for what a user can cause; anything else keeps its traceback."""
    try:
        yield
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
