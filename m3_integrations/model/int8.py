"""Linear layers that multiply 8-bit integers, for CPUs on which that is faster than float32."""

from __future__ import annotations

import time
from collections.abc import Callable
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
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().clone()
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
    """Whether products of 8-bit integers are exact on this CPU and not slow: x86 with AVX2 or newer.

    False on other processors: their speed has not been measured.
    """
    return torch.cpu._is_avx2_supported() and _kernel() is not None and not _is_slow()


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
    """Return the faster way to multiply on this CPU, unless it costs a bit of the weights and gains too little.

    With VNNI that is oneDNN's, in 0.24 ms for 12 rows by 1,024 x 4,096 where `_int_mm` takes 0.61 (with AMX). Without
    VNNI oneDNN needs weights of 7 bits. There `_int_mm` was faster on one CPU (1.5 and 2.5 ms), and on another it had
    weights of 8 bits but took 36 ms, oneDNN 1.9 and float32 5.1: exactness is given up for four times the speed.

    oneDNN's functions in torch are not public: if a release lacks or changes them, `_int_mm` is left.
    """
    prepacked, plain = (_exact_kernel(is_prepacked=which) for which in (True, False))
    if prepacked is None or plain is None or prepacked.largest_weight == _LARGEST:
        return prepacked or plain
    factor = 1 if plain.largest_weight == prepacked.largest_weight else 4
    return prepacked if factor * _seconds(prepacked) < _seconds(plain) else plain


def _exact_kernel(*, is_prepacked: bool) -> _Kernel | None:
    """Return this way with the largest weight that does not overflow; None if torch lacks it or all overflow."""
    rows = _hard_values(_LARGEST)
    for largest in (_LARGEST, _LARGEST_IN_7_BITS):
        weights = _hard_values(largest)
        try:
            found = _products(rows, weights, is_prepacked=is_prepacked)()
        except (AttributeError, RuntimeError, TypeError):
            return None
        if torch.equal(found.int(), rows.int() @ weights.int().t()):
            return _Kernel(is_prepacked, largest)
    return None


def _products(rows: torch.Tensor, weights: torch.Tensor, *, is_prepacked: bool) -> Callable[[], torch.Tensor]:
    """Return a function that multiplies int8 rows and weights, which are prepared before."""
    if not is_prepacked:
        return lambda: torch._int_mm(rows, weights.t())
    values, packed, scales = (rows.int() + _MIDDLE).to(torch.uint8), _prepacked(weights), torch.ones(len(weights))
    return lambda: _prepacked_products(values, packed, scales)


def _seconds(kernel: _Kernel | None) -> float:
    """Return the least CPU time of a product of 32 rows by 1,024 x 512, in float32 for None."""
    if kernel is None:
        states, matrix = torch.ones(32, 1024), torch.ones(1024, 512)
        multiply: Callable[[], torch.Tensor] = lambda: states @ matrix  # noqa: E731
    else:
        ones = torch.ones(512, 1024, dtype=torch.int8)
        multiply = _products(ones[:32], ones, is_prepacked=kernel.is_prepacked)
    seconds = []
    for _ in range(4):
        started = time.process_time()
        multiply()
        seconds.append(time.process_time() - started)
    return min(seconds)


@cache
def _is_slow() -> bool:
    """Whether a product takes more than twice the time of float32's, as where a library has no kernel for this CPU."""
    return _seconds(_kernel()) > 2 * _seconds(None)


def _hard_values(largest: int) -> torch.Tensor:
    """Return (32, 64) int8 values of -largest, 0 and largest, among which sums of products are largest."""
    signs = torch.arange(32 * 64).view(32, 64) % 7 % 3 - 1
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
    return torch.zeros(n, dtype=torch.int32)


def _scales(rows: torch.Tensor, largest: int) -> torch.Tensor:
    """Return (rows, 1) float32, the scale of every row: its largest absolute value divided by largest.

    A row with a value that is not finite has a scale that is not finite.
    """
    most = torch.maximum(rows.amax(dim=1, keepdim=True), rows.amin(dim=1, keepdim=True).neg_())
    return most.clamp_min_(torch.finfo(torch.float32).tiny).div_(largest)
