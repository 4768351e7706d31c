"""BM25 as rank-bm25 computes it: the baseline of the tables. Searches use another one, `m3_integrations.bm25`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rank_bm25 import BM25Okapi

from m3_integrations.vectors import FloatArray, IntArray


class OkapiIndex:
    """Okapi BM25 (k1 = 1.5, b = 0.75: rank-bm25's defaults) over tokenized texts.

    The idf of a token is 0 if half of the texts have it. If more than half have it, its idf is a quarter of the average
    idf, which is negative in some small collections.

    Args:
        texts: The tokens of every text.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._n_texts = len(texts)
        # rank-bm25 divides by the number of tokens, so it cannot take a collection without tokens.
        self._postings = _postings(BM25Okapi(texts)) if any(texts) else {}

    def scores(self, query: Sequence[str]) -> FloatArray:
        """Return the score of every text: (n,) float32, 0 for a text that shares no token with the query."""
        total = np.zeros(self._n_texts)
        for token in query:
            if token in self._postings:
                rows, parts = self._postings[token]
                total[rows] += parts
        return total.astype(np.float32)


def _postings(index: BM25Okapi) -> dict[str, tuple[IntArray, NDArray[np.float64]]]:
    """Return for every token the rows of the texts that have it and its part of their scores.

    rank-bm25's `get_scores` visits every text for every token of a query. With these postings only the texts that have
    the token are visited; the float64 numbers are the same.
    """
    tokens = {token: i for i, token in enumerate(index.idf)}
    lengths = [len(frequencies) for frequencies in index.doc_freqs]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    token_of = np.array([tokens[token] for frequencies in index.doc_freqs for token in frequencies], dtype=np.int64)
    counts = np.array([count for frequencies in index.doc_freqs for count in frequencies.values()], dtype=np.float64)
    norms = index.k1 * (1 - index.b + index.b * np.array(index.doc_len) / index.avgdl)
    parts = np.array(list(index.idf.values()))[token_of] * (counts * (index.k1 + 1) / (counts + norms[rows]))
    order = np.argsort(token_of, kind="stable")
    ends = np.cumsum(np.bincount(token_of, minlength=len(tokens)))[:-1]
    return dict(zip(tokens, zip(np.split(rows[order], ends), np.split(parts[order], ends), strict=True), strict=True))
