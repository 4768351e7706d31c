"""The two heads of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from m3_integrations.checkpoint.files import DAMAGE, HEADS, head_files


@dataclass(frozen=True, slots=True)
class Heads:
    """The two linear heads that turn a token's hidden state into its vector and its lexical weight.

    Attributes:
        multi_vector: Linear(hidden, d), `colbert_linear` on disk.
        lexical: Linear(hidden, 1), `sparse_linear` on disk.
    """

    multi_vector: nn.Linear
    lexical: nn.Linear


def load_heads(folder: Path, hidden_size: int, dtype: torch.dtype) -> Heads | None:
    """Load the multi-vector and the lexical head, from safetensors or from a `.pt` that holds only weights.

    Returns:
        The heads, or None for a checkpoint that has neither (plain BGE: dense only).

    Raises:
        ValueError: If only one exists, or one cannot be read, holds anything but weights, or has a wrong shape.
    """
    found = {name: paths for name in HEADS if (paths := head_files(folder, name))}
    if not found:
        return None
    if len(found) == 1:
        (absent,) = set(HEADS).difference(found)
        raise ValueError(
            f"{folder} has {next(iter(found))} but no {absent}: add it, or delete the other head for dense vectors only"
        )
    colbert = _load_head(found["colbert_linear"], hidden_size, None, dtype)
    return Heads(colbert, _load_head(found["sparse_linear"], hidden_size, 1, dtype))


def _load_head(paths: list[Path], hidden_size: int, rows: int | None, dtype: torch.dtype) -> nn.Linear:
    path = paths[0]
    states = [_read_state(each) for each in paths]
    state = states[0]
    if any(set(other) != set(state) or any(not other[k].equal(state[k]) for k in state) for other in states[1:]):
        raise ValueError(
            f"{', '.join(p.name for p in paths)} in {path.parent} differ: delete the one that is out of date"
        )
    weight, bias = state.get("weight"), state.get("bias")
    if set(state) != {"weight", "bias"} or weight is None or bias is None:
        raise ValueError(f"{path} must hold weight and bias and nothing else, got {sorted(state)}")
    rows = rows or max(bias.numel(), 1)
    if tuple(weight.shape) != (rows, hidden_size) or tuple(bias.shape) != (rows,):
        raise ValueError(
            f"{path} must have weight ({rows}, {hidden_size}) and bias ({rows},), "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    weight, bias = weight.to(dtype), bias.to(dtype)
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise ValueError(f"{path} holds weights that are infinite or NaN in {dtype}")
    head = nn.Linear(hidden_size, rows, device="meta", dtype=dtype)
    head.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return head.eval().requires_grad_(False)


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or holds more than weights: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a mapping of tensors, got {type(state).__name__}")
    return state
