"""The loss of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    raise ModuleNotFoundError(
        "matplotlib draws the loss plot: pip install 'PATH_TO_THE_CLONE[training]'", name="matplotlib"
    ) from error


def plot_losses(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the total loss and that of every mode over the steps into a file; its suffix decides the format.

    Args:
        history: The Trainer's log: one mapping per line, with "step" and the losses.
        path: Where to write; a file there is replaced.
    """
    lines = [entry for entry in history if "dense_loss" in entry]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = [entry["step"] for entry in lines]
    for name in ("loss", "dense_loss", "lexical_loss", "multi_vector_loss", "ensemble_loss"):
        axes.plot(steps, [entry[name] for entry in lines], label=name.removesuffix("_loss").replace("_", " "))
    axes.set(xlabel="step", ylabel="loss", title="Training loss, the total and each mode's InfoNCE")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
