"""A result's score on a scale from 0 to 1. It is not a probability; search/calibration.py has probabilities."""

from __future__ import annotations

from m3_integrations.search.options import SearchOptions
from m3_integrations.search.searcher import Hit
from m3_integrations.vectors import MODES


def relevance(hit: Hit, options: SearchOptions) -> float:
    """Return a result's score on a scale from 0 to 1.

    Of two results of one search, the better one never has the lower relevance.

    With "weighted" it is (score + c) / (1 + c), limited to 0 and 1. Here c is the share of the weights of the dense and
    the multi-vector mode: their cosines begin at -1, while a lexical score is never negative. With the dense mode alone
    it is (1 + cosine) / 2, with the lexical mode alone the score up to 1, and with equal weights
    (score + 2/3) / (5/3). A score above 1, which only lexical scores can cause, has the relevance 1.

    With "rrf" it is the score divided by the score of a record that is first in every ranking.

    Args:
        hit: A result of a search.
        options: The options of that search.
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
