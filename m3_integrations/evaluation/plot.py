"""Results as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    raise ModuleNotFoundError(
        "matplotlib draws the plot: pip install 'PATH_TO_THE_CLONE[evaluation]'", name="matplotlib"
    ) from error

if TYPE_CHECKING:
    from m3_integrations.evaluation.evaluate import EvaluationResult


def plot_estimates(results: Sequence[EvaluationResult], metric: str, names: Mapping[str, str], path: Path) -> None:
    """Draw the mean of every column with its interval: a row for every model, a group of bars for every dataset.

    Args:
        results: Results with the same columns.
        metric: The metric to draw.
        names: The name to show for each model.
        path: The file to write; an existing one is replaced. Its suffix decides the format.
    """
    columns = results[0].columns
    width = 0.8 / len(columns)
    groups = max(sum(result.model == model for result in results) for model in names)
    figure = Figure(figsize=(3 + max(groups, 2) * 1.8, 0.8 + 3.2 * len(names)), layout="constrained")
    all_axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, (model, name) in zip(all_axes, names.items(), strict=True):
        own = [result for result in results if result.model == model]
        for i, column in enumerate(columns):
            estimates = [result.estimate(column, metric) for result in own]
            means = np.array([estimate.mean for estimate in estimates])
            errors = np.array([[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]])
            places = np.arange(len(own)) + (i - (len(columns) - 1) / 2) * width
            axes.bar(places, means, width, yerr=errors, capsize=2, label=column, error_kw={"elinewidth": 0.8})
        axes.set(title=name, ylabel=metric, ylim=(0, 1))
        axes.set_xticks(np.arange(len(own)), [result.dataset.name for result in own])
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=120)
