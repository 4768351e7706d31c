"""`fit_storage`: the cost of each way to keep token vectors, in bytes and in nDCG on your questions."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3_integrations.evaluation.data import Dataset
from m3_integrations.evaluation.documents import JudgedDocuments
from m3_integrations.evaluation.metrics import measure_queries
from m3_integrations.evaluation.statistics import Comparison, compare_paired
from m3_integrations.scoring import combine, top_rows
from m3_integrations.store import Record, Store, open_store
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.edge_size import disk_use, smaller_storages, token_vector_bytes
from m3_integrations.store.points import MultiVectorStorage
from m3_integrations.store.qdrant import QdrantStore
from m3_integrations.store.served import ServedStore
from m3_integrations.vectors import Encoder, FloatArray, M3Vectors, Mode, ModeWeights, WeightsLike, resolve_weights
from m3_integrations.vectors.pooling import pooled_lengths

_COPIED_AT_ONCE: Final = 50
"""The most records that are read with their vectors at a time: bounds the memory."""

_QUERIES_AT_ONCE: Final = 64

_POOLED: Final = 2
"""The factor of token pooling that is tried."""


LEAST_QUESTIONS: Final = 30
"""Fewer questions show nothing, as the 95 % interval of a bootstrap is too narrow for them. In 600 simulations with yes
for one value in ten, it held the true mean in 64 % of the samples of 10 values, and in 97 % of those of 30."""

_LEAST_DIFFERING: Final = 5
"""If fewer questions differ, the bootstrap has too few different values to draw from; if none does, its interval has no
width."""

_RULE_OF_THREE: Final = 3
"""The rule of three: with 95 % confidence, what none of n questions showed happens to at most 3 / n of all (Hanley and
Lippman-Hand, 1983)."""


class Storage(NamedTuple):
    """A way to keep token vectors, with the arguments of `open_store`.

    Attributes:
        multi_vector: The precision.
        token_pooling: The number of neighbouring tokens that share a vector.
    """

    multi_vector: MultiVectorStorage
    token_pooling: int = 1

    def __str__(self) -> str:
        return self.multi_vector + (f", pooling {self.token_pooling}" if self.token_pooling > 1 else "")

    @property
    def settings(self) -> str:
        """The keyword arguments of `open_store`."""
        pooled = f", token_pooling={self.token_pooling}" if self.token_pooling > 1 else ""
        return f"multi_vector='{self.multi_vector}'{pooled}"


@dataclass(frozen=True, kw_only=True, eq=False)
class StorageCost:
    """The cost of one way to keep token vectors.

    Attributes:
        storage: The way to keep them.
        bytes_per_token: The bytes of its token vectors, divided by the number of token vectors in the present store.
        size_bytes: The size of the whole store on the disk, estimated from the present store; None unless it is a
            folder of this machine.
        values: (queries,) float64, the metric of every question.
        largest_error: The largest difference of a candidate's multi-vector score from its score in the present store;
            0 if no token vectors are kept.
    """

    storage: Storage
    bytes_per_token: float
    size_bytes: int | None
    values: NDArray[np.float64]
    largest_error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class StorageFit:
    """The costs of smaller stores of the same records.

    Attributes:
        metric: The metric, as ir-measures spells it.
        kept: The cost of the present store.
        smaller: The costs of the smaller ones, the one with the fewest bytes last.
    """

    metric: str
    kept: StorageCost
    smaller: Sequence[StorageCost]

    def compare(self, cost: StorageCost) -> Comparison:
        """Return the share of the metric that is lost: its mean with the 95 % interval, and a paired test's p-value.

        If fewer than 5 questions differ, the upper end is at least the mean and 3 / n, as up to 3 of n further
        questions may lose all that they have.
        """
        scale, n = self.kept.values.mean(), len(self.kept.values)
        found = compare_paired(self.kept.values / scale, cost.values / scale)
        if np.count_nonzero(self.kept.values != cost.values) >= _LEAST_DIFFERING:
            return found
        high = min(1.0, max(found.difference.high, found.difference.mean + _RULE_OF_THREE / n))
        return replace(found, difference=replace(found.difference, high=high))

    def smallest(self, max_loss: float) -> StorageCost | None:
        """Return the smallest whose loss is at most this share at the upper end of its 95 % interval, or None.

        It is None if there are fewer than `LEAST_QUESTIONS`.
        """
        if len(self.kept.values) < LEAST_QUESTIONS:
            return None
        within = [cost for cost in self.smaller if self.compare(cost).difference.high <= max_loss]
        return min(within, key=lambda cost: cost.bytes_per_token, default=None)

    def needed(self, max_loss: float) -> int | None:
        """Return the number of questions that would show that a store which changes nothing is within this share.

        None if there are so many, or if no number would.
        """
        enough = math.ceil(_RULE_OF_THREE / max_loss) if max_loss else None
        return enough if enough is not None and enough > len(self.kept.values) else None


def fit_storage(
    store: Store,
    encoder: Encoder,
    questions: Dataset,
    *,
    metric: str = "nDCG@10",
    weights: WeightsLike | None = None,
    pool_size: int = 100,
) -> StorageFit:
    """Measure the cost of smaller ways to keep token vectors, for searches with mode "all".

    No text of the store is encoded. The legs find the same candidates whatever the storage, so only the token vectors
    of candidates are copied, into one temporary store for each way; all copies together take up to twice their size.

    The document of a record has the record's id. The document of a record that `m3 index` made is the entry of its
    JSONL file, or the file, by its path or its name. A document with several records has the place of the best one.
    A warning names a document that stands for records of several files.

    Args:
        store: A folder, a Qdrant server, or an `m3 serve` over one of these. The store is bound to the model.
        encoder: The encoder of the questions, with the store's model.
        questions: Questions with qrels.
        metric: The metric, as ir-measures spells it.
        weights: The weights of the three modes; equal if None.
        pool_size: The number of candidates that each leg finds.

    Raises:
        ValueError: If the store is in memory, or holds another model's vectors or no token vectors, if questions are
            judged by answers, or if no question finds a relevant document.
        OSError: If there is no room for temporary files.
    """
    if questions.answers:
        raise ValueError(f"a fit needs judged documents, and {questions.name} has answers instead")
    format_ = None
    if isinstance(store, QdrantStore | ServedStore):
        store.bind(encoder.fingerprint)
        format_ = store.format
    if format_ is None:
        raise ValueError(
            f"the records of {store!r} are in memory, where token vectors are kept in no smaller way: fit a copy, "
            "copy_store(store, open_store(FOLDER))"
        )
    if "multi_vector" not in format_.modes:
        raise ValueError(f"{store!r} holds no token vectors, so it cannot be made smaller")
    kept = Storage(format_.multi_vector, format_.token_pooling)
    searches = [_Search(store, query, pool_size) for query in _encoded(encoder, list(questions.queries.values()))]
    measure = _Measure(questions, searches, metric, resolve_weights(weights))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="m3-fit-")))
        trials = [_Trial(folder, storage, stack) for storage in _choices(kept)]
        if not (n_vectors := measure.copy(store, trials)):
            raise ValueError(f"{store!r} is empty: there is nothing to make smaller")
        full = [each.scores["multi_vector"] for each in searches]
        values = measure.values(full)
        if not values.any():
            raise ValueError(
                f"no question of {questions.name} finds a document that is judged relevant: qrels must name records of "
                f"the store, such as {next((id_ for each in searches for id_ in each.ids), 'none')!r}"
            )
        columns = [[trial.score(each) for each in searches] for trial in trials]
    bytes_kept = token_vector_bytes(kept.multi_vector, format_.token_dim)
    use = disk_use(store.folder) if isinstance(store, EdgeStore) else None

    def cost(storage: Storage, share: float, tokens: Sequence[FloatArray | None]) -> StorageCost:
        a_vector = token_vector_bytes(storage.multi_vector, format_.token_dim) * share
        return StorageCost(
            storage=storage,
            bytes_per_token=a_vector,
            size_bytes=None if use is None else use.with_token_vectors(a_vector / bytes_kept),
            values=measure.values(tokens),
            largest_error=max(
                (float(np.abs(a - b).max(initial=0)) for a, b in zip(tokens, full, strict=True) if a is not None),
                default=0.0,
            ),
        )

    costs = [
        cost(trial.storage, trial.n_vectors / n_vectors, tokens) for trial, tokens in zip(trials, columns, strict=True)
    ]
    costs.sort(key=lambda each: -each.bytes_per_token)
    return StorageFit(metric=metric, kept=cost(kept, 1.0, full), smaller=costs)


def _choices(kept: Storage) -> list[Storage]:
    """Return the ways with fewer bytes: lower precision, pooling unless there is pooling already, and both."""
    whole = [Storage(each, kept.token_pooling) for each in smaller_storages(kept.multi_vector) if each != "none"]
    pooled = [Storage(each.multi_vector, _POOLED) for each in (kept, *whole) if kept.token_pooling == 1]
    return [*whole, *pooled, Storage("none")]


def _encoded(encoder: Encoder, queries: Sequence[str]) -> Iterator[M3Vectors]:
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        vectors = encoder.encode(queries[start : start + _QUERIES_AT_ONCE], kind="query")
        yield from (vectors[i] for i in range(len(vectors)))


class _Search:
    """A question with its candidates, sorted by id, and their scores in the present store."""

    def __init__(self, store: Store, query: M3Vectors, pool_size: int) -> None:
        legs: list[Mode] = [mode for mode in store.modes if mode != "multi_vector"]
        found = store.candidates(query, dict.fromkeys(legs, pool_size))
        self.query = query
        self.ids, self.scores = store.scores(
            query, sorted({id_ for hits in found.values() for id_ in hits.ids}), store.modes, found
        )
        self.example = self.ids[0] if self.ids else ""

    def rank(self, tokens: FloatArray | None, weights: ModeWeights, documents: Mapping[str, str]) -> list[str]:
        """Return the documents, best first, ranked with these multi-vector scores, or without any if tokens is None."""
        scores: dict[Mode, FloatArray] = {
            mode: column for mode, column in self.scores.items() if mode != "multi_vector"
        }
        if tokens is not None:
            scores["multi_vector"] = tokens
        order = top_rows(combine(scores, weights), len(self.ids))
        return list(dict.fromkeys(documents[self.ids[row]] for row in order.tolist()))


class _Trial:
    """A temporary store that keeps the token vectors of candidates in one way; no store for the way "none"."""

    def __init__(self, folder: Path, storage: Storage, stack: ExitStack) -> None:
        self.storage, self.n_vectors = storage, 0
        self._store: Store | None = None
        if storage.multi_vector != "none":
            place = folder / f"{storage.multi_vector}-{storage.token_pooling}"
            self._store = stack.enter_context(
                open_store(place, multi_vector=storage.multi_vector, token_pooling=storage.token_pooling)
            )

    def add(self, records: Sequence[Record], vectors: M3Vectors) -> None:
        """Store the token vectors of records."""
        if self._store is None:
            return
        flags = np.array([record.is_pooled for record in records])
        factors = np.where(flags, 1, self.storage.token_pooling)
        lengths = vectors.multi_vector.lengths
        self.n_vectors += int(pooled_lengths(lengths, factors, int(lengths.max(initial=1))).sum())
        empty = [""] * len(records)
        self._store.upsert([record.id for record in records], empty, [{}] * len(records), vectors, is_pooled=flags)

    def score(self, search: _Search) -> FloatArray | None:
        """Return the multi-vector scores of a question's candidates in this store; None without a store."""
        if self._store is None:
            return None
        ids, scores = self._store.scores(search.query, search.ids, ["multi_vector"])
        of = dict(zip(ids, scores["multi_vector"].tolist(), strict=True))
        return np.array([of.get(id_, 0.0) for id_ in search.ids], np.float32)


