"""Gathering the passages of all devices as negatives of every device's queries; their gradients are sent back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from m3_integrations.training.scores import TextViews

_Value = TypeVar("_Value")


def is_distributed() -> bool:
    """Return whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_views(views: TextViews) -> TextViews:
    """Return the views of the texts of all processes, in the order of the processes, padded to the longest of all.

    The processes may have different numbers of texts of different lengths. The gradient of one process's queries for
    another process's texts is sent to that process and added there. So if each process computes the loss of its own
    queries, the sum of the gradients over the processes is the gradient of the joined batch. Every process must call
    this.
    """
    dense, weights, vectors = _gather_floats(views.dense, views.token_weights, views.token_vectors)
    return TextViews(
        dense=dense,
        token_ids=gather_rows(views.token_ids),
        token_weights=weights,
        token_vectors=vectors,
        vector_mask=gather_rows(views.vector_mask.to(torch.uint8)).bool(),
    )


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, one after the other, without gradient.

    Args:
        values: (n, m, ...); n and m may differ between processes.

    Returns:
        (sum of n, greatest m, ...), shorter rows padded with zeros. With one process, the values themselves.
    """
    return _gather(values, _shapes_of_all(values)) if is_distributed() else values


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes of values of one shape, without gradient; with one process, the values."""
    if not is_distributed():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def from_first(compute: Callable[[], _Value]) -> _Value:
    """Call a function on the first process only, and return its result on every process."""
    if not is_distributed():
        return compute()
    held: list[Any] = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(held)
    value: _Value = held[0]
    return value


def _gather_floats(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    gathered: tuple[torch.Tensor, ...] = _GatherFloats.apply(*values)  # type: ignore[no-untyped-call]
    return gathered


class _GatherFloats(torch.autograd.Function):
    """Gathering of several tensors in one function, so that every process sends their gradients in the same order."""

    @staticmethod
    def forward(ctx: Any, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.shapes = [_shapes_of_all(each) for each in values]
        return tuple(_gather(each, shapes) for each, shapes in zip(values, ctx.shapes, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = dist.get_rank()
        parts: list[torch.Tensor] = []
        for gradient, shapes in zip(gradients, ctx.shapes, strict=True):
            total = gradient.contiguous().clone()
            dist.all_reduce(total)
            first = sum(rows for rows, _ in shapes[:own])
            rows, width = shapes[own]
            parts.append(total[first : first + rows, :width])
        return tuple(parts)


def _shapes_of_all(values: torch.Tensor) -> list[tuple[int, int]]:
    """Return the first two dimensions of the values of every process."""
    own = torch.tensor(values.shape[:2], device=values.device)
    shapes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, own)
    return [(int(rows), int(width)) for rows, width in (shape.tolist() for shape in shapes)]


def _gather(values: torch.Tensor, shapes: list[tuple[int, int]]) -> torch.Tensor:
    most_rows, most_width = (max(sizes) for sizes in zip(*shapes, strict=True))
    padded = values.new_zeros(most_rows, most_width, *values.shape[2:])
    padded[: values.shape[0], : values.shape[1]] = values.detach()
    parts = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:rows] for part, (rows, _) in zip(parts, shapes, strict=True)])
