"""BGE-M3's scores, computed from vectors without encoding and without padding.

Long because every formula is here once: three modes, pairs, and the best of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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
    offsets_of,
)

_BLOCK_SIZE = 1 << 22
"""The most token-to-token similarities of one query in memory at a time: 16 MB of float32."""

_UNTHREADED_SIZE = 1 << 19
"""OpenBLAS computes products of up to this many multiplications in the calling thread, and wakes others for more."""

_THREADED_SIZE = 1 << 27
"""From this many multiplications on, a millisecond of work, threads save more time than they cost."""

_ROUNDING = 1e-6
"""Scores of the same vectors differ by less between stores."""

_MIN_STEP = 8
"""Products of fewer rows are slow, so a product is not cut into smaller pieces, as for a query of 65 tokens."""


def dense_scores(query: FloatArray, documents: FloatArray) -> FloatArray:
    """Return the inner products of one dense vector with n others. They are cosines if all have unit length.

    Args:
        query: (d,) float32.
        documents: (n, d) float32.

    Returns:
        (n,) float32 in [-1, 1], up to rounding.
    """
    return documents @ query


def lexical_scores(query: LexicalWeights, documents: LexicalRows) -> FloatArray:
    """Return the lexical score of one text with n others: the sum over shared tokens of the products of their weights.

    Source: paper, section 3.2; equal to FlagEmbedding's `compute_lexical_matching_score`, summed in float64.

    Returns:
        (n,) float32, 0 or more, no upper bound.
    """
    if not len(query) or not len(documents.indices):
        return np.zeros(len(documents), dtype=np.float32)
    return _sum_products(_weights_of(documents.indices, query), documents)


def _weights_of(indices: NDArray[np.int32], text: LexicalWeights) -> FloatArray:
    """Return a text's weights for these token ids: (tokens,) float32, 0 for a token that the text does not have."""
    nearest = np.minimum(np.searchsorted(text.indices, indices), len(text) - 1)
    return np.where(text.indices[nearest] == indices, text.values[nearest], np.float32(0))


def _sum_products(weights: FloatArray, texts: LexicalRows) -> FloatArray:
    """Return for every text the sum of the given weights times its own: (n,) float32, summed in float64.

    Args:
        weights: (tokens,) float32, one for every token of the texts.
        texts: n texts.
    """
    shared = np.flatnonzero(weights)
    products = weights[shared].astype(np.float64) * texts.values[shared]
    rows = np.searchsorted(texts.offsets, shared, side="right") - 1
    return np.bincount(rows, weights=products, minlength=len(texts)).astype(np.float32)


def max_sim(query: FloatArray, documents: MultiVectorRows, rows: IntArray | None = None) -> FloatArray:
    """Return for every document the mean over query tokens of the best inner product with one of its tokens.

    Source: paper, section 3.2; equal to FlagEmbedding's `colbert_score` of each pair alone. FlagEmbedding's batched
    `compute_score` pads documents with zeros, so a query token whose best similarity is negative scores 0 there. Here
    nothing is padded: a pair's score does not depend on the other pairs.

    Args:
        query: (query tokens, d) float32, unit length.
        documents: n rows of (tokens, d) float32, unit length.
        rows: (m,) which documents to score; all if None. They are not copied.

    Returns:
        (n,) or (m,) float32 in [-1, 1], up to rounding; 0 where either side has no tokens.
    """
    rows = np.arange(len(documents)) if rows is None else rows
    queries = MultiVectorRows(offsets_of([len(query)]), query)
    return _max_sim_pairs(queries, documents, np.zeros(len(rows), dtype=np.int64), rows)


