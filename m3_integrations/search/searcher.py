"""An encoder and a store, searched together."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from m3_integrations.bm25 import Bm25Index
from m3_integrations.fusion import reciprocal_rank_fusion
from m3_integrations.scoring import combine, top_rows
from m3_integrations.search.explanation import Explanation, explain_record
from m3_integrations.search.options import MODES_OF, SearchOptions, resolve_weights
from m3_integrations.store import Filter, Store, matches, parse_filter
from m3_integrations.store.memory import MemoryStore
from m3_integrations.vectors import Encoder, FloatArray, M3Vectors, Mode, ModeWeights

_BATCH_SIZE: Final = 64
"""Queries encoded and records added at a time: bounds the memory of their multi-vectors."""


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
        store: Holds the records; it is bound to the encoder's model on first use.
    """

    def __init__(self, encoder: Encoder, store: Store) -> None:
        self.encoder = encoder
        self.store = store
        self._is_bound = False
        self._bm25: tuple[int, Bm25Index] | None = None

    def _bind(self) -> None:
        if not self._is_bound:
            self.store.bind(self.encoder.fingerprint)
            self._is_bound = True

    def add(
        self,
        texts: Iterable[str],
        *,
        ids: Iterable[str | None] | None = None,
        metadatas: Iterable[Mapping[str, Any]] | None = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Encode texts and put them into the store, replacing records with the same ids.

        Args:
            texts: Encoded as documents.
            ids: One per text; None makes a random one.
            metadatas: One per text.
            show_progress: Whether to draw a progress bar.

        Returns:
            The ids.

        Raises:
            TypeError: If texts is one string or holds anything but strings.
            ValueError: If ids or metadatas are not as many as texts, or the store holds another model's vectors.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be strings, got one string: pass [text]")
        texts = list(texts)
        given = list(ids) if ids is not None else [None] * len(texts)
        metadata = list(metadatas) if metadatas is not None else [{}] * len(texts)
        if len(given) != len(texts) or len(metadata) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(given)} ids and {len(metadata)} metadatas")
        chosen = [str(uuid.uuid4()) if id_ is None else id_ for id_ in given]
        self._bind()
        start = 0
        modes = tuple(mode for mode in self.encoder.modes if mode in self.store.kept_modes)
        for vectors in self.encoder.encode_batches(texts, modes=modes, show_progress=show_progress):
            end = start + len(vectors)
            self.store.upsert(chosen[start:end], texts[start:end], metadata[start:end], vectors)
            start = end
        return chosen

    async def aadd(
        self,
        texts: Iterable[str],
        *,
        ids: Iterable[str | None] | None = None,
        metadatas: Iterable[Mapping[str, Any]] | None = None,
    ) -> list[str]:
        """Do what `add` does without blocking the event loop."""
        return await asyncio.to_thread(self.add, texts, ids=ids, metadatas=metadatas)

    def search(self, query: str, options: SearchOptions | None = None) -> list[Hit]:
        """Give the records that answer a query best.

        The query is encoded once. Each leg finds `pool_size` candidates; every candidate is scored exactly in every
        mode that ranks, also those that only one leg found. Equal scores are in the order of the ids.

        Raises:
            TypeError: If the query is no string.
            ValueError: If the mode is one that the checkpoint or the store has not, or BM25 is asked of a store that
                is not in memory.
        """
        return self.search_batch([query], options)[0]

    def search_batch(self, queries: Sequence[str], options: SearchOptions | None = None) -> list[list[Hit]]:
        """Give each query's results; the queries are encoded together."""
        options = options or SearchOptions()
        modes = self._bound_modes(options)
        results: list[list[Hit]] = []
        for start in range(0, len(queries), _BATCH_SIZE):
            batch = queries[start : start + _BATCH_SIZE]
            vectors = self.encoder.encode(batch, kind="query", modes=_encoded(modes, self.encoder))
            results.extend(self._find(query, vectors[i], modes, options) for i, query in enumerate(batch))
        return results

    async def asearch(self, query: str, options: SearchOptions | None = None) -> list[Hit]:
        """Do what `search` does without blocking the event loop."""
        options = options or SearchOptions()
        modes = await asyncio.to_thread(self._bound_modes, options)  # both may ask a server
        vectors = await self.encoder.aencode([query], kind="query", modes=_encoded(modes, self.encoder))
        return await asyncio.to_thread(self._find, query, vectors, modes, options)

    def _bound_modes(self, options: SearchOptions) -> tuple[Mode, ...]:
        """Give the modes that rank, of those that both the checkpoint and the store have, which are of one model."""
        self._bind()
        stored = self.store.modes or self.store.kept_modes
        present = [mode for mode in self.encoder.modes if mode in stored]
        modes = tuple(mode for mode in MODES_OF[options.mode] if mode in present)
        if not modes or (options.mode != "all" and len(modes) < len(MODES_OF[options.mode])):
            hint = ""
            if "multi_vector" in MODES_OF[options.mode] and "multi_vector" in self.encoder.modes:
                hint = "; to have candidates encoded again and again for their multi-vectors, put M3Rerank after it"
            raise ValueError(
                f"mode={options.mode!r} cannot be searched: there are {', '.join(present)} vectors only{hint}"
            )
        return modes

    def _find(self, query: str, vectors: M3Vectors, modes: tuple[Mode, ...], options: SearchOptions) -> list[Hit]:
        pool, filter_ = max(options.pool_size, options.k), parse_filter(options.filter)
        legs = self._legs(modes, options)
        found = self.store.candidates(vectors, dict.fromkeys(legs, pool), filter_) if legs else {}
        bm25 = dict(self._bm25_leg(query, pool, filter_)) if options.bm25 != "off" else {}
        # In the order of the ids, so that equal scores rank the same whatever the store.
        ids = sorted({id_ for hits in found.values() for id_ in hits.ids} | set(bm25))
        ids, scores = self.store.scores(vectors, ids, modes, found)
        weights = resolve_weights(options.weights)
        final = combine(scores, weights) if options.fusion == "weighted" else _fuse(ids, scores, bm25, weights, options)
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

    def _legs(self, modes: tuple[Mode, ...], options: SearchOptions) -> list[Mode]:
        """Give the modes that find candidates: the one asked for, or dense and lexical."""
        legs: list[Mode] = ["dense", "lexical"] if "multi_vector" in modes else list(modes)
        if options.bm25 == "replace" and "lexical" in legs:
            legs.remove("lexical")
        return [leg for leg in legs if leg in self.encoder.modes]

    def _bm25_leg(self, query: str, n: int, filter_: Filter | None) -> list[tuple[str, float]]:
        if not isinstance(self.store, MemoryStore):
            raise ValueError("BM25 needs a store in memory: this one has its own lexical leg")  # noqa: TRY004
        version = self.store.version
        if self._bm25 is None or self._bm25[0] != version:
            records = list(self.store.records())
            tokens = self.encoder.tokenize([record.text for record in records])
            self._bm25 = version, Bm25Index([record.id for record in records], [words[:-1] for words in tokens])
        among = None
        if filter_ is not None:
            among = {record.id for record in self.store.records() if matches(filter_, record.metadata)}
        (words,) = self.encoder.tokenize([query], kind="query")
        return self._bm25[1].top(words[:-1], n, among=among)

    def explain(self, query: str, id: str) -> Explanation:  # noqa: A002 - the record's id
        """Say why a record matches a query: its scores, the shared tokens, and what each query token found.

        Raises:
            KeyError: If there is no such record.
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


def _encoded(modes: tuple[Mode, ...], encoder: Encoder) -> tuple[Mode, ...]:
    """Give the modes to encode a query in: those that rank, and those that find candidates for a multi-vector."""
    return tuple(mode for mode in encoder.modes if mode in modes or "multi_vector" in modes)


def _fuse(
    ids: Sequence[str],
    scores: Mapping[Mode, FloatArray],
    bm25: Mapping[str, float],
    weights: ModeWeights,
    options: SearchOptions,
) -> FloatArray:
    """Fuse the candidates' rankings by every mode; a text without a shared token is in no lexical ranking."""
    parts = weights.normalized(scores)
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
