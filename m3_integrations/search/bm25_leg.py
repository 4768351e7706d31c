"""BM25 as a leg of a search."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext

from m3_integrations.bm25 import Bm25Index
from m3_integrations.store import Filter, Record, Store
from m3_integrations.store.memory import MemoryStore
from m3_integrations.vectors import Encoder


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
