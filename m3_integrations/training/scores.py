"""The three scores of every query with every passage of a batch, with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch.utils.checkpoint import checkpoint

_PRODUCTS_AT_ONCE: Final = 2**22
"""The most inner products that MaxSim keeps (16 MiB in float32). Those of 64 queries of 32 tokens with 64 passages of
2,048 tokens would take 1 GiB, and as much again for their gradient."""


@dataclass(frozen=True, slots=True)
class TextViews:
    """The three views of n texts, padded to the longest.

    Attributes:
        dense: (n, d), unit length.
        token_ids: (n, tokens) int64.
        token_weights: (n, tokens), 0 or more; 0 at padding and at every id that carries no lexical weight.
        token_vectors: (n, tokens, d), unit length; values at padding are not used.
        vector_mask: (n, tokens) bool, whether the token has a vector. Every text has at least one.
    """

    dense: torch.Tensor
    token_ids: torch.Tensor
    token_weights: torch.Tensor
    token_vectors: torch.Tensor
    vector_mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class BatchScores:
    """Scores of every query with every passage, each (queries, passages), not divided by the temperature."""

    dense: torch.Tensor
    lexical: torch.Tensor
    multi_vector: torch.Tensor


def score_batch(queries: TextViews, passages: TextViews) -> BatchScores:
    """Score every query with every passage in the three modes (paper, section 3.2)."""
    return BatchScores(
        dense=queries.dense @ passages.dense.T,
        lexical=lexical_scores(queries, passages),
        multi_vector=multi_vector_scores(queries, passages),
    )


def lexical_scores(queries: TextViews, passages: TextViews) -> torch.Tensor:
    """Return the sum, over tokens that both texts have, of the product of their weights: (queries, passages).

    A token that a text repeats counts once, with its highest weight. Only ids that occur in a query get a column, so
    the memory is texts times distinct query tokens, not texts times vocabulary.
    """
    columns = torch.unique(queries.token_ids)  # (distinct,), ascending
    return _highest_weights(queries, columns) @ _highest_weights(passages, columns).T


def _highest_weights(texts: TextViews, columns: torch.Tensor) -> torch.Tensor:
    """Return the highest weight of every id in columns in every text: (n, distinct), 0 if the text lacks the id."""
    places = torch.searchsorted(columns, texts.token_ids).clamp(max=len(columns) - 1)
    is_shared = columns[places] == texts.token_ids
    weights = torch.where(is_shared, texts.token_weights, 0.0)
    empty = weights.new_zeros(len(weights), len(columns))
    return empty.scatter_reduce(1, places, weights, reduce="amax", include_self=True)


def multi_vector_scores(queries: TextViews, passages: TextViews) -> torch.Tensor:
    """Return the mean, over a query's tokens, of the best inner product with a passage token: (queries, passages).

    Padding of a passage is never the best, even if every real product is negative. If all products would take too much
    memory, they are computed for some passages at a time, and again for the gradient.
    """
    of_passage = queries.vector_mask.numel() * passages.vector_mask.shape[1]
    size = max(1, _PRODUCTS_AT_ONCE // of_passage)
    parts = zip(torch.split(passages.token_vectors, size), torch.split(passages.vector_mask, size), strict=True)
    query = queries.token_vectors, queries.vector_mask
    if size >= len(passages.vector_mask):
        return _max_sim(*query, passages.token_vectors, passages.vector_mask)
    return torch.cat([_recompute(*query, vectors, mask) for vectors, mask in parts], dim=1)


def _recompute(*arguments: torch.Tensor) -> torch.Tensor:
    scores: torch.Tensor = checkpoint(_max_sim, *arguments, use_reentrant=False, preserve_rng_state=False)
    return scores


def _max_sim(
    query_vectors: torch.Tensor, query_mask: torch.Tensor, vectors: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    products = torch.einsum("qid,pjd->qpij", query_vectors, vectors)
    best = products.masked_fill(~mask[None, :, None, :], -torch.inf).amax(dim=-1)  # (q, p, tokens)
    best = best.masked_fill(~query_mask[:, None, :], 0.0)
    return best.sum(dim=-1) / query_mask.sum(dim=1)[:, None]


def join_views(parts: Sequence[TextViews]) -> TextViews:
    """Return the views of the texts of all parts, one after the other, padded to the longest of all."""
    longest = max(part.token_ids.shape[1] for part in parts)
    return TextViews(
        dense=torch.cat([part.dense for part in parts]),
        token_ids=torch.cat([_pad(part.token_ids, longest) for part in parts]),
        token_weights=torch.cat([_pad(part.token_weights, longest) for part in parts]),
        token_vectors=torch.cat([_pad(part.token_vectors, longest) for part in parts]),
        vector_mask=torch.cat([_pad(part.vector_mask, longest) for part in parts]),
    )


def _pad(values: torch.Tensor, length: int) -> torch.Tensor:
    """Return values of shape (n, tokens, ...) padded with zeros on the right: (n, length, ...)."""
    return F.pad(values, (0, 0) * (values.dim() - 2) + (0, length - values.shape[1]))
