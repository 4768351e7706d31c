"""Attention over a packed batch: texts one after another in a single row, none of which sees another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from m3_integrations.vectors import IntArray

_VARLEN: Final = "m3_packed_varlen"
_PER_TEXT: Final = "m3_packed_per_text"
_MOST_HEAD_WIDTH: Final = 256


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the texts of a packed batch begin and end.

    Attributes:
        boundaries: (n + 1,) int32 on the device, the first token of every text and the end of the last.
        lengths: The tokens of every text, known to the host: a layer that had to ask the device would wait for it.
        longest: Tokens of the longest text.
    """

    boundaries: torch.Tensor
    lengths: Sequence[int]
    longest: int


def _varlen_attention(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    *,
    packing: Packing,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend with torch's kernel for texts of different lengths; in and out as transformers wants them.

    `packing` has no default, so that a padded batch that comes here by mistake raises and is not attended as one text.
    """
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, width)
    ends, longest = packing.boundaries, packing.longest
    # The arguments after these seven changed with every release from 2.10 to 2.13. Their defaults are what we want: all
    # tokens see all others, scaled by 1/sqrt(width).
    mixed: Any = varlen_attn(q, k, v, ends, ends, longest, longest)
    return mixed[None], None


def _per_text_attention(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    *,
    packing: Packing,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend with one call for each text, on devices and in dtypes that the kernel does not know."""
    texts = zip(*(torch.split(states, list(packing.lengths), dim=2) for states in (query, key, value)), strict=True)
    mixed = torch.cat([F.scaled_dot_product_attention(*text) for text in texts], dim=2)  # (1, heads, tokens, width)
    return mixed.transpose(1, 2), None


# Transformers makes no mask for a name that it has no mask function for: right for a packed batch, wrong for a padded
# one. So a network carries such a name only inside `packed_attention`.
AttentionInterface.register(_VARLEN, _varlen_attention)
AttentionInterface.register(_PER_TEXT, _per_text_attention)


@contextmanager
def packed_attention(backbone: Any) -> Iterator[None]:
    """Let a backbone attend within texts and not across them, for one forward pass with a `packing`.

    Args:
        backbone: A model of transformers; afterwards its configuration is as before.
    """
    config = backbone.config
    before = config._attn_implementation
    config._attn_implementation = _VARLEN if has_varlen_kernel(backbone) else _PER_TEXT
    try:
        yield
    finally:
        config._attn_implementation = before


def has_known_positions(backbone: Any) -> bool:
    """Whether we know how the architecture counts positions, which a packed batch must be told."""
    return backbone.config.model_type == "xlm-roberta" and not backbone.config.is_decoder


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
