"""Records, and what a store must say of them, in float64 and without any store's code."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from m3_integrations import M3Vectors, Record, Store
from m3_integrations.vectors import MODES, MultiVectorRows
from tests.fakes import random_vectors
from tests.test_filters import plain, random_metadata


def vectors(random: np.random.Generator, n: int) -> M3Vectors:
    """Random ones whose token vectors float16 holds exactly, so that storing them loses nothing."""
    made = random_vectors(random, n)
    rows = made.multi_vector
    flat = rows.flat.astype(np.float16).astype(np.float32)
    return M3Vectors(dense=made.dense, lexical=made.lexical, multi_vector=MultiVectorRows(rows.offsets, flat))


def records(random: np.random.Generator, ids: list[str]) -> list[Record]:
    made = vectors(random, len(ids))
    return [Record(id_, f"text of {id_}", random_metadata(random), made[i]) for i, id_ in enumerate(ids)]


def add(store: Store, added: Sequence[Record]) -> None:
    """Put records with their vectors into a store."""
    vectors = M3Vectors.concatenate([record.vectors for record in added if record.vectors is not None])
    store.upsert([r.id for r in added], [r.text for r in added], [r.metadata for r in added], vectors)


def brute_force(alive: dict[str, Record], query: M3Vectors, filter_: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Every matching record's score in every mode."""
    result: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
    of_query = query.lexical[0].to_dict()
    for record in alive.values():
        if not plain(filter_, dict(record.metadata)):
            continue
        assert record.vectors is not None
        weights = record.vectors.lexical[0].to_dict()
        tokens, others = query.multi_vector[0].astype(float), record.vectors.multi_vector[0].astype(float)
        result["dense"][record.id] = float(query.dense[0].astype(float) @ record.vectors.dense[0].astype(float))
        result["lexical"][record.id] = sum(of_query[t] * weights[t] for t in of_query.keys() & weights.keys())
        result["multi_vector"][record.id] = float((tokens @ others.T).max(axis=1).mean())
    return result
