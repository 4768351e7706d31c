"""MaxSim's large part on the network's device: the best match of every query token in each of many documents."""

from __future__ import annotations

import torch


def best_matches(query: torch.Tensor, flat: torch.Tensor, rows: torch.Tensor, n: int) -> torch.Tensor:
    """Give the largest inner product of every query token with a token of each of n documents.

    Args:
        query: (query tokens, d), any floating dtype; the products are float32.
        flat: (tokens, d), the documents' tokens, in any order.
        rows: (tokens,) int64, which document a token belongs to.
        n: How many documents there are.

    Returns:
        (n, query tokens) float32; -inf for a document without tokens.
    """
    similarities = flat.float() @ query.float().T  # (tokens, query tokens)
    best = similarities.new_full((n, len(query)), -torch.inf)
    return best.scatter_reduce_(0, rows[:, None].expand_as(similarities), similarities, "amax")
