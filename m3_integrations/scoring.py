"""The scores of BGE-M3, computed from vectors: one query against many documents, nothing encoded, nothing padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def max_sim(query: FloatArray, documents: MultiVectorRows, rows: IntArray | None = None) -> FloatArray:
    """Give BGE-M3's late-interaction score: the mean over query tokens of the best inner product with a document token.

    Source: paper, section 3.2; equal to FlagEmbedding's `colbert_score` of each pair alone. FlagEmbedding's batched
    `compute_score` lets a query token whose best similarity is negative score 0 when the document was padded; here
    documents are never padded, so a pair's score does not depend on its neighbours.

    Args:
        query: (query tokens, d) float32, unit length.
        documents: n rows of (tokens, d) float32, unit length.
        rows: (m,) which documents to score; all if None. Chosen documents are read where they lie, not copied.

    Returns:
        (n,) or (m,) float32 in [-1, 1]; 0 where either side has no tokens.
    """
    rows = np.arange(len(documents)) if rows is None else rows
    scores = np.zeros(len(rows), dtype=np.float32)
    filled = np.flatnonzero(documents.lengths[rows])
    if not len(query) or not len(filled):
        return scores
    # In the order of the array, neighbours together: one product for each run of neighbours.
    filled = filled[np.argsort(rows[filled], kind="stable")]
    for places in _runs(documents.offsets, rows[filled], max(_BLOCK_SIZE // len(query), 1)):
        block = rows[filled[places]]
        start = documents.offsets[block[0]]
        similarities = documents.flat[start : documents.offsets[block[-1] + 1]] @ query.T  # (tokens, query tokens)
        best = np.maximum.reduceat(similarities, documents.offsets[block] - start, axis=0)  # (documents, query tokens)
        scores[filled[places]] = best.mean(axis=1)
    return scores


def _runs(offsets: IntArray, rows: IntArray, max_tokens: int) -> list[slice]:
    """Cut rising rows that have tokens into runs without a gap, of about max_tokens or of one longer row."""
    runs, first = [], 0
    for i in range(1, len(rows) + 1):
        # A gap is other rows' tokens in between; a row chosen twice begins a run too, as its tokens come again.
        if (
            i == len(rows)
            or offsets[rows[i]] != offsets[rows[i - 1] + 1]
            or offsets[rows[i] + 1] - offsets[rows[first]] > max_tokens
        ):
            runs.append(slice(first, i))
            first = i
    return runs


def combine(scores: Mapping[Mode, FloatArray], weights: ModeWeights) -> FloatArray:
    """Give the weighted mean of the modes' scores, as FlagEmbedding's `compute_score` does.

    Modes that are absent from scores are dropped before the weights are divided by their sum.

    Returns:
        (n,) float32.
    """
    total = sum(weight * scores[mode].astype(np.float64) for mode, weight in weights.normalized(scores).items())
    return np.asarray(total, dtype=np.float32)


def raw_scores(
    query: M3Vectors, documents: M3Vectors, modes: Sequence[Mode], rows: IntArray | None = None
) -> dict[Mode, FloatArray]:
    """Score one query against documents in each of these modes.

    Args:
        query: The vectors of one text.
        documents: The vectors of n texts.
        modes: Modes that both have.
        rows: (m,) which documents to score; all if None.

    Returns:
        (n,) or (m,) float32 per mode.

    Raises:
        ValueError: If query holds other than one text, or a mode was not computed.
    """
    if len(query) != 1:
        raise ValueError(f"query must hold one text, got {len(query)}")
    scores: dict[Mode, FloatArray] = {}
    if "dense" in modes:
        scores["dense"] = dense_scores(query.dense[0], documents.dense if rows is None else documents.dense[rows])
    if "lexical" in modes:
        lexical = documents.lexical if rows is None else documents.lexical.take(rows)
        scores["lexical"] = lexical_scores(query.lexical[0], lexical)
    if "multi_vector" in modes:
        scores["multi_vector"] = max_sim(query.multi_vector[0], documents.multi_vector, rows)
    return scores


def score_vectors(query: M3Vectors, documents: M3Vectors, weights: ModeWeights | None = None) -> M3Scores:
    """Score one query against n documents in every mode that both have.

    Args:
        query: The vectors of one text.
        documents: The vectors of n texts.
        weights: How the modes count in `combined`; equal if None.

    Raises:
        ValueError: If query holds other than one text, or the two share no mode.
    """
    scores = raw_scores(query, documents, [mode for mode in query.modes if mode in documents.modes])
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
    modes = [mode for mode in queries.modes if mode in documents.modes]
    scores = {mode: np.zeros(len(query_rows), dtype=np.float32) for mode in modes}
    for query in np.unique(query_rows):
        pairs = np.flatnonzero(query_rows == query)
        for mode, values in raw_scores(queries[int(query)], documents, modes, document_rows[pairs]).items():
            scores[mode][pairs] = values
    return M3Scores(combined=combine(scores, weights or ModeWeights()), **scores)


def top_rows(scores: FloatArray, n: int) -> IntArray:
    """Give the positions of the n highest scores, best first; equal scores keep their order."""
    if n >= len(scores):
        return np.argsort(-scores, kind="stable")
    if n < 1:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(scores, len(scores) - n)[len(scores) - n]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)[: n - len(above)]
    chosen = np.sort(np.concatenate([above, level]))
    return chosen[np.argsort(-scores[chosen], kind="stable")]
