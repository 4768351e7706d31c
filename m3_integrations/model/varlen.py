"""Torch's attention over texts of different lengths, for CUDA alone. Importing it brings torch._dynamo, 1 s of CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn


def attend_with_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, ends: torch.Tensor, longest: int
) -> torch.Tensor:
    """Attend within the texts of a packed batch, as an `Attention`.

    Args:
        query: (1, heads, tokens, width), as `key` and `value`.
        key: See `query`.
        value: See `query`.
        ends: (n + 1,) int32, the first token of every text and the end of the last.
        longest: Tokens of the longest text.
    """
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, width)
    # The arguments after these seven changed with every release from 2.10 to 2.13. Their defaults are what we want: all
    # tokens see all others, scaled by 1/sqrt(width).
    mixed: Any = varlen_attn(q, k, v, ends, ends, longest, longest)
    return mixed[None]  # type: ignore[no-any-return]
