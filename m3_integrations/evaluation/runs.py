"""Rankings of a dataset's queries by every column, from a corpus that is encoded once, and TREC run files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from tqdm.auto import tqdm

from m3_integrations.evaluation.corpus import Corpus
from m3_integrations.evaluation.data import Dataset
from m3_integrations.evaluation.encoding import Block, EncodedCorpus, EvaluatedEncoder
from m3_integrations.evaluation.modes import DEPTH, Column
from m3_integrations.evaluation.okapi import OkapiIndex
from m3_integrations.evaluation.ranking import Candidates, Ranking, first_stages, score_candidates
from m3_integrations.scoring import combine, top_rows
from m3_integrations.vectors import MODES, FloatArray, IntArray, M3Vectors, Mode, ModeWeights

_WORDS: Final = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The choice of candidates.

    Attributes:
        rerank_depth: The number of the best documents by dense that `multi_vector` and `all` rerank. The paper has 200.
        pool_size: The number of candidates that each leg finds for `search:all`, as in `SearchOptions`.
        encode_candidates: Whether token vectors are computed for the candidates alone, in a second pass, and not stored
            for the whole corpus. It saves the disk space of the token vectors, which is by far the largest part.

    Raises:
        ValueError: If a number is out of range.
    """

    rerank_depth: int = 200
    pool_size: int = 100
    encode_candidates: bool = False

    def __post_init__(self) -> None:
        for name in ("rerank_depth", "pool_size"):
            if not 1 <= getattr(self, name) <= DEPTH:
                raise ValueError(f"{name} must be from 1 to {DEPTH}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Evidence:
    """The scores from which all rankings are made, for the queries of a dataset in their order.

    Attributes:
        stages: The best documents by dense and by lexical scores, for the modes that were needed.
        reranked: For each query the candidates of `multi_vector` and `all`, with exact scores; empty if not needed.
        pooled: For each query the candidates of `search:all`, with exact scores; empty if not needed.
    """

    stages: dict[Mode, list[Ranking]]
    reranked: list[Candidates]
    pooled: list[Candidates]


def gather_evidence(
    encoder: EvaluatedEncoder,
    dataset: Dataset,
    encoded: EncodedCorpus,
    columns: Sequence[Column],
    protocol: Protocol,
    *,
    show_progress: bool = False,
) -> Evidence:
    """Compute the scores of a dataset's queries and its encoded corpus that these columns need.

    Args:
        encoder: Encodes the queries, and the candidates if the protocol asks for it.
        dataset: The dataset of the queries.
        encoded: The dataset's corpus, encoded.
        columns: The columns that will be ranked.
        protocol: The choice of candidates.
        show_progress: Whether to draw progress bars.
    """
    reranks, pools = bool({"multi_vector", "all"} & set(columns)), "search:all" in columns
    needed = {*encoded.modes, *(["multi_vector"] if reranks or pools else [])}
    modes: list[Mode] = [mode for mode in MODES if mode in needed]
    queries = encoder.encode(list(dataset.queries.values()), kind="query", modes=modes)
    legs: list[Mode] = [mode for mode in encoded.modes if mode != "multi_vector"]
    with _progress("ranking", len(encoded), show_progress) as advance:
        stages = first_stages(queries, encoded.blocks(), legs, DEPTH, advance=advance)
    empty: list[IntArray] = [np.empty(0, dtype=np.int64)] * len(queries)
    reranked = [np.sort(ranking.rows[: protocol.rerank_depth]) for ranking in stages["dense"]] if reranks else empty
    pooled = _union(stages, protocol.pool_size) if pools else empty
    rows = [np.union1d(a, b) for a, b in zip(reranked, pooled, strict=True)]
    if not (reranks or pools):
        return Evidence(stages, [], [])
    scored = _score(encoder, queries, rows, dataset.corpus, encoded, show_progress=show_progress)
    return Evidence(
        stages,
        [found.take(chosen) for found, chosen in zip(scored, reranked, strict=True)] if reranks else [],
        [found.take(chosen) for found, chosen in zip(scored, pooled, strict=True)] if pools else [],
    )


def _union(stages: dict[Mode, list[Ranking]], n: int) -> list[IntArray]:
    return [
        np.union1d(dense.rows[:n], lexical.rows[:n])
        for dense, lexical in zip(stages["dense"], stages["lexical"], strict=True)
    ]


def _score(
    encoder: EvaluatedEncoder,
    queries: M3Vectors,
    rows: Sequence[IntArray],
    corpus: Corpus,
    encoded: EncodedCorpus,
    *,
    show_progress: bool,
) -> list[Candidates]:
    """Score candidates by their stored vectors; token vectors that are not stored are encoded again."""
    with _progress("scoring candidates", len(encoded), show_progress) as advance:
        scored = score_candidates(queries.select(encoded.modes), rows, encoded.blocks(), advance=advance)
    if "multi_vector" in encoded.modes:
        return scored
    chosen = np.unique(np.concatenate(rows))
    with _progress("encoding candidates", len(chosen), show_progress) as advance:
        blocks = _encoded_anew(encoder, corpus, chosen)
        token_scores = score_candidates(queries.select(["multi_vector"]), rows, blocks, advance=advance)
    return [Candidates(a.rows, {**a.scores, **b.scores}) for a, b in zip(scored, token_scores, strict=True)]


def _encoded_anew(encoder: EvaluatedEncoder, corpus: Corpus, rows: IntArray) -> Iterator[Block]:
    start = 0
    for vectors in encoder.encode_batches(corpus.texts(rows), modes=("multi_vector",)):
        yield Block(rows[start : start + len(vectors)], vectors)
        start += len(vectors)


def rank_column(evidence: Evidence, column: Column, weights: ModeWeights | None = None) -> list[Ranking]:
    """Rank every query's documents by one column; for the columns of BM25 use `rank_bm25`.

    Args:
        evidence: The scores; they must have been gathered for this column.
        column: The column.
        weights: The weights of the modes, for a column with more than one mode.
    """
    if column == "dense" or column == "lexical":  # noqa: PLR1714 - tells mypy which
        return evidence.stages[column]
    if column == "dense+lexical":
        pairs = zip(evidence.stages["dense"], evidence.stages["lexical"], strict=True)
        return [_rank_union(dense, lexical, weights or ModeWeights()) for dense, lexical in pairs]
    if column == "multi_vector":
        return [Ranking.of(c.rows, c.scores["multi_vector"], DEPTH) for c in evidence.reranked]
    candidates = evidence.reranked if column == "all" else evidence.pooled
    return [rank_candidates(c, weights or ModeWeights()) for c in candidates]


def rank_candidates(candidates: Candidates, weights: ModeWeights) -> Ranking:
    """Rank one query's candidates by the weighted mean of their exact scores."""
    return Ranking.of(candidates.rows, combine(candidates.scores, weights), DEPTH)


def _rank_union(dense: Ranking, lexical: Ranking, weights: ModeWeights) -> Ranking:
    """Rank the documents of both rankings; a document that is missing from one of them scores 0 there."""
    rows = np.union1d(dense.rows, lexical.rows)
    scores: dict[Mode, FloatArray] = {mode: np.zeros(len(rows), dtype=np.float32) for mode in ("dense", "lexical")}
    scores["dense"][np.searchsorted(rows, dense.rows)] = dense.scores
    scores["lexical"][np.searchsorted(rows, lexical.rows)] = lexical.scores
    return Ranking.of(rows, combine(scores, weights), DEPTH)


def rank_bm25(encoder: EvaluatedEncoder, dataset: Dataset, column: Column) -> list[Ranking]:
    """Rank the corpus by BM25 over the model's tokens ("bm25") or over words in lower case ("bm25:words").

    A document that shares no token with the query is not found. The tokens of all documents are in memory.
    """
    documents, queries = dataset.corpus.texts(), list(dataset.queries.values())
    if column == "bm25":
        index = OkapiIndex(_without_separators(encoder.tokenize(list(documents))))
        tokens = _without_separators(encoder.tokenize(queries))  # without the instruction, which is not searched for
    else:
        index = OkapiIndex([_WORDS.findall(text.lower()) for text in documents])
        tokens = [_WORDS.findall(text.lower()) for text in queries]
    rankings = []
    for query in tokens:
        scores = index.scores(query)
        hits = np.flatnonzero(scores)
        best = hits[top_rows(scores[hits], DEPTH)]
        rankings.append(Ranking(best, scores[best]))
    return rankings


def _without_separators(tokens: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    return [words[:-1] for words in tokens]


def write_trec_run(path: Path, dataset: Dataset, rankings: Sequence[Ranking], tag: str) -> None:
    """Write rankings as a TREC run file, the format of trec_eval.

    trec_eval reads scores as float32, sorts by them, and sorts documents with equal scores by descending id. So a score
    that equals the one before it is written as the next smaller float32, which keeps our order.

    Args:
        path: The file; an existing one is replaced.
        dataset: The dataset of the queries.
        rankings: One ranking for every query.
        tag: The name of the run.

    Raises:
        ValueError: If an id has white space in it, which the format cannot hold.
    """
    check_run_ids(dataset)
    ids = dataset.corpus.ids
    with path.open("w", encoding="utf-8") as file:
        for id_, ranking in zip(dataset.queries, rankings, strict=True):
            scores = _falling(ranking.scores).tolist()
            file.writelines(
                f"{id_} Q0 {ids[row]} {rank} {score:.9g} {tag}\n"
                for rank, (row, score) in enumerate(zip(ranking.rows.tolist(), scores, strict=True), start=1)
            )


def check_run_ids(dataset: Dataset) -> None:
    """Raise ValueError for a dataset with an id that a TREC run file cannot hold.

    Raises:
        ValueError: If an id is empty or has white space in it.
    """
    for id_ in (*dataset.queries, *dataset.corpus.ids):
        if len(id_.split()) != 1:
            raise ValueError(
                f"a TREC run file cannot hold the id {id_!r} of {dataset.name}: use ids without white space"
            )


def _falling(scores: FloatArray) -> FloatArray:
    """Return the scores, each lowered by the fewest steps of float32 that make it less than the one before."""
    bits = scores.view(np.int32).astype(np.int64)
    places = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))  # neighbouring floats are neighbouring integers
    ranks = np.arange(len(scores))
    places = np.minimum.accumulate(places + ranks) - ranks
    return np.where(places >= 0, places, -places | 0x80000000).astype(np.uint32).view(np.float32)


@contextmanager
def _progress(what: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """Yield a function that advances a progress bar, or one that does nothing: a hidden bar would start a thread."""
    if not show:
        yield lambda _: None
        return
    with tqdm(total=total, desc=what, unit="text") as bar:
        yield bar.update
