"""Finding out why a search does not find a record, with the same calls to the store that a search makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import Any, Final

from m3_integrations.scoring import combine, top_rows
from m3_integrations.search.bm25_leg import Bm25Leg
from m3_integrations.search.explanation import TokenPair, explain_record
from m3_integrations.search.missing import DEEPEST, LegPlace, Missing, NearMatch
from m3_integrations.search.options import SearchOptions
from m3_integrations.search.ranking import fuse_rankings
from m3_integrations.search.reading import read_tokens
from m3_integrations.store import Record, Store
from m3_integrations.store.unmet import unmet_clauses
from m3_integrations.vectors import MODES, PRESETS, Encoder, FloatArray, M3Vectors, Mode, ModeWeights

_STEPS: Final = 10
"""Weights are tried in tenths: 66 combinations for three modes."""

_LIKE: Final = 0.75
"""The least similarity of spelling (difflib's ratio) of two tokens that nearly match, if there are no token vectors."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One search of a searcher.

    Attributes:
        encoder: The encoder of the query.
        store: The store that is searched.
        bm25: The searcher's BM25 leg.
        query: The text of the query.
        vectors: The query's vectors in the modes that find and rank.
        ranking: The modes that rank.
        options: The options of the search.
    """

    encoder: Encoder
    store: Store
    bm25: Bm25Leg
    query: str
    vectors: M3Vectors
    ranking: Sequence[Mode]
    options: SearchOptions

    @property
    def legs(self) -> list[Mode]:
        """The modes that find candidates, without BM25."""
        legs: list[Mode] = [mode for mode in self.vectors.modes if mode != "multi_vector"]
        if self.options.bm25 == "replace" and "lexical" in legs:
            legs.remove("lexical")
        return legs


def diagnose(asked: Asked, id_: str) -> Missing:
    """Return why a search does not find a record.

    If a leg's pool does not have the record, the first `DEEPEST` hits of the leg are searched for it. Only the query is
    encoded. The filter is evaluated in this process, on the record's metadata.
    """
    options = asked.options
    stored = asked.store.get([id_], with_vectors=True)
    if not stored:
        return Missing(asked.query, id_, options, is_stored=False)
    (record,) = stored
    clauses = unmet_clauses(options.filter, record.metadata)
    if clauses:
        asked = replace(asked, options=options.changed(filter={}))
    places = list(_places(asked, id_))
    is_candidate = any(place.is_in_pool for place in places)
    ranks = [place.rank for place in places if place.rank is not None and place.rank > options.pool_size]
    needed = min(ranks) if ranks and not is_candidate else None
    return Missing(
        asked.query,
        id_,
        options,
        is_stored=True,
        excluded_by=tuple(clauses),
        legs=tuple(places),
        is_candidate=is_candidate,
        needed_pool_size=needed,
        **_ranks(asked, id_, options.pool_size if needed is None else needed),
        **_tokens(asked, record),
    )


def _tokens(asked: Asked, record: Record) -> dict[str, Any]:
    """Return the attributes of `Missing` about shared tokens, near matches, and how much of the texts was read."""
    explanation = explain_record(asked.encoder, asked.query, record)
    shared = {match.token for match in explanation.lexical}
    (read,) = read_tokens(asked.encoder, [record])
    if explanation.multi_vector:
        near = _near_by_vectors(asked.vectors, explanation.multi_vector, shared)
    else:
        near = _near_by_spelling(asked.vectors, read.tokens, shared)
    read_to = int(asked.encoder.token_spans([asked.query], kind="query")[0][-1, 1])
    return {
        "shared": tuple(explanation.lexical),
        "near": tuple(near),
        "text_length": len(record.text),
        "text_read_to": read.read_to,
        "query_read_to": read_to if asked.query[read_to:].strip() else len(asked.query),
    }


def _places(asked: Asked, id_: str) -> Iterator[LegPlace]:
    """Yield the record's place in each leg."""
    pool = max(asked.options.pool_size, asked.options.k)
    limits = dict.fromkeys(asked.legs, pool)
    found = asked.store.candidates(asked.vectors, limits, asked.options.filter) if limits else {}
    there, scores = asked.store.scores(asked.vectors, [id_], asked.legs)
    for leg in asked.legs:
        hits, score = found[leg], float(scores[leg][0]) if there else None  # None if it was deleted meanwhile
        ids, is_in_pool = hits.ids, id_ in hits.ids
        if not is_in_pool and len(ids) == pool < DEEPEST:
            alone = asked.vectors.select((leg,))  # or a server would score all of these in every mode
            ids = asked.store.candidates(alone, {leg: DEEPEST}, asked.options.filter)[leg].ids
        rank = ids.index(id_) + 1 if id_ in ids else None
        edge = float(hits.scores[-1]) if len(hits.ids) else None
        yield LegPlace(leg, score, rank, len(hits.ids), edge, is_in_pool)
    if asked.options.bm25 != "off":
        best = asked.bm25.top(asked.query, max(pool, DEEPEST), asked.options.filter)
        ids, values = list(best), list(best.values())[:pool]
        rank = ids.index(id_) + 1 if id_ in best else None
        is_in_pool = rank is not None and rank <= pool
        yield LegPlace("bm25", best.get(id_), rank, len(values), values[-1] if values else None, is_in_pool)


def _ranks(asked: Asked, id_: str, pool_size: int) -> dict[str, Any]:
    """Return the attributes of `Missing` about the final ranking, with pools of this size."""
    options, pool = asked.options, max(pool_size, asked.options.k)
    limits = dict.fromkeys(asked.legs, pool)
    found = asked.store.candidates(asked.vectors, limits, options.filter) if limits else {}
    bm25 = {} if options.bm25 == "off" else asked.bm25.top(asked.query, pool, options.filter)
    # Sorted by id as a search does it: then equal scores rank the same in every store.
    candidates = sorted({each for hits in found.values() for each in hits.ids}.union(bm25))
    ids, scores = asked.store.scores(asked.vectors, candidates, asked.ranking, found)

    def final(weights: ModeWeights) -> FloatArray:
        if options.fusion == "weighted":
            return combine(scores, weights)
        return fuse_rankings(ids, scores, bm25, options.changed(weights=weights))

    values = final(options.weights)
    ranked = top_rows(values, len(values))
    last = ranked[: options.k][-1:]
    said: dict[str, Any] = {"n_candidates": len(ids), "last_score": float(values[last[0]]) if len(last) else None}
    calibration = options.calibration_for(asked.ranking)
    if calibration is not None and ids:
        calibration.check_model(asked.encoder.fingerprint, asked.encoder.model)
        said["probability"] = calibration.of_best(ids, scores, asked.vectors.lexical[0])[1]
    if id_ not in ids:
        there, alone = asked.store.scores(asked.vectors, [id_], asked.ranking)
        return said | {"scores": {mode: float(column[0]) for mode, column in alone.items()} if there else {}}
    row = ids.index(id_)

    def rank(weights: ModeWeights) -> int:
        each = final(weights)
        return int((each > each[row]).sum() + (each[:row] == each[row]).sum()) + 1

    now = rank(options.weights)
    return said | {
        "scores": {mode: float(column[row]) for mode, column in scores.items()},
        "score": float(values[row]),
        "rank": now,
        "rank_by_weights": {name: rank(weights) for name, weights in _other_weights(options.weights, asked.ranking)},
        "needed_weights": None
        if now <= options.k
        else next((w for w in _nearest_weights(options.weights, asked.ranking) if rank(w) <= options.k), None),
    }


def _other_weights(asked: ModeWeights, modes: Sequence[Mode]) -> Iterator[tuple[str, ModeWeights]]:
    """Yield each mode alone, and the presets whose shares differ; nothing if only one mode ranks."""
    seen = [_shares(asked, modes)]
    alone = [(f"{mode} alone", ModeWeights(**{m: float(m == mode) for m in MODES})) for mode in modes]
    for name, weights in [*alone, *PRESETS.items()]:
        if len(modes) > 1 and any(getattr(weights, mode) for mode in modes):
            shares = _shares(weights, modes)
            if shares not in seen:
                seen.append(shares)
                yield name, weights


def _nearest_weights(asked: ModeWeights, modes: Sequence[Mode]) -> list[ModeWeights]:
    """Return all weights in tenths, sorted by how much they differ from the asked ones, least first."""
    here = _shares(asked, modes)
    grid = [
        dict(zip(modes, tenths, strict=True))
        for tenths in product(range(_STEPS + 1), repeat=len(modes))
        if sum(tenths) == _STEPS
    ]
    grid.sort(key=lambda tenths: sum(abs(n / _STEPS - share) for n, share in zip(tenths.values(), here, strict=True)))
    return [ModeWeights(**{mode: tenths.get(mode, 0) / _STEPS for mode in MODES}) for tenths in grid]


def _shares(weights: ModeWeights, modes: Sequence[Mode]) -> list[float]:
    return [round(share, 6) for share in weights.normalized(modes).values()]


def _near_by_vectors(query: M3Vectors, pairs: Sequence[TokenPair], shared: set[str]) -> list[NearMatch]:
    """Return the query's unshared tokens, each with the record's token of the nearest vector; the nearest first."""
    weights = _lexical_weights(query)
    near = [
        NearMatch(pair.query_token, weights.get(pair.query_token, 0.0), pair.document_token, pair.similarity)
        for pair in pairs[:-1]  # the last is [SEP]
        if pair.query_token not in shared and _has_letters(pair.query_token)
    ]
    return sorted(near, key=lambda match: -(match.similarity or 0.0))


def _near_by_spelling(query: M3Vectors, tokens: Sequence[str], shared: set[str]) -> list[NearMatch]:
    """Return the query's unshared tokens, each with the record's token of the most similar spelling.

    Tokens that have one come first, then those with the larger weight.
    """
    known = {token.strip("▁").casefold(): token for token in tokens}
    near: list[NearMatch] = []
    for token, weight in _lexical_weights(query).items():
        if token not in shared and _has_letters(token):
            (like, *_) = [*get_close_matches(token.strip("▁").casefold(), known, n=1, cutoff=_LIKE), ""]
            near.append(NearMatch(token, weight, known.get(like, ""), None))
    return sorted(near, key=lambda match: (not match.document_token, -(match.query_weight or 0.0)))


def _has_letters(token: str) -> bool:
    """Return whether a token has a letter or a digit; punctuation is not reported as unmatched."""
    return any(character.isalnum() for character in token)


def _lexical_weights(query: M3Vectors) -> dict[str, float]:
    return dict(query.lexical[0].tokens()) if "lexical" in query.modes else {}
