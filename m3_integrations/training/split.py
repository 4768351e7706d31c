"""Encoding a batch some texts at a time: it needs less memory, and the gradients are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final

import torch
from torch.utils.checkpoint import checkpoint

from m3_integrations.training.scores import TextViews, join_views

SPLIT_KINDS: Final = ("checkpointing", "gradient_cache")

Encode = Callable[[torch.Tensor, torch.Tensor], TextViews]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The division of a batch into sub-batches. The passages of the whole batch are still negatives of every query.

    Dropout differs from that of the whole batch, because each sub-batch draws its own random numbers.

    Attributes:
        max_tokens: The most tokens of a sub-batch, padding included; a longer text is a sub-batch alone.
        kind: "checkpointing" is the paper's split-batch (appendix B.3): of a sub-batch the input of each layer is kept,
            by the backbone's gradient checkpointing. "gradient_cache" keeps only the views, and encodes each sub-batch
            again for its gradient (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
            Setup"). Both compute every activation twice. "gradient_cache" together with the backbone's gradient
            checkpointing computes it three times, and a sub-batch may have more tokens in the same memory.

    Raises:
        ValueError: If max_tokens is less than 1, or kind is not one of `SPLIT_KINDS`.
    """

    max_tokens: int
    kind: str = "gradient_cache"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.kind not in SPLIT_KINDS:
            raise ValueError(f"kind must be one of {', '.join(SPLIT_KINDS)}, got {self.kind!r}")


def encode_split(encode: Encode, input_ids: torch.Tensor, attention_mask: torch.Tensor, split: Split) -> TextViews:
    """Return the views of n texts, in their order, encoded in sub-batches of texts of similar length.

    Args:
        encode: A function that returns the views of texts.
        input_ids: (n, tokens) int64, padded on the right.
        attention_mask: (n, tokens) int64, 1 at real tokens.
        split: The division into sub-batches.
    """
    lengths = attention_mask.sum(dim=1).tolist()
    groups = plan_split(lengths, split.max_tokens)
    parts: list[TextViews] = []
    for group in groups:
        rows = torch.tensor(group, device=input_ids.device)
        longest = max(lengths[row] for row in group)
        texts = input_ids[rows, :longest], attention_mask[rows, :longest]
        if split.kind == "gradient_cache" and torch.is_grad_enabled():
            parts.append(checkpoint(encode, *texts, use_reentrant=False))
        else:
            parts.append(encode(*texts))
    joined = join_views(parts)
    order = torch.tensor([row for group in groups for row in group], device=input_ids.device)
    places = torch.argsort(order)
    return TextViews(*(getattr(joined, field.name)[places] for field in fields(TextViews)))


def plan_split(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return the rows of every sub-batch, the longest texts first: if memory is too small, the first one fails.

    Args:
        lengths: The number of tokens of every text.
        max_tokens: The most tokens of a sub-batch, padding included.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
