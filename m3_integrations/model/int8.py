"""Linear layers that multiply 8-bit integers, for CPUs on which that is faster than float32."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import torch
from torch import nn

_LARGEST: Final = 127
_LARGEST_IN_7_BITS: Final = 63
_MIDDLE: Final = 128
"""Added to inputs to make them unsigned: oneDNN multiplies signed ones a thousand times as slowly without AMX."""

_ROWS: Final = 16
"""Number of input rows that oneDNN lays the weights out for. Products of 1,024 rows are as fast with this layout."""

_onednn: Any = torch.ops.onednn


class Rounded(NamedTuple):
    """Rows in 8 bits: (rows, width) `values` and (rows, 1) float32 `scales`. Unsigned values have `_MIDDLE` added."""

    values: torch.Tensor
    scales: torch.Tensor


class Int8Linear(nn.Module):
    """A linear layer with weights rounded to 8 bits, one scale per output, and inputs to 8 bits, one scale per token.

    With a scale per token a text's vectors do not depend on the other texts in its batch. Torch's own dynamically
    quantised layer has one scale per batch, and its tensors are deprecated from 2.13 on; here they are plain tensors.
    A CPU without VNNI adds pairs of products in 16 bits, where 8-bit weights overflow: there weights have 7 bits.

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
        # (outputs, inputs), in oneDNN's own layout if prepacked
        self.register_buffer("weight", _prepacked(values) if self._is_prepacked else values)
        self.register_buffer("scales", scales[:, 0])  # (outputs,)
        bias = (
            torch.zeros(linear.out_features, dtype=torch.float32)
            if linear.bias is None
            else linear.bias.detach().clone()
        )
        self.register_buffer("bias", bias)

    def prepare(self, states: torch.Tensor) -> Rounded:
        """Round (..., inputs) float32 states for `multiply`; layers with the same input share the result.

        A row with a value that is not finite gets a scale that is not finite.
        """
        rows = states.reshape(-1, self._width)
        scales = _scales(rows, _LARGEST)
        if self._is_prepacked:
            # All values are positive, so + 0.5 and cutting off the fraction rounds to the nearest integer.
            return Rounded((rows / scales).add_(_MIDDLE + 0.5).to(torch.uint8), scales)
        return Rounded((rows / scales).round_().to(torch.int8), scales)

    def multiply(self, rows: Rounded) -> torch.Tensor:
        """Return the products with the weights, plus the bias: (rows, outputs) float32."""
        if self._is_prepacked:
            products = _prepacked_products(rows.values, self.weight, self.scales)
        else:
            products = torch._int_mm(rows.values, self.weight.t()).float().mul_(self.scales)
        return torch.addcmul(self.bias, products, rows.scales, out=products)

    def multiply_gelu(self, states: torch.Tensor) -> torch.Tensor:
        """Return GELU of the output; GELU uses erf, as in BERT."""
        gelu: torch.Tensor = torch.ops.aten.gelu_(self.multiply(self.prepare(states)))
        return gelu

    def multiply_add(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the output plus the residual."""
        return self.multiply(self.prepare(states)).add_(residual)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) float32 for (..., inputs) float32."""
        return self.multiply(self.prepare(states)).view(*states.shape[:-1], -1)


class _Kernel(NamedTuple):
    """A way to multiply 8-bit integers, and the largest weight whose products do not overflow on this CPU."""

    is_prepacked: bool
    largest_weight: int


def has_int8_kernel() -> bool:
    """Whether products of 8-bit integers are exact and fast on this CPU: x86 with AVX2 and oneDNN's, or with VNNI.

    False on other processors: their speed has not been measured.
    """
    if not torch.cpu._is_avx2_supported() or _kernel() is None:
        return False
    return can_prepack_int8() or torch.cpu._is_vnni_supported()


def can_prepack_int8() -> bool:
    """Whether oneDNN multiplies, with weights in its own layout, rather than `torch._int_mm`."""
    kernel = _kernel()
    return kernel is not None and kernel.is_prepacked


def largest_weight() -> int | None:
    """Return the largest weight whose products do not overflow on this CPU: 127 or 63; None if both overflow."""
    kernel = _kernel()
    return None if kernel is None else kernel.largest_weight


@cache
def _kernel() -> _Kernel | None:
    """Return oneDNN's way to multiply, or `torch._int_mm` if torch lacks oneDNN's; None if all weights overflow.

    oneDNN's functions in torch are not public: a release may lack or change them. 12 rows by 1,024 x 4,096 take oneDNN
    0.24 ms with VNNI, and `_int_mm` 0.61. With AVX2 alone they take 1.9 and 36 ms on one CPU, where float32 takes 5.1,
    and 2.5 and 1.5 on another; there oneDNN needs weights of 7 bits. Nothing is timed: the processes that fill a store
    would disagree on busy hosts, and have other vectors.
    """
    return _exact_kernel(is_prepacked=True) or _exact_kernel(is_prepacked=False)


def _exact_kernel(*, is_prepacked: bool) -> _Kernel | None:
    """Return this way with the largest weight that does not overflow; None if torch lacks it or all overflow."""
    rows = _hard_values(_LARGEST)
    for largest in (_LARGEST, _LARGEST_IN_7_BITS):
        weights = _hard_values(largest)
        try:
            found = _products(rows, weights, is_prepacked=is_prepacked)
        except (AttributeError, RuntimeError, TypeError):
            return None
        if torch.equal(found, rows.int() @ weights.int().t()):
            return _Kernel(is_prepacked, largest)
    return None


def _products(rows: torch.Tensor, weights: torch.Tensor, *, is_prepacked: bool) -> torch.Tensor:
    """Return the products of int8 rows and weights as whole numbers."""
    if not is_prepacked:
        return torch._int_mm(rows, weights.t())
    values, scales = (rows.int() + _MIDDLE).to(torch.uint8), torch.ones(len(weights), dtype=torch.float32, device="cpu")
    return _prepacked_products(values, _prepacked(weights), scales).int()


def _hard_values(largest: int) -> torch.Tensor:
    """Return (32, 64) int8 values of -largest, 0 and largest: a row of the largest, one of the least, mixed ones."""
    signs = torch.arange(32 * 64, device="cpu").view(32, 64) % 7 % 3 - 1
    signs[0], signs[1] = 1, -1
    return (signs * largest).to(torch.int8)


def _prepacked(values: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = _onednn.qlinear_prepack(values, [_ROWS, values.shape[1]])
    return packed


def _prepacked_products(values: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return (rows, outputs) float32: the products of (rows, width) uint8 values with the weights and scales."""
    zeros = _zeros(len(scales))
    products: torch.Tensor = _onednn.qlinear_pointwise(
        values, 1.0, _MIDDLE, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return products


@cache
def _zeros(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int32, device="cpu")


def _scales(rows: torch.Tensor, largest: int) -> torch.Tensor:
    """Return (rows, 1) float32, the scale of every row: its largest absolute value divided by largest.

    A row with a value that is not finite has a scale that is not finite.
    """
    most = torch.maximum(rows.amax(dim=1, keepdim=True), rows.amin(dim=1, keepdim=True).neg_())
    return most.clamp_min_(torch.finfo(torch.float32).tiny).div_(largest)
