"""Attention over a packed batch: texts one after another in a single row, none of which sees another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from m3_integrations.model.xlm_roberta import Attention
from m3_integrations.vectors import IntArray

_MOST_HEAD_WIDTH: Final = 256


def packed_attention(backbone: Any, boundaries: torch.Tensor, lengths: Sequence[int]) -> Attention:
    """Return what attends within the texts of a packed batch, and not across them.

    Args:
        backbone: Whose device and numbers decide how.
        boundaries: (n + 1,) on the device, the first token of every text and the end of the last.
        lengths: The tokens of every text, known to the host: a layer that had to ask the device would wait for it.
    """
    if not has_varlen_kernel(backbone):
        return partial(_attend_per_text, lengths=list(lengths))
    from m3_integrations.model import varlen  # noqa: PLC0415 - see there

    return partial(varlen.attend_with_kernel, ends=boundaries.int(), longest=max(lengths))


def _attend_per_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, lengths: list[int]
) -> torch.Tensor:
    """Attend with one call for each text, on devices and in dtypes that the kernel does not know."""
    q, k, v = (states[0].transpose(0, 1).flatten(1) for states in (query, key, value))  # (tokens, heads * width)
    mixed = attend_per_text(q, k, v, runs_of(lengths), query.shape[1])
    return mixed.view(1, len(mixed), query.shape[1], -1)


def runs_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return how many texts of the same length follow each other, and that length, for all texts in their order."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def attend_per_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, runs: Sequence[tuple[int, int]], n_heads: int
) -> torch.Tensor:
    """Return (tokens, heads * width): every text's tokens attend to each other, and to no other text's.

    Args:
        query: (tokens, heads * width), the texts one after another.
        key: Likewise.
        value: Likewise.
        runs: What `runs_of` returns: texts of equal length that follow each other take one call.
        n_heads: The attention heads.
    """
    parts, sizes = [], [n * length for n, length in runs]
    for (n, length), *rows in zip(runs, *(torch.split(states, sizes) for states in (query, key, value)), strict=True):
        heads = (states.view(n, length, n_heads, -1).transpose(1, 2) for states in rows)  # (n, heads, length, width)
        mixed = F.scaled_dot_product_attention(*heads)
        parts.append(mixed.transpose(1, 2).reshape(n * length, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def padded_attention(is_real: torch.Tensor | None) -> Attention:
    """Return what attends within the texts of a padded batch.

    Args:
        is_real: (n, tokens) bool on the device, False at padding; None without any: no mask is faster than one.
    """
    if is_real is None:
        return partial(_attend_by_row, mask=None)
    return partial(_attend_by_row, mask=is_real[:, None, None, :].expand(-1, 1, is_real.shape[1], -1))


def _attend_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, mask: torch.Tensor | None
) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def has_varlen_kernel(backbone: Any) -> bool:
    """Whether torch has a kernel for texts of different lengths here: on CUDA from Ampere on, in half precision."""
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
    """Return XLM-RoBERTa's position of every token: from padding_index + 1 in each text.

    As in the reference, a token that is padding's own id (a text may spell "<pad>") has the position padding_index,
    and those after it count on as though it were not there.

    Args:
        ids: (tokens,) of the texts, one after another.
        lengths: (n,) tokens of every text, 1 or more.
        padding_index: Of the position embeddings.
    """
    counts = ids != padding_index
    running = np.concatenate([[0], np.cumsum(counts)])
    starts = np.cumsum(lengths) - lengths
    return np.asarray((running[1:] - np.repeat(running[starts], lengths)) * counts + padding_index, dtype=np.int64)
