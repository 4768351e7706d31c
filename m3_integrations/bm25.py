"""BM25 over the model's own tokens: the paper's baseline, and a further leg for collections in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from rank_bm25 import BM25Okapi

from m3_integrations.scoring import top_rows
from m3_integrations.vectors import FloatArray


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
        # rank-bm25 divides by the number of tokens, so a collection without any has no index.
        self._index = BM25Okapi(tokens) if any(tokens) else None

    def scores(self, query: Sequence[str]) -> FloatArray:
        """Give the BM25 score of every text: (n,) float32, 0 where no token is shared."""
        if self._index is None:
            return np.zeros(len(self._ids), dtype=np.float32)
        return np.asarray(self._index.get_scores(list(query)), dtype=np.float32)

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
