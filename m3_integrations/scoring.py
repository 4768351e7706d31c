"""The scores of BGE-M3, computed from vectors: one query against many documents, nothing encoded, nothing padded."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from m3_integrations.vectors import (
    FloatArray,
    IntArray,
    LexicalRows,
    LexicalWeights,
    M3Scores,
    M3Vectors,
    Mode,
    ModeWeights,
    MultiVectorRows,
)

_BLOCK_SIZE = 1 << 22
"""How many token-to-token similarities `max_sim` holds at a time: 16 MB of float32."""


def dense_scores(query: FloatArray, documents: FloatArray) -> FloatArray:
    """Give the inner products of one dense vector with n others: cosines, since they have unit length.

    Args:
        query: (d,) float32.
        documents: (n, d) float32.

    Returns:
        (n,) float32 in [-1, 1].
    """
    return documents @ query


def lexical_scores(query: LexicalWeights, documents: LexicalRows) -> FloatArray:
    """Give the lexical score of one text with n others: the weights' products summed over shared tokens.

    Source: paper, section 3.2; equal to FlagEmbedding's `compute_lexical_matching_score`, summed in float64.

    Returns:
        (n,) float32, 0 or more and not bounded.
    """
    if not len(query) or not len(documents.indices):
        return np.zeros(len(documents), dtype=np.float32)
    nearest = np.minimum(np.searchsorted(query.indices, documents.indices), len(query) - 1)
    shared = np.flatnonzero(query.indices[nearest] == documents.indices)
    products = query.values[nearest[shared]].astype(np.float64) * documents.values[shared]
    rows = np.searchsorted(documents.offsets, shared, side="right") - 1
    return np.bincount(rows, weights=products, minlength=len(documents)).astype(np.float32)


def max_sim(query: FloatArray, documents: MultiVectorRows) -> FloatArray:
    """Give BGE-M3's late-interaction score: the mean over query tokens of the best inner product with a document token.

    Source: paper, section 3.2; equal to FlagEmbedding's `colbert_score` of each pair alone. FlagEmbedding's batched
    `compute_score` lets a query token whose best similarity is negative score 0 when the document was padded; here
    documents are never padded, so a pair's score does not depend on its neighbours.

    Args:
        query: (query tokens, d) float32, unit length.
        documents: n rows of (tokens, d) float32, unit length.

    Returns:
        (n,) float32 in [-1, 1]; 0 where either side has no tokens.
    """
    scores = np.zeros(len(documents), dtype=np.float32)
    filled = np.flatnonzero(documents.lengths)
    if not len(query) or not len(filled):
        return scores
    for block in _blocks(documents, filled, max(_BLOCK_SIZE // len(query), 1)):
        start = documents.offsets[block[0]]
        similarities = documents.flat[start : documents.offsets[block[-1] + 1]] @ query.T  # (tokens, query tokens)
        best = np.maximum.reduceat(similarities, documents.offsets[block] - start, axis=0)  # (documents, query tokens)
        scores[block] = best.mean(axis=1)
    return scores


def _blocks(documents: MultiVectorRows, filled: IntArray, max_tokens: int) -> list[IntArray]:
    """Cut the rows that have tokens into runs of about max_tokens; a longer row is a run of its own."""
    ends = documents.offsets[filled + 1]
    cuts, start = [0], 0
    while start < len(filled):
        limit = documents.offsets[filled[start]] + max_tokens
        start = max(int(np.searchsorted(ends, limit, side="right")), start + 1)
        cuts.append(start)
    return [filled[a:b] for a, b in pairwise(cuts)]


def combine(scores: Mapping[Mode, FloatArray], weights: ModeWeights) -> FloatArray:
    """Give the weighted mean of the modes' scores, as FlagEmbedding's `compute_score` does.

    Modes that are absent from scores are dropped before the weights are divided by their sum.

    Returns:
        (n,) float32.
    """
    total = sum(weight * scores[mode].astype(np.float64) for mode, weight in weights.normalized(scores).items())
    return np.asarray(total, dtype=np.float32)


def score_vectors(query: M3Vectors, documents: M3Vectors, weights: ModeWeights | None = None) -> M3Scores:
    """Score one query against n documents in every mode that both have.

    Args:
        query: The vectors of one text.
        documents: The vectors of n texts.
        weights: How the modes count in `combined`; equal if None.

    Raises:
        ValueError: If query holds other than one text, or the two share no mode.
    """
    if len(query) != 1:
        raise ValueError(f"query must hold one text, got {len(query)}")
    scores: dict[Mode, FloatArray] = {}
    modes = [mode for mode in query.modes if mode in documents.modes]
    if "dense" in modes:
        scores["dense"] = dense_scores(query.dense[0], documents.dense)
    if "lexical" in modes:
        scores["lexical"] = lexical_scores(query.lexical[0], documents.lexical)
    if "multi_vector" in modes:
        scores["multi_vector"] = max_sim(query.multi_vector[0], documents.multi_vector)
    return M3Scores(combined=combine(scores, weights or ModeWeights()), **scores)


def score_pairs(
    queries: M3Vectors,
    documents: M3Vectors,
    query_rows: IntArray,
    document_rows: IntArray,
    weights: ModeWeights | None = None,
) -> M3Scores:
    """Score chosen pairs of rows; only these are computed, never every query against every document.

    Args:
        queries: The vectors of any number of queries.
        documents: The vectors of any number of documents.
        query_rows: (n,) the query of every pair.
        document_rows: (n,) its document.
        weights: How the modes count in `combined`; equal if None.

    Returns:
        The n scores, in the order of the pairs.
    """
    weights = weights or ModeWeights()
    modes = [mode for mode in queries.modes if mode in documents.modes]
    scores = {mode: np.zeros(len(query_rows), dtype=np.float32) for mode in modes}
    order = np.argsort(query_rows, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(query_rows[order])) + 1):
        if not len(pairs):
            continue
        rows = document_rows[pairs]
        # Reranking asks for every document once and in order: then nothing needs to be copied.
        picked = documents if np.array_equal(rows, np.arange(len(documents))) else documents.take(rows)
        scored = score_vectors(queries[int(query_rows[pairs[0]])], picked, weights)
        for mode in modes:
            scores[mode][pairs] = getattr(scored, mode)
    return M3Scores(combined=combine(scores, weights), **scores)
