"""Torch's attention kernel for texts of different lengths, on CUDA. Its import takes 1 s of CPU (torch._dynamo)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn


def attend_with_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, ends: torch.Tensor, longest: int
) -> torch.Tensor:
    """Compute the attention of a packed batch; with `ends` and `longest` bound, this is an `Attention`.

    Args:
        query: (1, heads, tokens, width).
        key: Likewise.
        value: Likewise.
        ends: (n + 1,) int32, the first token of every text and the end of the last.
        longest: Tokens of the longest text.
    """
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, width)
    # The arguments after these seven changed in every torch release from 2.10 to 2.13. Their defaults are right here:
    # no token is masked, and the scale is 1/sqrt(width).
    mixed: Any = varlen_attn(q, k, v, ends, ends, longest, longest)
    return mixed[None]  # type: ignore[no-any-return]
