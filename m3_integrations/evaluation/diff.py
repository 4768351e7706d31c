"""`diff_searches`: the questions that won or lost between two ways to search, and the token that decided each.

A question wins or loses if its metric changes. Its rival is a document of less gain that comes before the document that
answers, in the worse of the two rankings. The margin is the score of the answering document minus the score of the
rival. It is a sum of parts: one for each token of the query in the lexical mode, one for each in the multi-vector mode,
and one for the dense mode, each multiplied by its mode's weight. The deciding token is the one whose parts changed most
in the direction of the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations.evaluation.data import JudgedQueries
from m3_integrations.evaluation.documents import JudgedDocuments
from m3_integrations.evaluation.metrics import cutoff_of, measure_queries
from m3_integrations.evaluation.statistics import Comparison, compare_paired
from m3_integrations.search import Explanation, Searcher, SearchOptions
from m3_integrations.search.options import MODES_OF

_DEPTH: Final = 100
"""The number of hits that are measured by a metric without a cutoff."""

_SAME: Final = 1e-9
"""Two values of a metric that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The reason why the document that answers is before or behind its rival now.

    Attributes:
        rival: The id of the other document, which came before the answering one in the worse of the two rankings.
        token: The token of the query whose part of the margin changed most in the direction of the change; "" if only
            the dense mode ranks.
        amount: The change of this token's part, above 0 for a question that won.
        by_mode: The change of each mode's part of the margin; their sum is the change of the margin.
    """

    rival: str
    token: str
    amount: float
    by_mode: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ChangedQuestion:
    """A question whose metric changed.

    Attributes:
        id: The question's id.
        text: The question's text.
        old: The metric with the old searcher, 0 to 1.
        new: The metric with the new searcher, 0 to 1.
        document: The id of the document that answers. Of several, the one whose place changed most. None if no document
            is judged relevant: a metric such as Judged@10 changes without one.
        old_rank: Its old place, from 1; None if it was not among the hits, or there is no document.
        new_rank: Its new place, from 1; None if it is not among the hits, or there is no document.
        decision: The reason; None if it was not asked for, if there is no document or no rival, or if a store lacks one
            of the two documents.
    """

    id: str
    text: str
    old: float
    new: float
    document: str | None
    old_rank: int | None
    new_rank: int | None
    decision: Decision | None


@dataclass(frozen=True, eq=False)
class SearchDiff:
    """The results of two ways to search on the same questions.

    Attributes:
        metric: The name of the metric.
        questions: The ids of all questions.
        old: (questions,) float64, the metric of each question with the old searcher.
        new: (questions,) float64, the metric of each question with the new searcher.
        changed: The questions that won or lost, the largest change first.
    """

    metric: str
    questions: Sequence[str]
    old: NDArray[np.float64]
    new: NDArray[np.float64]
    changed: Sequence[ChangedQuestion]

    @property
    def won(self) -> list[ChangedQuestion]:
        """The questions that won, the largest gain first."""
        return [each for each in self.changed if each.new > each.old]

    @property
    def lost(self) -> list[ChangedQuestion]:
        """The questions that lost, the largest loss first."""
        return [each for each in self.changed if each.new < each.old]

    def compare(self) -> Comparison:
        """Return the mean difference, new minus old, with its interval and a paired test's p-value."""
        return compare_paired(self.new, self.old)


def diff_searches(
    old: Searcher, new: Searcher, questions: JudgedQueries, *, metric: str = "nDCG@10", explained: int | None = None
) -> SearchDiff:
    """Search the same questions with two searchers, and return which won or lost, and why.

    Args:
        old: The searcher of today. All its options are used, except for k.
        new: The searcher to compare with it: another checkpoint, store, dtype, weights or mode. "rrf" and BM25 rank
            too, but a decision does not show their part.
        questions: The result of `read_queries`. Its documents are the ids of records, or the files and entries that
            `m3 index` read (see `document_of`); a warning names one that stands for records of several files. A
            document of several parts has the place of its best part.
        metric: The metric's name in ir-measures.
        explained: The number of changed questions to explain, the largest changes first; all if None. Each takes four
            comparisons of stored vectors.

    Raises:
        ValueError: If the metric is unknown, a search is refused, or no question finds what it should on either side.
    """
    depth = cutoff_of(metric) or _DEPTH
    ids, texts = list(questions.texts), list(questions.texts.values())
    qrels = {id_: questions.qrels[id_] for id_ in ids}
    records = [_find(side, ids, texts, qrels, depth) for side in (old, new)]
    found = [{id_: list(each) for id_, each in of_side.items()} for of_side in records]
    before, now = (measure_queries(ranked, qrels, [metric])[metric] for ranked in found)
    if not before.any() and not now.any():
        raise ValueError(
            "no question finds a document that is judged relevant: qrels must name records of the store, such as "
            f"{next((id_ for ranked in found[0].values() for id_ in ranked), 'none')!r}"
        )
    order = np.argsort(-np.abs(now - before), kind="stable")
    rows = [row for row in order.tolist() if abs(now[row] - before[row]) > _SAME]
    changed = []
    for n, row in enumerate(rows):
        id_, is_won = ids[row], bool(now[row] > before[row])
        document, rival = _pair(found[0][id_], found[1][id_], qrels[id_], is_won=is_won)
        decision = None
        if document is not None and rival is not None and (explained is None or n < explained):
            named = records[1].get(id_, {}) | records[0].get(id_, {})
            pair = named.get(document, document), named.get(rival, rival)
            decision = _decide(old, new, texts[row], *pair, rival=rival, is_won=is_won)
        values, places = (float(before[row]), float(now[row])), [_rank(ranked[id_], document) for ranked in found]
        changed.append(ChangedQuestion(id_, texts[row], *values, document, places[0], places[1], decision))
    return SearchDiff(metric, ids, before, now, changed)


