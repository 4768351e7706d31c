"""Token pooling: fewer token vectors for a text, each the mean of a run of neighbours.

MCLS and the other poolings of the dense vector are in `model/network.py`.
"""

from __future__ import annotations

import numpy as np

from m3_integrations.vectors.arrays import FloatArray, IntArray, MultiVectorRows, offsets_of


def pooled_lengths(lengths: IntArray, factor: IntArray, limit: int) -> IntArray:
    """Return how many vectors each text keeps: its tokens divided by the factor, rounded up, and at most the limit.

    Args:
        lengths: (n,) tokens of every text.
        factor: (n,) how many tokens share a vector, at least 1.
        limit: The most vectors of a text.

    Returns:
        (n,) int64.
    """
    return np.asarray(np.minimum(-(-lengths // factor), limit), dtype=np.int64)


def group_starts(n_tokens: int, n_groups: int) -> IntArray:
    """Return the first token of every group when tokens are divided into groups whose sizes differ by at most one.

    Returns:
        (n_groups,) int64, rising from 0.
    """
    return np.arange(n_groups, dtype=np.int64) * n_tokens // max(n_groups, 1)


def pool_tokens(rows: MultiVectorRows, lengths: IntArray) -> MultiVectorRows:
    """Return `lengths[i]` vectors for text i: the means of runs of neighbouring tokens, scaled to unit length.

    Source: the sequential pooling of Clavié, Chaffin and Adams (2024), "Reducing the footprint of multi-vector
    retrieval with minimal performance impact via token pooling". Their other methods pool the most similar tokens.
    Neighbours need no clustering, and an explanation can name the tokens behind a vector.

    Args:
        rows: The token vectors of n texts.
        lengths: (n,) vectors of every text: from 1 to its number of tokens, or 0 if it has no tokens.
    """
    offsets = offsets_of(lengths)
    pooled = np.empty((offsets[-1], rows.flat.shape[1]), np.float32)
    for i, n in enumerate(lengths.tolist()):
        tokens = rows.flat[rows.offsets[i] : rows.offsets[i + 1]]
        pooled[offsets[i] : offsets[i + 1]] = tokens if len(tokens) == n else _means(tokens, n)
    return MultiVectorRows(offsets, pooled)


def _means(tokens: FloatArray, n: int) -> FloatArray:
    sums = np.add.reduceat(tokens.astype(np.float64), group_starts(len(tokens), n), axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    # Vectors whose sum is 0 have no direction. They become 0, which scores 0 with every query.
    means = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
    return np.asarray(means, dtype=np.float32)
