"""A result's score on a scale from 0 to 1. It is no probability: `calibration` has that."""

from __future__ import annotations

from m3_integrations.search.options import SearchOptions
from m3_integrations.search.searcher import Hit
from m3_integrations.vectors import MODES


def relevance(hit: Hit, options: SearchOptions) -> float:
    """Return a result's score on a scale from 0 to 1.

    Of two results of one search, the better one never has the lower relevance.

    Under "weighted" it is (score + c) / (1 + c), at most 1, where c is the share of the weights that lies on the dense
    and the multi-vector mode, whose cosines begin at -1: a lexical score is never negative. So 1 is a score of 1 or
    more. In the dense mode alone it is (1 + cosine) / 2, in the lexical mode the score up to 1, and with equal weights
    (score + 2/3) / (5/3). Only a lexical score can be above 1: nothing bounds it.

    Under "rrf" it is the score divided by that of a record which is first in every ranking.

    Args:
        hit: What a search has found.
        options: What was asked of that search.
    """
    parts = options.weights.normalized([mode for mode in MODES if mode in hit.scores])
    lexical = parts.get("lexical", 0.0)
    if options.fusion == "weighted":
        cosines = sum(parts.values()) - lexical
        return min(1.0, max(0.0, (hit.score + cosines) / (1 + cosines)))
    total = sum(parts.values())
    if options.bm25 == "replace":
        total -= lexical
    if options.bm25 != "off":
        total += parts.get("lexical", 1.0)
    return min(1.0, hit.score * (options.rrf_k + 1) / total)
