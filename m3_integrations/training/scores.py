"""The three scores of every query with every passage of a batch, with gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TextViews:
    """The three views of n texts, padded to the longest.

    Attributes:
        dense: (n, d), unit length.
        token_ids: (n, tokens) int64.
        token_weights: (n, tokens), 0 or more; 0 at padding and at every id that carries no lexical weight.
        token_vectors: (n, tokens, d), unit length; what stands at padding is not read.
        vector_mask: (n, tokens) bool: which tokens have a vector. At least one of every text.
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

    A token that a text repeats counts once, with its highest weight. Only the ids that occur in a query get a column,
    so memory is texts times distinct query tokens: nothing here has the size of the vocabulary.
    """
    columns = torch.unique(queries.token_ids)  # (distinct,), rising
    return _highest_weights(queries, columns) @ _highest_weights(passages, columns).T


def _highest_weights(texts: TextViews, columns: torch.Tensor) -> torch.Tensor:
    """Return the highest weight of every text for every id in columns: (n, distinct), 0 where it lacks the id."""
    places = torch.searchsorted(columns, texts.token_ids).clamp(max=len(columns) - 1)
    is_shared = columns[places] == texts.token_ids
    weights = torch.where(is_shared, texts.token_weights, 0.0)
    empty = weights.new_zeros(len(weights), len(columns))
    return empty.scatter_reduce(1, places, weights, reduce="amax", include_self=True)


def multi_vector_scores(queries: TextViews, passages: TextViews) -> torch.Tensor:
    """Return the mean, over a query's tokens, of the best inner product with a passage token: (queries, passages).

    Padding of a passage never wins, even where every real product is negative.
    """
    products = torch.einsum("qid,pjd->qpij", queries.token_vectors, passages.token_vectors)
    best = products.masked_fill(~passages.vector_mask[None, :, None, :], -torch.inf).amax(dim=-1)  # (q, p, tokens)
    best = best.masked_fill(~queries.vector_mask[:, None, :], 0.0)
    counts = queries.vector_mask.sum(dim=1)
    return best.sum(dim=-1) / counts[:, None]
