"""The searcher: an encoder and a store."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, Unpack

import numpy as np

from m3_integrations.scoring import combine, top_rows
from m3_integrations.search.adding import add_texts
from m3_integrations.search.bm25_leg import Bm25Leg
from m3_integrations.search.diagnosis import Asked, diagnose
from m3_integrations.search.explanation import Explanation, explain_record
from m3_integrations.search.given_vector import with_dense
from m3_integrations.search.missing import Missing
from m3_integrations.search.opening import warn_of_absent_heads
from m3_integrations.search.options import MODES_OF, SearchKeywords, SearchOptions, check_options
from m3_integrations.search.ranking import fuse_rankings, likely_best
from m3_integrations.search.spans import Evidence, stored_evidence
from m3_integrations.store import FilterLike, Store, matches
from m3_integrations.store.columns import check_ids
from m3_integrations.vectors import Encoder, FloatArray, M3Vectors, Mode, check_texts

_BATCH_SIZE: Final = 64
"""The most queries encoded at a time: bounds the memory of their multi-vectors."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result.

    Attributes:
        id: The record's id.
        text: Its text.
        metadata: Its metadata; the caller's own copy.
        score: The score that it is ranked by, higher is better.
        scores: The raw score in every mode that ranked it; "bm25" if BM25 found it. For the best result of a search
            with a calibration also "probability": the probability that it answers, 0 to 1.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    scores: dict[str, float]


