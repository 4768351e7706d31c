"""`m3 train`: a run of training, from a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from m3_integrations.cli.shared import errors_in_one_line


@errors_in_one_line(after_interrupt="The same line goes on from the last checkpoint, if one was saved.")
def train(config: Annotated[Path, typer.Argument(help="A TOML file; TrainingConfig explains its settings.")]) -> None:
    """Fine-tune a checkpoint with self-knowledge distillation; a run that was killed goes on where it was."""
    from m3_integrations.training import run_training

    folder = run_training(config)
    Console().print(f"The trained checkpoint is in {escape(str(folder))}, the losses in {folder.parent / 'loss.png'}.")
