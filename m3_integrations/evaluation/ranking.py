"""Rankings of a corpus: the best documents by each first stage, and exact scores of chosen candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import sparse

from m3_integrations.evaluation.encoding import Block
from m3_integrations.scoring import score_pairs, top_rows
from m3_integrations.vectors import FloatArray, IntArray, LexicalRows, M3Vectors, Mode

_BLOCK_DOCUMENTS: Final = 16_384
"""The documents that the first stages score at a time: for BGE-M3 134 MB of dense vectors in float64."""

_QUERY_BLOCK: Final = 256
"""The queries that are scored at a time: 34 MB of scores in float64."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Documents in order for one query.

    Attributes:
        rows: (n,) rows of the corpus, best first.
        scores: (n,) float32, descending; documents with equal scores are in the order of the corpus.
    """

    rows: IntArray
    scores: FloatArray

    @staticmethod
    def of(rows: IntArray, scores: FloatArray, n: int) -> Ranking:
        """Return the ranking of the n best of these documents, whose rows may be in any order."""
        order = np.argsort(rows, kind="stable")
        best = order[top_rows(scores[order], n)]
        return Ranking(rows[best], scores[best])


@dataclass(frozen=True, eq=False)
class Candidates:
    """Chosen documents of one query with their exact scores.

    Attributes:
        rows: (n,) int64 rows of the corpus, ascending.
        scores: (n,) float32 for every mode.
    """

    rows: IntArray
    scores: dict[Mode, FloatArray]

    def take(self, rows: IntArray) -> Candidates:
        """Return the candidates with these rows, which must be among them."""
        places = np.searchsorted(self.rows, rows)
        return Candidates(rows, {mode: scores[places] for mode, scores in self.scores.items()})


class _Best:
    """The n best documents of every query so far."""

    def __init__(self, queries: int, n: int) -> None:
        self._n = n
        self._rows: list[IntArray] = [np.empty(0, dtype=np.int64) for _ in range(queries)]
        self._scores: list[FloatArray] = [np.empty(0, dtype=np.float32) for _ in range(queries)]

    def add(self, query: int, rows: IntArray, scores: FloatArray) -> None:
        """Add further documents. Their rows are ascending and larger than all rows that were added before."""
        best = np.sort(top_rows(scores, self._n))
        kept_rows = np.concatenate([self._rows[query], rows[best]])
        kept_scores = np.concatenate([self._scores[query], scores[best]])
        best = np.sort(top_rows(kept_scores, self._n))  # in the order of the corpus, so that ties keep it
        self._rows[query], self._scores[query] = kept_rows[best], kept_scores[best]

    def rankings(self) -> list[Ranking]:
        return [Ranking.of(rows, scores, self._n) for rows, scores in zip(self._rows, self._scores, strict=True)]


def first_stages(
    queries: M3Vectors, blocks: Iterable[Block], modes: Sequence[Mode], n: int, *, advance: Callable[[int], object]
) -> dict[Mode, list[Ranking]]:
    """Rank all documents of a corpus by dense and by lexical scores.

    Args:
        queries: The vectors of the queries.
        blocks: The whole corpus in its order.
        modes: "dense", "lexical" or both.
        n: The most documents to keep for each query. The lexical mode finds only documents that share a token.
        advance: A function that is called with the number of documents that were scored.

    Returns:
        For each mode a ranking for every query.
    """
    best = {mode: _Best(len(queries), n) for mode in modes}
    for block in _merged(blocks):
        if "dense" in best:
            _rank_dense(queries.dense, block, best["dense"])
        if "lexical" in best:
            _rank_lexical(queries.lexical, block, best["lexical"])
        advance(len(block.rows))
    return {mode: kept.rankings() for mode, kept in best.items()}


def _rank_dense(queries: FloatArray, block: Block, best: _Best) -> None:
    # In float64: in float32 the rounding of a product depends on its place in the matrix. Two documents with the same
    # vector would get different scores and lose the order of the corpus.
    documents = block.vectors.dense.T.astype(np.float64)  # (d, documents)
    for start in range(0, len(queries), _QUERY_BLOCK):
        scores = (queries[start : start + _QUERY_BLOCK].astype(np.float64) @ documents).astype(np.float32)
        for i, row in enumerate(scores):
            best.add(start + i, block.rows, row)


def _rank_lexical(queries: LexicalRows, block: Block, best: _Best) -> None:
    # An inverted index: a query reads only the postings of its own tokens. `lexical_scores` reads every token of the
    # block for every query and takes 14 ms a query over 16,384 documents of 40 to 160 tokens; this takes 0.6 ms.
    documents = block.vectors.lexical
    width = 1 + max((int(rows.indices.max()) for rows in (queries, documents) if len(rows.indices)), default=0)
    by_token = _matrix(documents, width).T.tocsr()  # (tokens, documents)
    weights = _matrix(queries, width)
    for start in range(0, len(queries), _QUERY_BLOCK):
        scores = (weights[start : start + _QUERY_BLOCK] @ by_token).tocsr()
        for i in range(scores.shape[0]):
            hits = slice(scores.indptr[i], scores.indptr[i + 1])
            order = np.argsort(scores.indices[hits])
            values = scores.data[hits][order].astype(np.float32)
            found = np.flatnonzero(values > 0)
            best.add(start + i, block.rows[scores.indices[hits][order][found]], values[found])


def _matrix(rows: LexicalRows, width: int) -> sparse.csr_matrix:
    """Return the weights as (texts, width) float64, the type in which `lexical_scores` sums too."""
    return sparse.csr_matrix((rows.values.astype(np.float64), rows.indices, rows.offsets), shape=(len(rows), width))


def _merged(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield larger blocks without token vectors: one large matrix product is faster than many small ones."""
    parts: list[Block] = []
    for block in blocks:
        stages = [mode for mode in block.vectors.modes if mode != "multi_vector"]
        parts.append(Block(block.rows, block.vectors.select(stages)))
        if sum(len(part.rows) for part in parts) >= _BLOCK_DOCUMENTS:
            yield _joined(parts)
            parts = []
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[Block]) -> Block:
    return Block(np.concatenate([part.rows for part in parts]), M3Vectors.concatenate([part.vectors for part in parts]))