class Searcher:
    """An encoder and a store: adds texts to the store and searches it.

    Args:
        encoder: Encodes queries and the texts that are added.
        store: Holds the records. It is bound to the encoder's model on first use.
        options: The options of a search that the call does not set; `SearchOptions()` if None.

    If the mode is "all" and the checkpoint lacks heads, a warning says so.

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
        self._bm25 = Bm25Leg(encoder, store)

    def with_options(self, options: SearchOptions) -> Self:
        """Return a searcher over the same encoder, store and BM25 index with other options.

        Raises:
            ValueError: For the reasons of the constructor.
        """
        check_options(options, self.store, self.encoder)
        twin = copy.copy(self)
        twin.options = options
        return twin

    def _asked(self, query: str | None, options: SearchKeywords) -> SearchOptions:
        """Return the options of one call. A call without a query ranks by its dense vector alone."""
        asked = self.options.changed(**options)
        if query is None:
            asked = asked.changed(mode="dense", bm25="off", weights="equal")
        if asked is not self.options:
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

        The whole call is checked before the first text is encoded: a call that is refused does not change the store.
        Then texts are encoded and stored some thousand at a time.

        Args:
            texts: Encoded as documents. Every iterable is read once.
            ids: One per text; None makes a random one.
            metadatas: One per text, None for none; `m3_integrations.store.values` describes what they may hold.
            show_progress: Whether to draw a progress bar.

        Returns:
            The ids.

        Raises:
            TypeError: If texts is one string or holds anything but strings, an id is not a string, or metadata are not
                a mapping.
            ValueError: If ids or metadatas are not as many as texts, metadata hold a value that cannot be kept, a text
                is not valid Unicode, or the store holds another model's vectors.
            IncompleteAddError: If it fails after some texts may have been stored, for example on a full disk. It has
                the ids of all texts; adding them again with these ids makes no duplicates.
        """
        self.store.bind(self.encoder.fingerprint)  # raises if the store was closed, before anything is encoded
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

        A cancelled call goes on in its thread. Pass ids if that can happen: adding again then makes no duplicates.
        """
        return await asyncio.to_thread(self.add, texts, ids=ids, metadatas=metadatas)

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> int:  # noqa: A002
        """Delete records by their ids, or those that match a filter.

        Args:
            ids: The ids of the records to delete; unknown ids are skipped.
            filter: A filter for the records to delete, instead of ids.

        Returns:
            The number of deleted records.

        Raises:
            TypeError: If ids is one string, or one of them is not a string.
            ValueError: If not exactly one of ids and filter is given, or if the filter is empty and so matches
                everything.
        """
        if (ids is None) == (filter is None):
            raise ValueError(f"delete needs either ids or a filter, got ids={ids!r}, filter={filter!r}")
        if ids is not None:
            return self.store.delete(ids)
        return self.store.delete_where(filter)

    def search(
        self,
        query: str | None,
        *,
        dense: FloatArray | None = None,
        ids: Sequence[str] | None = None,
        **options: Unpack[SearchKeywords],
    ) -> list[Hit]:
        """Return the records that answer a query best, best first; records with equal scores are sorted by id.

        The query is encoded once. Each leg finds `pool_size` candidates. Every candidate is scored exactly in every
        mode that ranks, even if only one leg found it.

        Args:
            query: Encoded as a query. None if only a dense vector is passed: then only the dense mode ranks, whatever
                the options say, and BM25 is off.
            dense: (d,) float32 of any length, instead of the query's own dense vector.
            ids: The ids of the candidates, instead of candidates that the legs find. Unknown ids are skipped.
            **options: As `SearchOptions` describes them. None means the searcher's own option; the filter {} means no
                filter.

        Raises:
            TypeError: If the query is not a string and there is no dense vector, or an option is unknown or of a wrong
                type.
            ValueError: If an option is out of range, the checkpoint or the store lacks the mode, BM25 is on and the
                store is not in memory or ids are passed, the store holds another model's vectors, or the dense vector
                is not finite or not of the model's size.
        """
        asked = self._asked(query, options)
        ranking, encoded = self._modes_of(asked)
        vectors = None if query is None else self.encoder.encode([query], kind="query", modes=encoded)
        return self._find(query, with_dense(vectors, dense, self.encoder), ranking, asked, ids)

    def search_batch(self, queries: Sequence[str], **options: Unpack[SearchKeywords]) -> list[list[Hit]]:
        """Return each query's results, as `search` does; the queries are encoded together."""
        asked = self._asked("", options)
        ranking, encoded = self._modes_of(asked)
        results, queries = list[list[Hit]](), check_texts(queries)
        for start in range(0, len(queries), _BATCH_SIZE):
            batch = queries[start : start + _BATCH_SIZE]
            vectors = self.encoder.encode(batch, kind="query", modes=encoded)
            results.extend(self._find(query, vectors[i], ranking, asked) for i, query in enumerate(batch))
        return results

    async def asearch(
        self,
        query: str | None,
        *,
        dense: FloatArray | None = None,
        ids: Sequence[str] | None = None,
        **options: Unpack[SearchKeywords],
    ) -> list[Hit]:
        """Search as `search` does, without blocking the event loop."""
        asked = await asyncio.to_thread(self._asked, query, options)  # may load the network
        ranking, encoded = await asyncio.to_thread(self._modes_of, asked)  # may ask a server
        vectors = None if query is None else await self.encoder.aencode([query], kind="query", modes=encoded)
        return await asyncio.to_thread(self._find, query, with_dense(vectors, dense, self.encoder), ranking, asked, ids)

    def _modes_of(self, options: SearchOptions) -> tuple[tuple[Mode, ...], tuple[Mode, ...]]:
        """Return the modes that rank, and those to encode a query in: all present ones if the multi-vector ranks."""
        of_encoder, asked = self._bind(), MODES_OF[options.mode]
        stored = self.store.modes or self.store.kept_modes
        present = tuple(mode for mode in of_encoder if mode in stored)
        ranking = tuple(mode for mode in asked if mode in present)
        if not ranking or (options.mode != "all" and len(ranking) < len(asked)):
            hint = ""
            if "multi_vector" in asked and "multi_vector" in of_encoder:
                hint = "; M3Rerank after this search encodes the results again and ranks by their multi-vectors"
            raise ValueError(
                f"mode={options.mode!r} cannot be searched: the store holds only {', '.join(present)} vectors{hint}"
            )
        return ranking, present if "multi_vector" in ranking else ranking

    def _find(
        self,
        query: str | None,
        vectors: M3Vectors,
        ranking: Sequence[Mode],
        options: SearchOptions,
        among: Sequence[str] | None = None,
    ) -> list[Hit]:
        legs = [mode for mode in vectors.modes if mode != "multi_vector" and among is None]
        if options.bm25 == "replace" and "lexical" in legs:
            legs.remove("lexical")
        pool = max(options.pool_size, options.k)
        found = self.store.candidates(vectors, dict.fromkeys(legs, pool), options.filter) if legs else {}
        bm25: dict[str, float] = {}
        if options.bm25 != "off" and query is not None:
            if among is not None:
                raise ValueError("bm25 finds candidates, and ids= names them: pass bm25='off' with ids=")
            bm25 = self._bm25.top(query, pool, options.filter)
        candidates = {id_ for hits in found.values() for id_ in hits.ids}.union(bm25)
        if among is not None:
            given = self.store.get(list(dict.fromkeys(check_ids(among))))
            candidates = {record.id for record in given if matches(options.filter, record.metadata)}
        # Sorted by id: then equal scores rank the same in every store.
        ids = sorted(candidates)
        likely = likely_best(found, options)
        ids, scores, along = self.store.scores_and_records(vectors, ids, ranking, found, likely)
        final = (
            combine(scores, options.weights)
            if options.fusion == "weighted"
            else fuse_rankings(ids, scores, bm25, options)
        )
        ranked = top_rows(final, len(final))
        # A calibration is for the best of all records; the best of given candidates may be another one.
        calibration = options.calibration_for(() if among is not None else ranking)
        answering: tuple[str, float] | None = None
        if calibration is not None and ids:
            calibration.check_model(self.encoder.fingerprint, self.encoder.model)
            answering = calibration.of_best(ids, scores, vectors.lexical[0])
            if answering[1] < (options.min_probability or 0):
                return []
        if among is not None and list(ranking) == ["lexical"]:
            ranked = ranked[final[ranked] > 0]  # the lexical leg finds only texts with a shared token
        if options.score_threshold is not None:
            ranked = ranked[final[ranked] >= options.score_threshold]
        records, hits = {record.id: record for record in along}, list[Hit]()
        while len(ranked) and len(hits) < options.k:  # once more if records were deleted meanwhile
            best, ranked = np.split(ranked, [options.k - len(hits)])
            if others := [ids[i] for i in best if ids[i] not in records]:
                records |= {record.id: record for record in self.store.get(others)}
            for i in best.tolist():
                if (record := records.get(ids[i])) is not None:
                    each: dict[str, float] = {mode: float(values[i]) for mode, values in scores.items()}
                    each |= {"bm25": bm25[record.id]} if record.id in bm25 else {}
                    each |= {"probability": answering[1]} if answering and record.id == answering[0] else {}
                    hits.append(Hit(record.id, record.text, dict(record.metadata), float(final[i]), each))
        return hits

    def explain(self, query: str, id: str) -> Explanation:  # noqa: A002 - the record's id
        """Return why a record matches a query: its scores, the shared tokens, and each query token's nearest token.

        Raises:
            KeyError: If the store has no record with this id.
            ValueError: If the store holds another model's vectors.
        """
        self._bind()
        records = self.store.get([id], with_vectors=True)
        if not records:
            raise KeyError(f"no record {id!r}")
        return explain_record(self.encoder, query, records[0])

    def explain_missing(self, query: str, id: str, **options: Unpack[SearchKeywords]) -> Missing:  # noqa: A002 - likewise
        """Return why a search with these options does not find a record; `str()` makes a page of it.

        Raises:
            TypeError: For the reasons of `search`.
            ValueError: For the reasons of `search`.
        """
        asked = self._asked(query, options)
        ranking, encoded = self._modes_of(asked)
        vectors = self.encoder.encode([query], kind="query", modes=encoded)
        return diagnose(Asked(self.encoder, self.store, self._bm25, query, vectors, ranking, asked), id)

    def spans(self, query: str, found: Iterable[Hit | str]) -> list[Evidence]:
        """Return the scored sentences of hits, or of the records with these ids, from stored vectors alone.

        Raises:
            KeyError: If the store has no record with one of the ids.
            ValueError: If the store holds another model's vectors, or only dense vectors.
        """
        self._bind()
        named = found if isinstance(found, str) else [each if isinstance(each, str) else each.id for each in found]
        return stored_evidence(self.encoder, self.store, query, check_ids(named))

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
