"""What `m3` understands. Every command is one function in one file, and imports what it needs when it runs."""

from __future__ import annotations

import typer

from m3_integrations.cli.demo import demo
from m3_integrations.cli.evaluation import evaluate
from m3_integrations.cli.index import index
from m3_integrations.cli.search import search
from m3_integrations.cli.train import train

app = typer.Typer(
    help="BGE-M3's dense, lexical and multi-vector retrieval for LangChain and LlamaIndex.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(demo)
app.command()(train)
app.command(name="eval")(evaluate)
app.command()(index)
app.command()(search)
