"""An encoder and a store, searched together."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, Self, Unpack

import numpy as np

from m3_integrations.bm25 import Bm25Index
from m3_integrations.fusion import reciprocal_rank_fusion
from m3_integrations.scoring import combine, top_rows
from m3_integrations.search.adding import add_texts
from m3_integrations.search.explanation import Explanation, explain_record
from m3_integrations.search.opening import warn_of_absent_heads
from m3_integrations.search.options import MODES_OF, SearchKeywords, SearchOptions, check_options
from m3_integrations.store import Filter, FilterLike, Record, Store
from m3_integrations.store.memory import MemoryStore
from m3_integrations.vectors import Encoder, FloatArray, M3Vectors, Mode

_BATCH_SIZE: Final = 64
"""Queries encoded at a time: bounds the memory of their multi-vectors."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result.

    Attributes:
        id: The record's id.
        text: Its text.
        metadata: Its metadata; the caller's own copy.
        score: What it is ranked by, higher is better.
        scores: The raw score in every mode that ranked it, and "bm25" where BM25 found it.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    scores: dict[str, float]


class Searcher:
    """An encoder and a store, searched together.

    Args:
        encoder: Encodes queries and what is added.
        store: Holds the records. It is bound to the encoder's model on first use.
        options: What a search asks for where the call says nothing; `SearchOptions()` if None.

    A checkpoint that lacks heads is warned of where the mode is "all".

    Raises:
        ValueError: If the options ask for a mode that the checkpoint has no head for, put all weight on such modes, or
            ask for BM25 over a store that is not in memory.
    """

    def __init__(self, encoder: Encoder, store: Store, options: SearchOptions | None = None) -> None:
        self.encoder = encoder
        self.store = store
        self.options = options or SearchOptions()
        check_options(self.options, store, encoder)
        if self.options.mode == "all":
            warn_of_absent_heads(encoder)
        self._modes: tuple[Mode, ...] = ()  # the encoder's, once the store is bound to its model
        self._bm25 = _Bm25Leg(encoder, store)

    def with_options(self, options: SearchOptions) -> Self:
        """Return a searcher over the same encoder, store and BM25 index with other options.

        Raises:
            ValueError: As the constructor.
        """
        check_options(options, self.store, self.encoder)
        twin = copy.copy(self)
        twin.options = options
        return twin

    def _asked(self, options: SearchKeywords) -> SearchOptions:
        if not options:
            return self.options
        asked = self.options.changed(**options)
        check_options(asked, self.store, self.encoder)
        return asked

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.encoder!r}, {self.store!r}, {self.options!r})"

    def _bind(self) -> tuple[Mode, ...]:
        if not self._modes:
            self.store.bind(self.encoder.fingerprint)
            self._modes = self.encoder.modes
        return self._modes

    def add(
        self,
        texts: Iterable[str],
        *,
        ids: Iterable[str | None] | None = None,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Encode texts and put them into the store, replacing records with the same ids.

        The whole call is checked before the first text is encoded: what is refused leaves the store as it was. Then
        texts are encoded and stored some thousand at a time.

        Args:
            texts: Encoded as documents. Every iterable is read once.
            ids: One per text; None makes a random one.
            metadatas: One per text, None for none; `m3_integrations.store.values` says what they may hold.
            show_progress: Whether to draw a progress bar.

        Returns:
            The ids.

        Raises:
            TypeError: If texts is one string or holds anything but strings, an id is no string, or metadata are no
                mapping.
            ValueError: If ids or metadatas are not as many as texts, metadata hold what cannot be kept, a text is not
                valid Unicode, or the store holds another model's vectors.
            IncompleteAddError: If it fails when some texts may be in the store already, such as on a full disk. It has
                the ids of all texts; adding them again with these makes no duplicates.
        """
        modes = tuple(mode for mode in self._bind() if mode in self.store.kept_modes)
        return add_texts(
            self.encoder, self.store, modes, texts, ids=ids, metadatas=metadatas, show_progress=show_progress
        )

    async def aadd(
        self,
        texts: Iterable[str],
        *,
        ids: Iterable[str | None] | None = None,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """Add texts as `add` does, without blocking the event loop.

        A call that is cancelled goes on in its thread: give ids where that may happen.
        """
        return await asyncio.to_thread(self.add, texts, ids=ids, metadatas=metadatas)

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> int:  # noqa: A002
        """Delete records by their ids, or those that match a filter.

        Args:
            ids: Which records to delete; unknown ids are skipped.
            filter: Instead of ids: the records to delete.

        Returns:
            How many were deleted.

        Raises:
            TypeError: If ids is one string, or one of them is no string.
            ValueError: Unless exactly one of ids and filter is given, or if the filter says nothing and so matches
                everything.
        """
        if (ids is None) == (filter is None):
            raise ValueError(f"delete needs either ids or a filter, got ids={ids!r}, filter={filter!r}")
        if ids is not None:
            return self.store.delete(ids)
        return self.store.delete_where(filter)

    def search(self, query: str, **options: Unpack[SearchKeywords]) -> list[Hit]:
        """Return the records that answer a query best, best first; equal scores in the order of their ids.

        The query is encoded once. Each leg finds `pool_size` candidates. Every candidate is scored exactly in every
        mode that ranks, even if only one leg found it.

        Args:
            query: Encoded as a query.
            **options: As `SearchOptions` describes them. None means the searcher's own option; the filter {} means no
                filter.

        Raises:
            TypeError: If the query is no string, an option is unknown or of a wrong type.
            ValueError: If an option is out of range, the checkpoint or the store lacks the mode, BM25 is asked of a
                store that is not in memory, or the store holds another model's vectors.
        """
        asked = self._asked(options)
        ranking, encoded = self._modes_of(asked)
        return self._find(query, self.encoder.encode([query], kind="query", modes=encoded), ranking, asked)

    def search_batch(self, queries: Sequence[str], **options: Unpack[SearchKeywords]) -> list[list[Hit]]:
        """Return each query's results, as `search` does; the queries are encoded together."""
        asked = self._asked(options)
        ranking, encoded = self._modes_of(asked)
        results: list[list[Hit]] = []
        for start in range(0, len(queries), _BATCH_SIZE):
            batch = queries[start : start + _BATCH_SIZE]
            vectors = self.encoder.encode(batch, kind="query", modes=encoded)
            results.extend(self._find(query, vectors[i], ranking, asked) for i, query in enumerate(batch))
        return results

    async def asearch(self, query: str, **options: Unpack[SearchKeywords]) -> list[Hit]:
        """Search as `search` does, without blocking the event loop."""
        asked = await asyncio.to_thread(self._asked, options)  # may open the network
        ranking, encoded = await asyncio.to_thread(self._modes_of, asked)  # may ask a server
        vectors = await self.encoder.aencode([query], kind="query", modes=encoded)
        return await asyncio.to_thread(self._find, query, vectors, ranking, asked)

    def _modes_of(self, options: SearchOptions) -> tuple[tuple[Mode, ...], tuple[Mode, ...]]:
        """Return the modes that rank, and those to encode a query in: with a multi-vector also those that find."""
        of_encoder, asked = self._bind(), MODES_OF[options.mode]
        stored = self.store.modes or self.store.kept_modes
        present = tuple(mode for mode in of_encoder if mode in stored)
        ranking = tuple(mode for mode in asked if mode in present)
        if not ranking or (options.mode != "all" and len(ranking) < len(asked)):
            hint = ""
            if "multi_vector" in asked and "multi_vector" in of_encoder:
                hint = "; to have candidates encoded again and again for their multi-vectors, put M3Rerank after it"
            raise ValueError(
                f"mode={options.mode!r} cannot be searched: there are {', '.join(present)} vectors only{hint}"
            )
        return ranking, present if "multi_vector" in ranking else ranking

    def _find(self, query: str, vectors: M3Vectors, ranking: Sequence[Mode], options: SearchOptions) -> list[Hit]:
        legs = [mode for mode in vectors.modes if mode != "multi_vector"]
        if options.bm25 == "replace" and "lexical" in legs:
            legs.remove("lexical")
        pool = max(options.pool_size, options.k)
        found = self.store.candidates(vectors, dict.fromkeys(legs, pool), options.filter) if legs else {}
        bm25 = self._bm25.top(query, pool, options.filter) if options.bm25 != "off" else {}
        # In the order of the ids, so that equal scores rank the same whatever the store.
        ids = sorted({id_ for hits in found.values() for id_ in hits.ids}.union(bm25))
        ids, scores = self.store.scores(vectors, ids, ranking, found)
        final = combine(scores, options.weights) if options.fusion == "weighted" else _fuse(ids, scores, bm25, options)
        ranked = top_rows(final, len(final))
        if options.score_threshold is not None:
            ranked = ranked[final[ranked] >= options.score_threshold]
        hits: list[Hit] = []
        while len(ranked) and len(hits) < options.k:  # again where some were deleted meanwhile by somebody else
            best, ranked = np.split(ranked, [options.k - len(hits)])
            records = {record.id: record for record in self.store.get([ids[i] for i in best])}
            for i in best.tolist():
                if (record := records.get(ids[i])) is not None:
                    each: dict[str, float] = {mode: float(values[i]) for mode, values in scores.items()}
                    each |= {"bm25": bm25[record.id]} if record.id in bm25 else {}
                    hits.append(Hit(record.id, record.text, dict(record.metadata), float(final[i]), each))
        return hits

    def explain(self, query: str, id: str) -> Explanation:  # noqa: A002 - the record's id
        """Return why a record matches a query: its scores, the shared tokens, and what each query token found.

        Raises:
            KeyError: If there is no such record.
            ValueError: If the store holds another model's vectors.
        """
        self._bind()
        records = self.store.get([id], with_vectors=True)
        if not records:
            raise KeyError(f"no record {id!r}")
        return explain_record(self.encoder, query, records[0])

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Bm25Leg:
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


def _fuse(
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
