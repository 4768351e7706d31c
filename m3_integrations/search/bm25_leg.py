"""The BM25 leg of a search."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Self

from m3_integrations.bm25 import Bm25Index
from m3_integrations.store import Filter, Record, Store
from m3_integrations.store.memory import MemoryStore
from m3_integrations.vectors import Encoder


class Bm25Leg:
    """BM25 over a store in memory. The first search after a record was added tokenizes it; later ones do not."""

    def __init__(self, encoder: Encoder, store: Store) -> None:
        self._encoder = encoder
        self._store = store
        self._index = Bm25Index()
        self._records: Mapping[int, Record] = {}  # the records in the index, by their row in the store
        self._version = -1  # the version of the store that these records were read from
        # A searcher over a server can be pickled, a lock cannot; without a store in memory nothing needs the lock.
        self._lock = threading.Lock() if isinstance(store, MemoryStore) else nullcontext()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return this leg: copies of what uses it share the store, so the index too."""
        return self

    def top(self, query: str, n: int, filter_: Filter | None) -> dict[str, float]:
        """Return the ids and scores of the n best records that match the filter and share a token with the query.

        The best is first. The query is tokenized without the model's instruction, so its words are not searched for.
        """
        if not isinstance(self._store, MemoryStore):
            raise ValueError("BM25 needs a store in memory: use open_store(), or leave bm25 out")  # noqa: TRY004
        with self._lock:
            self._update(self._store)
            (words,) = self._encoder.tokenize([query])
            among = None if filter_ is None else self._store.rows(filter_)
            best = self._index.top(words[:-1], n, among=among)
            return {self._records[row].id: score for row, score in best}

    def _update(self, store: MemoryStore) -> None:
        """Tokenize records that were added since the last call, and drop records that were deleted."""
        version = store.version  # read before the records: the next call sees a change that happens in between
        if version == self._version:
            return
        records = store.rows()
        new = [row for row in records if row not in self._records]
        tokens = self._encoder.tokenize([records[row].text for row in new])
        self._index.discard(self._records.keys() - records.keys())
        self._index.add({row: words[:-1] for row, words in zip(new, tokens, strict=True)})
        self._records, self._version = records, version
