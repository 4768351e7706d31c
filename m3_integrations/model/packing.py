"""Attention over a packed batch: all texts in one row, one after another, and no text attends to another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from m3_integrations.model.prepacked import has_amx
from m3_integrations.model.xlm_roberta import Attention
from m3_integrations.vectors import IntArray

_MOST_HEAD_WIDTH: Final = 256
_TILE: Final = 16
"""Keys that torch's attention multiplies at once with AMX; the rest of a text takes it longer."""

_MOST_PADDED: Final = 512
"""Tokens of a text above which a copy of its keys costs more than such a rest."""


def packed_attention(backbone: Any, boundaries: torch.Tensor, lengths: Sequence[int]) -> Attention:
    """Return the attention of a packed batch, in which tokens attend to the tokens of their own text only.

    Args:
        backbone: Its device, dtype and sizes decide which attention is used.
        boundaries: (n + 1,) on the device, the first token of every text and the end of the last.
        lengths: (n,) the tokens of every text, on the host: reading them from the device would wait for it.
    """
    if not has_varlen_kernel(backbone):
        return partial(_attend_per_text, lengths=list(lengths))
    from m3_integrations.model import varlen  # noqa: PLC0415 - see there

    return partial(varlen.attend_with_kernel, ends=boundaries.int(), longest=max(lengths))


def _attend_per_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, lengths: list[int]
) -> torch.Tensor:
    """Compute attention by `attend_per_text`, for devices and dtypes without the kernel."""
    q, k, v = (states[0].transpose(0, 1).flatten(1) for states in (query, key, value))  # (tokens, heads * width)
    mixed = attend_per_text(q, k, v, runs_of(lengths), query.shape[1])
    return mixed.view(1, len(mixed), query.shape[1], -1)


def runs_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return (number of texts, length) for every run of successive texts of equal length, in order."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def attend_per_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, runs: Sequence[tuple[int, int]], n_heads: int
) -> torch.Tensor:
    """Return (tokens, heads * width), the attention of every token to the tokens of its own text.

    Args:
        query: (tokens, heads * width), one text after another.
        key: Likewise.
        value: Likewise.
        runs: The result of `runs_of`; every run takes one call of torch's attention.
        n_heads: The number of attention heads.
    """
    parts, sizes, width = [], [n * length for n, length in runs], query.shape[1] // n_heads
    for (n, length), *rows in zip(runs, *(torch.split(states, sizes) for states in (query, key, value)), strict=True):
        texts, mask = [states.view(n, length, -1) for states in rows], None
        if added := _keys_to_add(length, query):
            texts[1:] = (F.pad(states, (0, 0, 0, added)) for states in texts[1:])
            mask = query.new_zeros(1, 1, 1, length + added)
            mask[..., length:] = -torch.inf
        q, k, v = (states.view(n, -1, n_heads, width).transpose(1, 2) for states in texts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        parts.append(mixed.transpose(1, 2).reshape(n * length, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _keys_to_add(length: int, states: torch.Tensor) -> int:
    """Return how many keys that nobody attends to make the attention of a text of this length faster.

    With AMX in bfloat16, 12 texts of 125 tokens take 7.9 ms, and 5.1 with 128 keys each.
    """
    rest = length % _TILE
    if rest < _TILE // 2 or length > _MOST_PADDED or states.dtype != torch.bfloat16 or states.device.type != "cpu":
        return 0
    return _TILE - rest if has_amx() else 0


def padded_attention(is_real: torch.Tensor | None) -> Attention:
    """Return the attention of a padded batch, which ignores padding.

    Args:
        is_real: (n, tokens) bool on the device, False at padding. None if there is no padding: attention without a mask
            is faster.
    """
    if is_real is None:
        return partial(_attend_by_row, mask=None)
    return partial(_attend_by_row, mask=is_real[:, None, None, :].expand(-1, 1, is_real.shape[1], -1))


def _attend_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, mask: torch.Tensor | None
) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def has_varlen_kernel(backbone: Any) -> bool:
    """Whether torch has a kernel for texts of different lengths: on CUDA GPUs since Ampere, in half precision."""
    device, dtype = backbone.device, backbone.dtype
    head_width = backbone.config.hidden_size // backbone.config.num_attention_heads
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_width <= _MOST_HEAD_WIDTH
        and head_width % 8 == 0
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def packed_positions(ids: IntArray, lengths: IntArray, padding_index: int) -> IntArray:
    """Return XLM-RoBERTa's position of every token, (tokens,) int64; each text begins with padding_index + 1.

    A token with the id of padding (the text may contain "<pad>") has the position padding_index and is not counted.
    Transformers does the same.

    Args:
        ids: (tokens,) token ids, one text after another.
        lengths: (n,) tokens of every text, 1 or more.
        padding_index: The padding index of the position embeddings, which is also the id of padding.
    """
    counts = ids != padding_index
    running = np.concatenate([[0], np.cumsum(counts)])
    starts = np.cumsum(lengths) - lengths
    return np.asarray((running[1:] - np.repeat(running[starts], lengths)) * counts + padding_index, dtype=np.int64)
