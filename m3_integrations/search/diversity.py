"""Results that differ from one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3_integrations.scoring import diverse_rows
from m3_integrations.search.options import as_number
from m3_integrations.search.searcher import Hit
from m3_integrations.store import Store


def diverse_hits(store: Store, hits: Sequence[Hit], k: int, trade_off: float) -> list[Hit]:
    """Return k of these results by maximal marginal relevance over dense vectors, the first chosen first.

    Args:
        store: The store that the results are from; their vectors are read from it.
        hits: Results of a search that ranks by the dense mode, alone or with others.
        k: The number of results; all if there are fewer.
        trade_off: From 0 (only the difference between results counts) to 1 (only the similarity to the query counts).

    Raises:
        TypeError: If trade_off is no number.
        ValueError: If trade_off is out of range, or the dense mode did not rank the results.
    """
    trade_off = as_number(trade_off, "the trade-off of relevance and diversity", 0, 1)
    if any("dense" not in hit.scores for hit in hits):
        raise ValueError(
            "diversity needs results that were ranked by dense vectors: search with mode='all' or mode='dense'"
        )
    records = {record.id: record for record in store.get([hit.id for hit in hits], with_vectors=True)}
    there = [(hit, record.vectors) for hit in hits if (record := records.get(hit.id)) is not None]
    dense = [vectors.dense for _, vectors in there if vectors is not None]
    if not dense:
        return []
    relevance = np.array([hit.scores["dense"] for hit, _ in there], dtype=np.float32)
    return [there[row][0] for row in diverse_rows(relevance, np.concatenate(dense), k, trade_off)]
