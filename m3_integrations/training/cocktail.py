"""The trained weights averaged with those that training began with, against forgetting."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def mix_in_start(trained: nn.Module, start: nn.Module, start_weight: float) -> None:
    """Make every weight of a network (1 - start_weight) times itself plus start_weight times the start's.

    Xiao et al. 2023, "LM-Cocktail: Resilient Tuning of Language Models via Model Merging", with one model fine-tuned
    and its base.

    Args:
        trained: Changed in place.
        start: A network with the same weights, such as `trained` had when training began.
        start_weight: From 0 for the trained weights alone to 1 for the start's.

    Raises:
        ValueError: If a weight is missing or of another shape.
    """
    own, other = trained.state_dict(), start.state_dict()
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in other.items()}:
        raise ValueError("the start has other weights than the trained network, so that they have no average")
    for name, weight in own.items():
        if weight.is_floating_point():
            weight.lerp_(other[name].to(weight), start_weight)