class _Measure:
    """Questions with their candidates, and the document of each candidate."""

    def __init__(self, questions: Dataset, searches: Sequence[_Search], metric: str, weights: ModeWeights) -> None:
        self._questions, self._searches = questions, searches
        self._metric, self._weights = metric, weights
        self._documents: dict[str, str] = {}

    def copy(self, store: Store, trials: Sequence[_Trial]) -> int:
        """Copy the candidates' token vectors into the trials, and return their number in the present store."""
        ids = sorted({id_ for each in self._searches for id_ in each.ids})
        documents = JudgedDocuments({document for gains in self._questions.qrels.values() for document in gains})
        n_vectors = 0
        for start in range(0, len(ids), _COPIED_AT_ONCE):
            records = store.get(ids[start : start + _COPIED_AT_ONCE], with_vectors=True)
            parts = [record.vectors.select(["multi_vector"]) for record in records if record.vectors is not None]
            vectors = M3Vectors.concatenate(parts)
            n_vectors += len(vectors.multi_vector.flat)
            self._documents |= {record.id: documents.name_of(record.id, record.metadata) for record in records}
            for trial in trials:
                trial.add(records, vectors)
        documents.warn_of_shared_names()
        return n_vectors

    def values(self, tokens: Sequence[FloatArray | None]) -> NDArray[np.float64]:
        """Return the metric of every question, (queries,) float64, with these multi-vector scores of its candidates."""
        ranked = [
            each.rank(column, self._weights, self._documents)
            for each, column in zip(self._searches, tokens, strict=True)
        ]
        found = dict(zip(self._questions.queries, ranked, strict=True))
        return measure_queries(found, self._questions.qrels, [self._metric])[self._metric]
