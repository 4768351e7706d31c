"""The average of the trained weights and the start's weights: it reduces what the model forgets in training."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def mix_in_start(trained: nn.Module, start: nn.Module, start_weight: float) -> None:
    """Replace each weight by (1 - start_weight) times itself plus start_weight times the start's weight.

    Source: Xiao et al. 2023, "LM-Cocktail: Resilient Tuning of Language Models via Model Merging", for one fine-tuned
    model and its base.

    Args:
        trained: The trained network, changed in place.
        start: The network as it was when training began, with the same names and shapes of weights.
        start_weight: From 0 (only the trained weights) to 1 (only the start's).

    Raises:
        ValueError: If a weight is missing or has another shape.
    """
    own, other = trained.state_dict(), start.state_dict()
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in other.items()}:
        raise ValueError("the start checkpoint has other weights than the trained network, so they cannot be averaged")
    for name, weight in own.items():
        if weight.is_floating_point():
            weight.lerp_(other[name].to(weight), start_weight)
