"""Linear layers whose weights are stored in oneDNN's own layout."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch
from torch import nn

_ROWS: Final = 16
"""Number of input rows that the layout is made for. Products of 1 to 1,024 rows take the same time with any number."""

_mkldnn: Any = torch.ops.mkldnn


class PrepackedLinear(nn.Module):
    """A linear layer in float32 or bfloat16 on a CPU, equal to `nn.Linear` up to the order of its sums.

    `nn.Linear` converts the weight to oneDNN's layout in every pass. With few tokens that costs as much as the product:
    12 tokens by a weight of 1,024 x 4,096 take 3.3 to 3.5 ms, and 1.9 prepacked; in bfloat16 with AMX 0.9 and 0.6. At
    1,024 tokens both take the same time.

    Args:
        linear: A layer of `nn.Linear`; it is not changed.

    Attributes:
        weight: (outputs, inputs) in oneDNN's own layout; `to_dense` returns the same bits in the usual layout.
        bias: (outputs,) or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", _mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def prepare(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states unchanged; `Int8Linear` rounds them here."""
        return states

    def multiply(self, states: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, (..., outputs) for (..., inputs)."""
        product: torch.Tensor = _mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")
        return product

    def multiply_gelu(self, states: torch.Tensor) -> torch.Tensor:
        """Return GELU of the output, computed in the same call; GELU uses erf, as in BERT."""
        product: torch.Tensor = _mkldnn._linear_pointwise(states, self.weight, self.bias, "gelu", [], "none")
        return product

    def multiply_add(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the output plus the residual, computed in the same call."""
        product: torch.Tensor = _mkldnn._linear_pointwise.binary(states, residual, self.weight, self.bias, "add")
        return product

    forward = multiply


@cache
def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 at once; False if torch cannot tell."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


@cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether torch's functions for prepacked layers exist and return the right numbers in this dtype.

    They are not public: if a release lacks or changes them, `nn.Linear` stays. False on processors other than x86:
    their speed has not been measured.
    """
    if dtype not in {torch.float32, torch.bfloat16} or not torch.cpu._is_avx2_supported():
        return False
    linear = nn.Linear(32, 32, device="meta", dtype=dtype)
    rows = torch.linspace(-1, 1, 32 * 33, dtype=torch.float32, device="cpu").view(33, 32).to(dtype)
    linear.weight, linear.bias = nn.Parameter(rows[1:], requires_grad=False), nn.Parameter(rows[0], requires_grad=False)
    try:
        packed = PrepackedLinear(linear)
        product = linear(rows)
        wanted = (product, nn.functional.gelu(product), product + rows)
        found = (packed.multiply(rows), packed.multiply_gelu(rows), packed.multiply_add(rows, rows))
        is_same = torch.equal(packed.weight.to_dense(), linear.weight)
    except (AttributeError, RuntimeError, TypeError):
        return False
    near = 1e-5 if dtype == torch.float32 else 0.02
    pairs = zip(found, wanted, strict=True)
    return is_same and all(torch.allclose(one, other, rtol=near, atol=near) for one, other in pairs)
