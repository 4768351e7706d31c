"""`m3 train`: a training run with the settings of a TOML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from m3_integrations.cli.shared import errors_in_one_line, escape


@errors_in_one_line(
    after_interrupt="Run the same command again to continue from the last checkpoint, if one was saved."
)
def train(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file; TrainingConfig explains its settings.", show_default=False)
    ] = None,
    *,
    example: Annotated[bool, typer.Option("--example", help="Print a TOML file that runs as it is, and end.")] = False,
) -> None:
    """Train a checkpoint in the paper's three stages, or one of them; a killed run continues when it is run again."""
    if example:
        typer.echo(_example(), nl=False)
        return
    if config is None:
        raise ValueError("name a TOML file; m3 train --example prints one")
    from m3_integrations.training import run_training

    folder = run_training(config)
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes under torchrun only the first one prints
    Console().print(
        f"The trained checkpoint is in {escape(str(folder))}, with a card of what was done; "
        f"the losses are in {escape(str(folder.parent / 'loss.png'))}.",
        soft_wrap=True,
    )


def _example() -> str:
    """Return the settings of a run on data that are part of this package."""
    folder = Path(__file__).parent.parent / "training" / "example"
    return (folder / "train.toml").read_text(encoding="utf-8").replace("EXAMPLE", folder.as_posix())
