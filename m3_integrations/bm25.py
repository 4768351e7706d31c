"""BM25 over the model's own tokens: the paper's baseline, and a further leg for collections in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from rank_bm25 import BM25Okapi

from m3_integrations.scoring import top_rows
from m3_integrations.vectors import FloatArray, IntArray


class Bm25Index:
    """Okapi BM25 (k1 = 1.5, b = 0.75: rank-bm25's defaults) over tokenized texts.

    Args:
        ids: The id of every text.
        tokens: Its tokens.

    Raises:
        ValueError: If there are not as many ids as texts.
    """

    def __init__(self, ids: Sequence[str], tokens: Sequence[Sequence[str]]) -> None:
        if len(ids) != len(tokens):
            raise ValueError(f"{len(ids)} ids for {len(tokens)} texts")
        self._ids = list(ids)
        # rank-bm25 divides by the number of tokens, so a collection without any has no postings.
        self._postings = _postings(BM25Okapi(tokens)) if any(tokens) else {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._ids)} texts, {len(self._postings)} tokens)"

    def scores(self, query: Sequence[str]) -> FloatArray:
        """Give the BM25 score of every text: (n,) float32, 0 where no token is shared."""
        total = np.zeros(len(self._ids))
        for token in query:
            if token in self._postings:
                rows, parts = self._postings[token]
                total[rows] += parts
        return total.astype(np.float32)

    def top(self, query: Sequence[str], n: int, *, among: Collection[str] | None = None) -> list[tuple[str, float]]:
        """Give the n best texts that share a token with the query, best first; equal scores keep their order.

        Args:
            query: Its tokens.
            n: How many at most.
            among: Ids that may be given; all if None. Frequencies are counted over the whole collection in any case.
        """
        scores = self.scores(query)
        # A score of 0 means that no token is shared: idf is never 0 (rank-bm25 replaces what is not positive).
        eligible = np.flatnonzero(scores)
        if among is not None:
            eligible = np.array([row for row in eligible if self._ids[row] in among], dtype=np.int64)
        best = eligible[top_rows(scores[eligible], n)]
        return [(self._ids[row], float(scores[row])) for row in best]


def _postings(index: BM25Okapi) -> dict[str, tuple[IntArray, NDArray[np.float64]]]:
    """Give, for every token, the texts that have it and what it adds to their scores.

    rank-bm25's `get_scores` visits every text for every token of a query; this reads only those that have it, and gives
    the same float64 numbers.
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
