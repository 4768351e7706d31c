"""Hybrid search and reranking, free of any framework: candidates, exact scores of all of them, weights, the best k."""

from m3_integrations.search.explanation import Explanation, TokenMatch, TokenPair
from m3_integrations.search.opening import open_encoder
from m3_integrations.search.options import Bm25, Fusion, SearchMode, SearchOptions, resolve_weights
from m3_integrations.search.rerank import rerank
from m3_integrations.search.searcher import Hit, Searcher

__all__ = [
    "Bm25",
    "Explanation",
    "Fusion",
    "Hit",
    "SearchMode",
    "SearchOptions",
    "Searcher",
    "TokenMatch",
    "TokenPair",
    "open_encoder",
    "rerank",
    "resolve_weights",
]