def combine(scores: Mapping[Mode, FloatArray], weights: ModeWeights) -> FloatArray:
    """Return the weighted mean of the modes' scores, as FlagEmbedding's `compute_score` does.

    Modes that are absent from scores are dropped before the weights are divided by their sum.

    Returns:
        (n,) float32, -1 or more. At most 1 without a lexical score or with lexical weight 0; else no upper bound.
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
        ValueError: If query does not hold exactly one text, or a mode was not computed.
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
        ValueError: If query does not hold exactly one text, or the two share no mode.
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
    """Score chosen pairs of rows. Other combinations of queries and documents are not computed.

    Args:
        queries: The vectors of any number of queries.
        documents: The vectors of any number of documents.
        query_rows: (n,) the query of every pair.
        document_rows: (n,) its document.
        weights: How the modes count in `combined`; equal if None.

    Returns:
        The n scores, in the order of the pairs.
    """
    scores: dict[Mode, FloatArray] = {}
    modes = [mode for mode in queries.modes if mode in documents.modes]
    if "dense" in modes:
        # float64: the rounding of a float32 product depends on its place in the matrix, so equal pairs would differ.
        of_query, of_document = queries.dense[query_rows], documents.dense[document_rows]
        products = np.einsum("ij,ij->i", of_query, of_document, dtype=np.float64, casting="safe")
        scores["dense"] = products.astype(np.float32)
    if "lexical" in modes:
        scores["lexical"] = _lexical_pairs(queries.lexical, documents.lexical, query_rows, document_rows)
    if "multi_vector" in modes:
        scores["multi_vector"] = _max_sim_pairs(queries.multi_vector, documents.multi_vector, query_rows, document_rows)
    return M3Scores(combined=combine(scores, weights or ModeWeights()), **scores)


def _lexical_pairs(
    queries: LexicalRows, documents: LexicalRows, query_rows: IntArray, document_rows: IntArray
) -> FloatArray:
    """Return `lexical_scores` of pairs of rows. The score is symmetric: the loop runs over the side with fewer rows."""
    one, many, of_one, of_many = queries, documents, query_rows, document_rows
    if len(np.unique(document_rows)) < len(np.unique(query_rows)):
        one, many, of_one, of_many = documents, queries, document_rows, query_rows
    order = np.argsort(of_one, kind="stable")
    texts = many.take(of_many[order])
    weights = np.zeros(len(texts.indices), dtype=np.float32)
    for first, last in _parts(np.diff(of_one[order], prepend=-1) != 0):
        text, tokens = one[int(of_one[order[first]])], slice(texts.offsets[first], texts.offsets[last])
        if len(text):
            weights[tokens] = _weights_of(texts.indices[tokens], text)
    scores = np.empty(len(query_rows), dtype=np.float32)
    scores[order] = _sum_products(weights, texts)
    return scores


def _max_sim_pairs(
    queries: MultiVectorRows, documents: MultiVectorRows, query_rows: IntArray, document_rows: IntArray
) -> FloatArray:
    """Return `max_sim` of pairs of rows, in the way that needs fewer matrix products.

    A product multiplies either one query and adjacent documents, or one document and all queries paired with it.
    """
    scores = np.zeros(len(query_rows), dtype=np.float32)
    filled = np.flatnonzero((queries.lengths[query_rows] > 0) & (documents.lengths[document_rows] > 0))
    order = filled[np.lexsort((document_rows[filled], query_rows[filled]))]
    begins_block, begins_product = _begins(queries, documents, query_rows[order], document_rows[order])
    if np.count_nonzero(begins_product) <= len(np.unique(document_rows[order])):
        for first, last in _parts(begins_block):
            query, rows = queries[int(query_rows[order[first]])], document_rows[order[first:last]]
            starts, ends = documents.offsets[rows].tolist(), documents.offsets[rows + 1].tolist()
            offsets = offsets_of(documents.lengths[rows])
            similarities = np.empty((offsets[-1], len(query)), dtype=np.float32)
            of_product = np.split(similarities, offsets[np.flatnonzero(begins_product[first:last])[1:]])
            for (i, j), out in zip(_parts(begins_product[first:last]), of_product, strict=True):
                _multiply(documents.flat[starts[i] : ends[j - 1]], query, out)
            best = np.maximum.reduceat(similarities, offsets[:-1], axis=0)  # (rows, query tokens)
            scores[order[first:last]] = best.mean(axis=1)
            del similarities, of_product, out  # before the next block's are made
        return scores
    order = filled[np.argsort(document_rows[filled], kind="stable")]
    for first, last in _parts(np.diff(document_rows[order], prepend=-1) != 0):
        document, of_pairs = documents[int(document_rows[order[first]])], queries.take(query_rows[order[first:last]])
        best = (document @ of_pairs.flat.T).max(axis=0)  # (tokens of all queries,)
        sums = np.add.reduceat(best, of_pairs.offsets[:-1], dtype=np.float64)
        scores[order[first:last]] = sums / of_pairs.lengths
    return scores


def _multiply(tokens: FloatArray, query: FloatArray, out: FloatArray) -> None:
    """Write `tokens @ query.T`. A medium product is computed in pieces for which OpenBLAS wakes no threads.

    On busy cores the call waits for woken threads: 200 documents of 40 tokens took 58 ms of CPU instead of 5.

    Args:
        tokens: (m, d) float32.
        query: (n, d) float32.
        out: (m, n) float32.
    """
    step = _UNTHREADED_SIZE // query.size
    if len(tokens) <= step or step < _MIN_STEP or len(tokens) * query.size >= _THREADED_SIZE:
        np.matmul(tokens, query.T, out=out)
        return
    for first in range(0, len(tokens), step):
        np.matmul(tokens[first : first + step], query.T, out=out[first : first + step])


def _begins(
    queries: MultiVectorRows, documents: MultiVectorRows, query_rows: IntArray, document_rows: IntArray
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return at which pairs a block begins, and at which a matrix product, (n,) bool each.

    A block begins where the query changes, and after about `_BLOCK_SIZE` similarities. A product begins there, and
    where the document is not the next one after the previous pair's.

    Args:
        queries: Those of all pairs.
        documents: Those of all pairs.
        query_rows: (n,) the query of every pair; rising.
        document_rows: (n,) its document; rising among the pairs of a query.
    """
    starts, ends = documents.offsets[document_rows], documents.offsets[document_rows + 1]
    block = np.ones(len(starts), dtype=np.bool_)
    block[1:] = query_rows[1:] != query_rows[:-1]
    sizes = np.cumsum((ends - starts) * queries.lengths[query_rows])
    before = np.maximum.accumulate(np.where(block, np.concatenate([[0], sizes[:-1]]), 0))
    number = (sizes - before - 1) // _BLOCK_SIZE
    block[1:] |= number[1:] != number[:-1]
    product = block.copy()
    product[1:] |= starts[1:] != ends[:-1]
    return block, product


