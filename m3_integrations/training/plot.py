"""Plots of a run's losses and quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    raise ModuleNotFoundError(
        "matplotlib draws the plots: pip install 'PATH_TO_THE_CLONE[training]'", name="matplotlib"
    ) from error


def plot_losses(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the total loss and its parts over the steps into a file; its suffix decides the format.

    Args:
        history: The Trainer's log: one mapping per line, with "step", "loss" and the parts, such as "dense_loss".
        path: The file; an existing one is replaced.
    """
    lines = [entry for entry in history if "loss" in entry]
    names = [name for name in (lines[0] if lines else {}) if name == "loss" or name.endswith("_loss")]
    labels = {name: name.removesuffix("_loss").replace("_", " ") for name in names}
    _plot(lines, labels, path, ylabel="loss", title="Training loss, the total and its parts")


def plot_quality(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw nDCG@10 of every mode over the steps into a file; its suffix decides the format.

    Args:
        history: The Trainer's log: evaluations have "step" and a value for each mode, such as "eval_dense".
        path: The file; an existing one is replaced.
    """
    lines = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    names = [name for name in (lines[0] if lines else {}) if name.startswith("eval_")]
    labels = {name: name.removeprefix("eval_").replace("_", " ") for name in names}
    _plot(lines, labels, path, ylabel="nDCG@10", title="Quality on the validation set")


def _plot(
    lines: Sequence[Mapping[str, float]], labels: Mapping[str, str], path: Path, *, ylabel: str, title: str
) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = [entry["step"] for entry in lines]
    for name, label in labels.items():
        axes.plot(steps, [entry[name] for entry in lines], label=label, marker="." if len(lines) < 20 else "")
    axes.set(xlabel="step", ylabel=ylabel, title=title)
    if labels:
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
