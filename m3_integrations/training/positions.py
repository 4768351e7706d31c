"""Adding positions to a checkpoint, so that it reads longer texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from m3_integrations.tokenizer import Tokenizer


@torch.no_grad()
def extend_positions(backbone: nn.Module, tokenizer: Tokenizer, positions: int) -> None:
    """Extend a network's positions, in place, to texts of this many tokens.

    The configuration and the tokenizer are changed too, so other readers of the saved checkpoint know the new length.

    The new positions are copies of the old ones, from the first on (Beltagy et al. 2020, Longformer, section 5). So
    texts that fitted before keep their vectors, and the new positions must be trained. BGE-M3's paper extends
    XLM-RoBERTa from 512 to 8,192 tokens before RetroMAE and does not say how the new positions begin.

    Args:
        backbone: A model of transformers with a table of positions, such as XLM-RoBERTa or BERT.
        tokenizer: The checkpoint's tokenizer.
        positions: The most tokens of a text, special tokens included. The present number changes nothing.

    Raises:
        ValueError: If the network has no table of positions, or already more positions than asked for.
    """
    embeddings: Any = getattr(backbone, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        kind = type(backbone).__name__
        raise ValueError(f"positions = {positions} is not possible: {kind} has no table of positions")  # noqa: TRY004 - a setting is wrong
    first = 0 if table.padding_idx is None else table.padding_idx + 1  # XLM-RoBERTa's first position is after padding
    known = table.num_embeddings - first
    if positions < known:
        raise ValueError(f"positions must be at least {known}, which the checkpoint has, got {positions}")
    if positions == known:
        return
    longer = nn.Embedding(first + positions, table.embedding_dim, padding_idx=table.padding_idx)
    longer.weight[:first] = table.weight[:first]
    longer.weight[first:] = table.weight[first:][torch.arange(positions) % known]
    embeddings.position_embeddings = longer
    rows = torch.arange(first + positions)[None]
    for name, values in (("position_ids", rows), ("token_type_ids", torch.zeros_like(rows))):
        if hasattr(embeddings, name):
            embeddings.register_buffer(name, values, persistent=False)
    backbone.config.max_position_embeddings = first + positions  # type: ignore[union-attr]
    tokenizer.source.model_max_length = positions