def _parts(begins: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Return (first, end) of every part, given at which elements a part begins; the first element must begin one."""
    return pairwise([*np.flatnonzero(begins).tolist(), len(begins)])


def top_rows(scores: FloatArray, n: int) -> IntArray:
    """Return the positions of the n highest scores, best first; equal scores keep their order."""
    if n >= len(scores):
        return np.argsort(-scores, kind="stable")
    if n < 1:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(scores, len(scores) - n)[len(scores) - n]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)[: n - len(above)]
    chosen = np.sort(np.concatenate([above, level]))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def diverse_rows(relevance: FloatArray, documents: FloatArray, n: int, trade_off: float) -> list[int]:
    """Return the positions of n documents by maximal marginal relevance, in the order in which they are chosen.

    The next document is the one with the highest trade_off · relevance - (1 - trade_off) · (highest cosine with a
    document chosen before); of equal ones the first. Scores that differ by less than 1e-6 count as equal: stores
    round differently, and all scores are 0 if trade_off is 0.5 and the first document has the query's vector.
    Source: Carbonell and Goldstein, 1998, section 2.

    Args:
        relevance: (m,) float32, the cosine of each document with the query.
        documents: (m, d) float32, their dense vectors, unit length.
        n: How many; all if there are fewer.
        trade_off: From 0 (only difference counts) to 1 (only relevance counts).
    """
    chosen: list[int] = []
    likeness = np.zeros(len(documents), dtype=np.float32)  # no document is chosen yet
    open_ = np.ones(len(documents), dtype=bool)
    while len(chosen) < min(n, len(documents)):
        scores = np.where(open_, trade_off * relevance - (1 - trade_off) * likeness, -np.inf)
        best = int(np.argmax(scores > scores.max() - _ROUNDING))
        chosen.append(best)
        open_[best] = False
        alike = dense_scores(documents[best], documents)
        likeness = alike if len(chosen) == 1 else np.maximum(likeness, alike)
    return chosen