def _find(
    side: Searcher, ids: Sequence[str], texts: Sequence[str], qrels: Mapping[str, Mapping[str, int]], depth: int
) -> dict[str, dict[str, str]]:
    """Return the first documents that each question finds, best first, each with the id of its best record."""
    documents = JudgedDocuments({document for gains in qrels.values() for document in gains})
    found: dict[str, dict[str, str]] = {}
    # All candidates, as several may be parts of one document.
    for id_, hits in zip(ids, side.search_batch(texts, k=max(depth, side.options.pool_size)), strict=True):
        best: dict[str, str] = {}
        for hit in hits:
            best.setdefault(documents.name_of(hit.id, hit.metadata), hit.id)
        found[id_] = dict(islice(best.items(), depth))
    documents.warn_of_shared_names()
    return found


def _rank(ranked: Sequence[str], document: str | None) -> int | None:
    return ranked.index(document) + 1 if document in ranked else None


def _pair(
    before: Sequence[str], now: Sequence[str], gains: Mapping[str, int], *, is_won: bool
) -> tuple[str | None, str | None]:
    """Return the answering document whose place changed most, and its rival; None for what does not exist.

    The rival is the first document of less gain that comes before it in the worse of the two rankings.
    """
    better, worse = (now, before) if is_won else (before, now)
    places = [{id_: 1 / rank for rank, id_ in enumerate(ranked, start=1)} for ranked in (better, worse)]

    def lead(id_: str) -> float:
        return gains[id_] * (places[0].get(id_, 0.0) - places[1].get(id_, 0.0))

    document = max(sorted(id_ for id_, gain in gains.items() if gain > 0), key=lead, default=None)
    if document is None:
        return None, None
    ahead = worse[: _rank(worse, document) or len(worse)]
    return document, next((id_ for id_ in ahead if gains.get(id_, 0) < gains[document]), None)


def _decide(
    old: Searcher, new: Searcher, text: str, winner: str, loser: str, *, rival: str, is_won: bool
) -> Decision | None:
    """Return what changed most in the margin between two records; None if a store lacks one of them.

    Args:
        old: What was searched with before.
        new: What is searched with now.
        text: The question.
        winner: The id of the record that answers.
        loser: The id of the rival's record.
        rival: The rival document.
        is_won: Whether the question won.
    """
    margins: list[dict[tuple[str, str], float]] = []
    for side in (old, new):
        try:
            own, other = (score_parts(side.explain(text, id_), side.options) for id_ in (winner, loser))
        except KeyError:
            return None
        margins.append({key: own.get(key, 0.0) - other.get(key, 0.0) for key in own | other})
    tokens: dict[str, float] = {}
    modes: dict[str, float] = {}
    for mode, token in margins[0] | margins[1]:
        change = margins[1].get((mode, token), 0.0) - margins[0].get((mode, token), 0.0)
        modes[mode] = modes.get(mode, 0.0) + change
        if mode != "dense":
            tokens[token] = tokens.get(token, 0.0) + change
    token = max(sorted(tokens), key=lambda each: tokens[each] if is_won else -tokens[each], default="")
    return Decision(rival, token, tokens.get(token, 0.0), modes)


def score_parts(explanation: Explanation, options: SearchOptions) -> dict[tuple[str, str], float]:
    """Return the parts of a record's combined score, by mode and token of the query.

    Their sum is the weighted mean of the record's scores. The dense score belongs to no token: its token is "".

    Args:
        explanation: The explanation of a query and a record.
        options: The modes and their weights.
    """
    scores = {mode: explanation.scores[mode] for mode in MODES_OF[options.mode] if mode in explanation.scores}
    shares, parts = options.weights.normalized(scores), dict[tuple[str, str], float]()
    if "dense" in shares:
        parts["dense", ""] = shares["dense"] * scores["dense"]
    if "lexical" in shares:
        parts |= {("lexical", match.token): shares["lexical"] * match.score for match in explanation.lexical}
    if "multi_vector" in shares:
        for pair in explanation.multi_vector:
            key, n_tokens = ("multi_vector", pair.query_token), len(explanation.multi_vector)
            parts[key] = parts.get(key, 0.0) + shares["multi_vector"] * pair.similarity / n_tokens
    return parts
