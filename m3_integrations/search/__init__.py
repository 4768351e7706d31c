"""Hybrid search and reranking, free of any framework: candidates, exact scores of all of them, weights, the best k."""

from m3_integrations.search.adding import NODE_KEYS, IncompleteAddError, holds_node
from m3_integrations.search.calibration import Calibration, CalibrationLike, answer_features, read_calibration
from m3_integrations.search.diversity import diverse_hits
from m3_integrations.search.explanation import Explanation, TokenMatch, TokenPair
from m3_integrations.search.missing import LegPlace, Missing, NearMatch
from m3_integrations.search.opening import (
    changed_settings,
    check_store,
    open_encoder,
    warn_of_absent_heads,
)
from m3_integrations.search.options import (
    OPTION_NAMES,
    Bm25,
    Fusion,
    RankingKeywords,
    SearchKeywords,
    SearchMode,
    SearchOptions,
    as_integer,
    as_number,
    check_names,
    check_options,
    checked_calibration,
    checked_weights,
    no_flag,
)
from m3_integrations.search.relevance import relevance
from m3_integrations.search.replacing import add_unless_known, matching_records, records_of, replace_sources
from m3_integrations.search.rerank import Ranked, check_ranking, is_scores, rerank
from m3_integrations.search.searcher import Hit, Searcher
from m3_integrations.search.spans import Evidence, Sentence, find_evidence

__all__ = [
    "NODE_KEYS",
    "OPTION_NAMES",
    "Bm25",
    "Calibration",
    "CalibrationLike",
    "Evidence",
    "Explanation",
    "Fusion",
    "Hit",
    "IncompleteAddError",
    "LegPlace",
    "Missing",
    "NearMatch",
    "Ranked",
    "RankingKeywords",
    "SearchKeywords",
    "SearchMode",
    "SearchOptions",
    "Searcher",
    "Sentence",
    "TokenMatch",
    "TokenPair",
    "add_unless_known",
    "answer_features",
    "as_integer",
    "as_number",
    "changed_settings",
    "check_names",
    "check_options",
    "check_ranking",
    "check_store",
    "checked_calibration",
    "checked_weights",
    "diverse_hits",
    "find_evidence",
    "holds_node",
    "is_scores",
    "matching_records",
    "no_flag",
    "open_encoder",
    "read_calibration",
    "records_of",
    "relevance",
    "replace_sources",
    "rerank",
    "warn_of_absent_heads",
]
