"""Linear layers that multiply in 8-bit integers, for CPUs that do so faster than in float32."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import torch
from torch import nn

_LARGEST: Final = 127
_LARGEST_IN_7_BITS: Final = 63
_MIDDLE: Final = 128
"""The zero of unsigned inputs. Without AMX, oneDNN's product of signed ones takes a thousand times as long."""

_ROWS: Final = 16
"""Rows that oneDNN's layout is asked for; a product of 1,024 rows is as fast."""

_onednn: Any = torch.ops.onednn


class Rounded(NamedTuple):
    """Rows in 8 bits: (rows, width) `values`, and (rows, 1) float32 `scales` that give them back."""

    values: torch.Tensor
    scales: torch.Tensor


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale for each output, and inputs rounded to 8 bits, one scale each.

    A scale for each token, and not one for the whole batch, keeps a text's vectors free of its neighbours'. Torch's own
    dynamically quantised layer has one for the batch, and its tensors are deprecated from 2.13 on; these are plain.
    Without VNNI a CPU adds pairs of products in 16 bits, where 8-bit weights overflow: there weights have 7 bits.

    Args:
        linear: A layer in float32; it is not changed.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scales = _scales(linear.weight.detach(), largest_weight() or _LARGEST)
        values = (linear.weight.detach() / scales).round_().to(torch.int8)
        self._is_prepacked = can_prepack_int8()
        self._width = linear.in_features
        # (outputs, inputs), in oneDNN's own order where prepacked
        self.register_buffer("weight", _prepacked(values) if self._is_prepacked else values)
        self.register_buffer("scales", scales[:, 0])  # (outputs,)
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    def prepare(self, states: torch.Tensor) -> Rounded:
        """Return what `multiply` takes, once for all layers that read the same (..., inputs) float32 states.

        A row that holds a value that is not finite gets a scale that is not.
        """
        rows = states.reshape(-1, self._width)
        scales = _scales(rows, _LARGEST)
        if self._is_prepacked:
            # All are positive, so that cutting off the fraction rounds to the nearest.
            return Rounded((rows / scales).add_(_MIDDLE + 0.5).to(torch.uint8), scales)
        return Rounded((rows / scales).round_().to(torch.int8), scales)

    def multiply(self, rows: Rounded) -> torch.Tensor:
        """Return (rows, outputs) float32."""
        if self._is_prepacked:
            products = _prepacked_products(rows.values, self.weight, self.scales)
        else:
            products = torch._int_mm(rows.values, self.weight.t()).float().mul_(self.scales)
        return torch.addcmul(self.bias, products, rows.scales, out=products)

    def multiply_gelu(self, states: torch.Tensor) -> torch.Tensor:
        """Return GELU of the product, with erf as in BERT."""
        gelu: torch.Tensor = torch.ops.aten.gelu_(self.multiply(self.prepare(states)))
        return gelu

    def multiply_add(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the sum of the product and the residual."""
        return self.multiply(self.prepare(states)).add_(residual)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) float32 for (..., inputs) float32."""
        return self.multiply(self.prepare(states)).view(*states.shape[:-1], -1)


def has_int8_kernel() -> bool:
    """Whether products of 8-bit integers are exact here and faster than in float32: on x86 from AVX2 on.

    On other processors their speed has not been measured.
    """
    return torch.cpu._is_avx2_supported() and largest_weight() is not None


@cache
def can_prepack_int8() -> bool:
    """Whether oneDNN's product with weights in its own order is there, and exact for all 8-bit weights (VNNI).

    Torch's functions for it are not part of its public interface. Where a release lacks or changes them, and without
    VNNI, `torch._int_mm` multiplies (12 rows by 1,024 x 4,096, with AMX: 0.61 and 0.24 ms; AVX2 alone: 1.5 and 2.5).
    """
    values, expected = _hard_product(_LARGEST)
    try:
        found = _prepacked_products(
            (values.int() + _MIDDLE).to(torch.uint8), _prepacked(values), torch.ones(len(values))
        )
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found, expected)


@cache
def largest_weight() -> int | None:
    """Return the largest weight that this CPU's product takes without an overflow: 127, or 63; None if neither."""
    if can_prepack_int8():
        return _LARGEST
    rows, _ = _hard_product(_LARGEST)
    for largest in (_LARGEST, _LARGEST_IN_7_BITS):
        weights, _ = _hard_product(largest)
        if torch.equal(torch._int_mm(rows, weights.t()), rows.int() @ weights.int().t()):
            return largest
    return None


def _hard_product(largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (32, 64) int8 values, most of them as large as can be, and their products with each other."""
    signs = torch.arange(32 * 64).view(32, 64) % 7 % 3 - 1
    values = (signs * largest).to(torch.int8)
    return values, (values.int() @ values.int().t()).float()


def _prepacked(values: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = _onednn.qlinear_prepack(values, [_ROWS, values.shape[1]])
    return packed


def _prepacked_products(values: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return (rows, outputs) float32 of (rows, width) uint8 values, by the weights' scales."""
    zeros = _zeros(len(scales))
    products: torch.Tensor = _onednn.qlinear_pointwise(
        values, 1.0, _MIDDLE, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return products


@cache
def _zeros(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int32)


def _scales(rows: torch.Tensor, largest: int) -> torch.Tensor:
    """Return (rows, 1) float32, what 1 stands for in every row; not finite for a row that is not."""
    most = torch.maximum(rows.amax(dim=1, keepdim=True), rows.amin(dim=1, keepdim=True).neg_())
    return most.clamp_min_(torch.finfo(torch.float32).tiny).div_(largest)
