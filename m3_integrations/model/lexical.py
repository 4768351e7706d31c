"""From one lexical weight per token to one per distinct token, on the device."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from m3_integrations.vectors import FloatArray, IntArray, LexicalRows, offsets_of

_DROPPED: Final = np.iinfo(np.int64).max


def largest_weights(
    weights: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, ignored_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep the largest positive weight of every token of every text, and leave out the ids that carry none.

    Nothing depends on how many stay, so that the host need not wait: the results are as long as the input, and
    `lexical_rows` cuts them.

    Args:
        weights: (tokens,) float32.
        rows: (tokens,) int64, which text a token belongs to.
        token_ids: (tokens,) int64.
        ignored_ids: (ids,) int64.

    Returns:
        (tokens,) int64 rising keys, each once: the text in the upper 32 bits and the id in the lower ones; then
        int64's largest value. And (tokens,) float32, their weights; what stands beside that value means nothing.
    """
    stays = (weights > 0) & (token_ids[:, None] != ignored_ids).all(dim=1)
    keys, order = torch.where(stays, rows << 32 | token_ids, _DROPPED).sort(stable=True)
    is_first = torch.ones_like(keys)
    is_first[1:] = keys[1:] != keys[:-1]
    places = is_first.cumsum(0) - 1
    distinct = torch.full_like(keys, _DROPPED).scatter_(0, places, keys)
    largest = torch.zeros_like(weights).scatter_reduce_(0, places, weights[order], "amax")
    return distinct, largest


def lexical_rows(keys: IntArray, weights: FloatArray, n: int) -> LexicalRows:
    """Give what `largest_weights` found for n texts."""
    end = int(np.searchsorted(keys, _DROPPED))
    rows, ids = keys[:end] >> 32, (keys[:end] & 0xFFFFFFFF).astype(np.int32)
    lengths: NDArray[np.int64] = np.bincount(rows, minlength=n)
    return LexicalRows(offsets_of(lengths), ids, weights[:end].copy())
