"""The BM25 leg of a search, and how the rankings of all legs become one."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np

from m3_integrations.bm25 import Bm25Index
from m3_integrations.fusion import reciprocal_rank_fusion
from m3_integrations.search.options import SearchOptions
from m3_integrations.store import Filter, Hits, Record, Store
from m3_integrations.store.memory import MemoryStore
from m3_integrations.vectors import Encoder, FloatArray, Mode


class Bm25Leg:
    """BM25 over a store in memory. A record is tokenized once, by the first search after it was added."""

    def __init__(self, encoder: Encoder, store: Store) -> None:
        self._encoder = encoder
        self._store = store
        self._index = Bm25Index()
        self._records: Mapping[int, Record] = {}  # the store's, by row, as they are in the index
        self._version = -1  # the store's, when they were read
        # A lock cannot be pickled, and a searcher over a server can: there is nothing to lock there.
        self._lock = threading.Lock() if isinstance(store, MemoryStore) else nullcontext()

    def top(self, query: str, n: int, filter_: Filter | None) -> dict[str, float]:
        """Return the n best records that share a token with the query and match, best first, by their ids.

        The query is tokenized without an instruction, which is for the network: its words are not looked for.
        """
        if not isinstance(self._store, MemoryStore):
            raise ValueError("BM25 needs a store in memory: this one has its own lexical leg")  # noqa: TRY004
        with self._lock:
            self._update(self._store)
            (words,) = self._encoder.tokenize([query])
            among = None if filter_ is None else self._store.rows(filter_)
            best = self._index.top(words[:-1], n, among=among)
            return {self._records[row].id: score for row, score in best}

    def _update(self, store: MemoryStore) -> None:
        """Tokenize what was added since the last time, and forget what was deleted."""
        version = store.version  # before the records, so that what changes in between is seen the next time
        if version == self._version:
            return
        records = store.rows()
        new = [row for row in records if row not in self._records]
        tokens = self._encoder.tokenize([records[row].text for row in new])
        self._index.discard(self._records.keys() - records.keys())
        self._index.add({row: words[:-1] for row, words in zip(new, tokens, strict=True)})
        self._records, self._version = records, version


def likely_best(found: Mapping[Mode, Hits], options: SearchOptions) -> Iterator[str]:
    """Yield the candidates that will probably be the best k once all are scored, a few times as many, best first.

    Nothing is computed for a store that does not ask for them.

    What is known of a candidate is taken for all of its score. Of 300 questions to 1,200 paragraphs of XQuAD, with
    `tiny`, the best 4 of all modes were among these for 99 of 100, and the best 10 for 97.

    Args:
        found: What the legs have found.
        options: Of the search.
    """
    known: dict[str, float] = {}
    for mode, hits in found.items():
        weight = getattr(options.weights, mode)
        for id_, score in zip(hits.ids, hits.scores.tolist(), strict=True):
            known[id_] = known.get(id_, 0.0) + weight * score
    yield from heapq.nlargest(4 * options.k + 16, known, key=known.__getitem__)


def fuse_rankings(
    ids: Sequence[str], scores: Mapping[Mode, FloatArray], bm25: Mapping[str, float], options: SearchOptions
) -> FloatArray:
    """Fuse the candidates' rankings by every mode; a text without a shared token is in no lexical ranking."""
    parts = options.weights.normalized(scores)
    rankings: list[tuple[float, list[str]]] = []
    for mode, values in scores.items():
        if mode == "lexical" and options.bm25 == "replace":
            continue
        order = np.argsort(-values, kind="stable").tolist()
        rankings.append((parts[mode], [ids[i] for i in order if mode != "lexical" or values[i] > 0]))
    if options.bm25 != "off":
        present = set(ids)
        rankings.append((parts.get("lexical", 1.0), [id_ for id_ in bm25 if id_ in present]))
    fused = reciprocal_rank_fusion([r for _, r in rankings], weights=[w for w, _ in rankings], rrf_k=options.rrf_k)
    return np.array([fused.get(id_, 0.0) for id_ in ids], dtype=np.float32)
