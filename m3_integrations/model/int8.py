"""Linear layers that multiply in 8-bit integers, for CPUs with instructions for it."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

_LARGEST: Final = 127.0


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale for each output, and inputs rounded to 8 bits, one scale each.

    A scale for each token, and not one for the whole batch, keeps a text's vectors free of its neighbours'. Torch's own
    dynamically quantised layer has one for the batch, and its tensors are deprecated from 2.13 on; these are plain.

    Args:
        linear: A layer in float32; it is not changed.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = _rounded(linear.weight.detach())
        self.register_buffer("weight", weight.t().contiguous())  # (inputs, outputs): the faster way round
        self.register_buffer("scales", scales[:, 0])  # (outputs,)
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) float32 for (..., inputs) float32."""
        rounded, scales = _rounded(states.flatten(0, -2))
        sums = torch._int_mm(rounded, self.weight).float().mul_(scales)  # (tokens, outputs)
        return torch.addcmul(self.bias, sums, self.scales).view(*states.shape[:-1], -1)


def use_int8(backbone: nn.Module) -> None:
    """Put an `Int8Linear` in the place of every linear layer; embeddings and norms stay in float32."""
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))


def has_int8_kernel() -> bool:
    """Whether this CPU multiplies 8-bit integers fast (AVX-512 VNNI); on others torch takes them one by one."""
    return bool(torch.cpu._is_vnni_supported())


def _rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows as int8, and (rows, 1) float32 scales that give them back; a value that is not finite stays so."""
    scales = rows.abs().amax(dim=1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny).div_(_LARGEST)
    return (rows / scales).round_().to(torch.int8), scales
