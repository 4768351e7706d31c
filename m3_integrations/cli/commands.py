"""The commands of `m3`. Every command is one function in one file, with its slow imports inside the function."""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from m3_integrations.cli.demo import demo
from m3_integrations.cli.diff import diff
from m3_integrations.cli.evaluation import evaluate
from m3_integrations.cli.fit import fit
from m3_integrations.cli.index import index
from m3_integrations.cli.load import load
from m3_integrations.cli.migrate import migrate
from m3_integrations.cli.mine import mine
from m3_integrations.cli.questions import questions
from m3_integrations.cli.search import search
from m3_integrations.cli.serve import serve
from m3_integrations.cli.train import train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"m3-integrations {version('m3-integrations')}")
        raise typer.Exit


@app.callback()
def prepare(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version, and end.")
    ] = False,
) -> None:
    """BGE-M3's dense, lexical and multi-vector retrieval for LangChain and LlamaIndex."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed, `m3 ... >&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - it stays for the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not raise an error


@app.command("help")
def show_help(context: typer.Context) -> None:
    """Show this help; m3 COMMAND --help says more."""
    assert context.parent is not None  # noqa: S101 - a command is called by the app
    typer.echo(context.parent.get_help())


app.command()(demo)
app.command()(train)
app.command()(mine)
app.command()(questions)
app.command(name="eval")(evaluate)
app.command()(diff)
app.command()(fit)
app.command()(index)
app.command()(load)
app.command()(migrate)
app.command()(search)
app.command()(serve)
