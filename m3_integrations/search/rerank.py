"""Scoring texts for a query, from stored vectors where they are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3_integrations.scoring import combine, score_vectors
from m3_integrations.search.options import resolve_weights
from m3_integrations.store import Store
from m3_integrations.vectors import Encoder, M3Scores, ModeWeights


def rerank(
    encoder: Encoder,
    query: str,
    texts: Sequence[str],
    *,
    ids: Sequence[str | None] | None = None,
    store: Store | None = None,
    weights: ModeWeights | str | None = None,
) -> M3Scores:
    """Score texts for a query in every mode, in their order.

    Args:
        encoder: Encodes the query, and the texts that the store does not know.
        query: Encoded as a query.
        texts: What to score.
        ids: The store's id of every text, None where there is none.
        store: Where a record has the same id and the same text, its stored vectors are used and nothing is encoded.
        weights: How the modes count; also the name of a preset. Equal if None.

    Raises:
        TypeError: If query or a text is no string.
        ValueError: If the store holds another model's vectors, or ids are not as many as texts.
    """
    chosen = resolve_weights(weights)
    known = _stored(encoder, texts, ids, store)
    vectors = encoder.encode([query], kind="query")
    columns = {mode: np.zeros(len(texts), dtype=np.float32) for mode in encoder.modes}
    if known and store is not None:
        found, scores = store.scores(vectors, list(dict.fromkeys(known.values())), encoder.modes)
        place = {id_: i for i, id_ in enumerate(found)}
        known = {row: id_ for row, id_ in known.items() if id_ in place}
        for mode, column in columns.items():
            column[list(known)] = scores[mode][[place[id_] for id_ in known.values()]]
    rest = [row for row in range(len(texts)) if row not in known]
    start = 0
    for documents in encoder.encode_batches([texts[row] for row in rest]):
        rows = rest[start : start + len(documents)]
        part = score_vectors(vectors, documents)
        for mode, column in columns.items():
            column[rows] = getattr(part, mode)
        start += len(documents)
    return M3Scores(combined=combine(columns, chosen), **columns)


def _stored(
    encoder: Encoder, texts: Sequence[str], ids: Sequence[str | None] | None, store: Store | None
) -> dict[int, str]:
    """Give the id of every text whose vectors the store has: same id, same text, all modes."""
    if ids is not None and len(ids) != len(texts):
        raise ValueError(f"{len(texts)} texts, but {len(ids)} ids")
    if store is None or ids is None or not set(encoder.modes) <= set(store.modes):
        return {}
    store.bind(encoder.fingerprint)
    records = {record.id: record.text for record in store.get([id_ for id_ in ids if id_ is not None])}
    return {
        row: id_
        for row, (id_, text) in enumerate(zip(ids, texts, strict=True))
        if id_ is not None and records.get(id_) == text
    }
