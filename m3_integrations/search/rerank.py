"""Ranking texts for a query; texts that the store has are ranked by their stored vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m3_integrations.scoring import combine, raw_scores, top_rows
from m3_integrations.search.opening import warn_of_absent_heads
from m3_integrations.store import Store
from m3_integrations.vectors import MODES, Encoder, Mode, WeightsLike, resolve_weights


@dataclass(frozen=True, slots=True)
class Ranked:
    """One text, ranked.

    Attributes:
        row: The text's position among those that were passed.
        score: The weighted mean of its scores in all modes, as `combine` computes it; higher is better.
        scores: The raw score in every mode.
    """

    row: int
    score: float
    scores: dict[str, float]


def rerank(
    encoder: Encoder,
    query: str,
    texts: Sequence[str],
    *,
    ids: Sequence[str | None] | None = None,
    store: Store | None = None,
    weights: WeightsLike | None = None,
    top_n: int | None = None,
    score_threshold: float | None = None,
) -> list[Ranked]:
    """Rank texts for a query by their exact scores in every mode; texts with equal scores keep their order.

    Args:
        encoder: Encodes the query, and the texts that the store does not have.
        query: Encoded as a query.
        texts: The texts to rank.
        ids: The store's id of every text; None for a text without an id.
        store: If its record with a text's id has the same text, the record's vectors are used instead of encoding the
            text.
        weights: The weight of each mode: any `WeightsLike`. Equal if None.
        top_n: The most texts to return; all if None.
        score_threshold: Only texts whose score is at least this are returned.

    Raises:
        TypeError: If query or a text is not a string.
        ValueError: If the store holds another model's vectors, or there are not as many ids as texts.
    """
    chosen, modes = resolve_weights(weights), encoder.modes
    if ids is not None and len(ids) != len(texts):
        raise ValueError(f"every text needs one id or None, got {len(texts)} texts and {len(ids)} ids")
    if not texts:
        return []
    known = _stored(encoder, modes, texts, ids, store)
    vectors = encoder.encode([query], kind="query")
    columns = {mode: np.zeros(len(texts), dtype=np.float32) for mode in modes}
    if known and store is not None:
        found, scores = store.scores(vectors, list(dict.fromkeys(known.values())), modes)
        place = {id_: i for i, id_ in enumerate(found)}
        known = {row: id_ for row, id_ in known.items() if id_ in place}
        for mode, column in columns.items():
            column[list(known)] = scores[mode][[place[id_] for id_ in known.values()]]
    rest = [row for row in range(len(texts)) if row not in known]
    start = 0
    for documents in encoder.encode_batches([texts[row] for row in rest]):
        rows = rest[start : start + len(documents)]
        for mode, values in raw_scores(vectors, documents, modes).items():
            columns[mode][rows] = values
        start += len(documents)
    combined = combine(columns, chosen)
    return [
        Ranked(row, float(combined[row]), {mode: float(column[row]) for mode, column in columns.items()})
        for row in top_rows(combined, len(texts) if top_n is None else top_n).tolist()
        if score_threshold is None or combined[row] >= score_threshold
    ]


def is_scores(value: object) -> bool:
    """Whether a value of metadata can be the scores that a reranker wrote there: numbers by modes, nothing else."""
    known = {*MODES, "bm25", "probability"}
    return isinstance(value, Mapping) and all(key in known and isinstance(score, float) for key, score in value.items())


def check_ranking(encoder: Encoder, weights: WeightsLike | None) -> None:
    """Check the weights of a reranker, and warn if the checkpoint lacks heads.

    Raises:
        TypeError: If weights are not a `WeightsLike`.
        ValueError: If weights are out of range, or are 0 for every mode that the checkpoint has.
    """
    resolve_weights(weights).normalized(encoder.modes)
    warn_of_absent_heads(encoder)


def _stored(
    encoder: Encoder,
    modes: Sequence[Mode],
    texts: Sequence[str],
    ids: Sequence[str | None] | None,
    store: Store | None,
) -> dict[int, str]:
    """Return the row and id of every text that the store has with the same id, the same text and all modes."""
    if store is None or ids is None or not set(modes) <= set(store.modes):
        return {}
    store.bind(encoder.fingerprint)
    records = {record.id: record.text for record in store.get([id_ for id_ in ids if id_ is not None])}
    return {
        row: id_
        for row, (id_, text) in enumerate(zip(ids, texts, strict=True))
        if id_ is not None and records.get(id_) == text
    }