def score_candidates(
    queries: M3Vectors, rows: Sequence[IntArray], blocks: Iterable[Block], *, advance: Callable[[int], object]
) -> list[Candidates]:
    """Score chosen documents of every query exactly, by the formulas of `scoring`, in every mode that both have.

    Args:
        queries: The vectors of n queries.
        rows: For each query the rows of its candidates, ascending.
        blocks: All documents that are a candidate of some query, and possibly others, in the order of the corpus.
        advance: A function that is called with the number of documents that were scored.
    """
    query_of = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows])
    row_of = np.concatenate([np.empty(0, dtype=np.int64), *rows])
    by_row = np.argsort(row_of, kind="stable")
    sorted_rows = row_of[by_row]
    scores: dict[Mode, FloatArray] = {mode: np.zeros(len(row_of), dtype=np.float32) for mode in queries.modes}
    for block in blocks:
        first = np.searchsorted(sorted_rows, block.rows[0])
        pairs = by_row[first : np.searchsorted(sorted_rows, block.rows[-1], side="right")]
        if len(pairs):
            local = np.searchsorted(block.rows, row_of[pairs])
            scored = score_pairs(queries, block.vectors, query_of[pairs], local)
            for mode in scored.modes:
                scores[mode][pairs] = getattr(scored, mode)
        advance(len(block.rows))
    ends = np.cumsum([len(chosen) for chosen in rows])[:-1]
    parts = {mode: np.split(values, ends) for mode, values in scores.items()}
    return [Candidates(chosen, {mode: parts[mode][i] for mode in parts}) for i, chosen in enumerate(rows)]
