"""The reasons why a search does not find a record, as values and as a page to read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from m3_integrations.search.explanation import TokenMatch
from m3_integrations.search.options import SearchOptions
from m3_integrations.store.unmet import Clause
from m3_integrations.vectors import ModeWeights

DEEPEST: Final = 10_000
"""The number of hits of a leg among which a record is looked for, unless the pool itself is larger."""

_SHOWN_TOKENS: Final = 8
"""The most tokens of each kind on a page."""

_FIRM_SPACE: Final = "\N{NO-BREAK SPACE}"

_WIDTH: Final = 100
"""The most characters in a line of a page."""


@dataclass(frozen=True, slots=True)
class LegPlace:
    """The place of a record in one leg.

    Attributes:
        leg: "dense", "lexical" or "bm25".
        score: The record's raw score; None if the leg is BM25 and does not find it, or if the record was deleted
            meanwhile.
        rank: The place among all records that match the filter, from 1; None if the record shares no token with the
            query, or is not among the first `DEEPEST`.
        n_pool: The number of candidates that the leg found.
        edge: The raw score of the last of these candidates; None if there are none.
        is_in_pool: Whether the record is one of these candidates.
    """

    leg: str
    score: float | None
    rank: int | None
    n_pool: int
    edge: float | None
    is_in_pool: bool

    @property
    def is_missed(self) -> bool:
        """Whether the record is not in the pool though its score is above the last candidate's.

        This happens because the engine's index is approximate.
        """
        if self.is_in_pool or self.score is None or self.edge is None:
            return False
        return self.score > self.edge + 1e-5 * max(1.0, abs(self.edge))

    def __str__(self) -> str:
        """Return one line, without the leg's name."""
        if self.score is None or (self.score <= 0 and self.leg != "dense"):
            return "shares no token with the query"
        rank = f"rank {self.rank:,}" if self.rank is not None else f"not among the first {DEEPEST:,}"
        line = f"{self.score:.3f}, {rank}"
        if self.is_in_pool or self.edge is None:
            return line
        if self.is_missed:
            return f"{line}; above the last candidate's {self.edge:.3f}, but the approximate index missed it"
        return f"{line}; the last candidate has {self.edge:.3f}, {self.edge - self.score:.3f} more"


@dataclass(frozen=True, slots=True)
class NearMatch:
    """A token of the query that the record lacks, and the record's token that is nearest to it.

    Attributes:
        query_token: The token of the query; "▁" marks the start of a word.
        query_weight: Its lexical weight in the query, 0.0 if it has none.
        document_token: The record's token with the nearest vector. If there are no token vectors, the token with the
            most similar spelling, or "" if no token is similar.
        similarity: The cosine of the two vectors; None if the tokens were compared by spelling.
    """

    query_token: str
    query_weight: float | None
    document_token: str
    similarity: float | None

    def __str__(self) -> str:
        """Return both tokens and their similarity."""
        word, other = (token.strip("▁") or token for token in (self.query_token, self.document_token))
        if not other:
            return f"{word} (nothing near)"
        return f"{word}→{other}" + ("" if self.similarity is None else f" {self.similarity:.2f}")


@dataclass(frozen=True, slots=True)
class Missing:
    """The reasons why a search does not find a record; `str()` makes a page of them.

    If a filter excludes the record, the attributes after `excluded_by` are about the same search without the filter. If
    the record is not a candidate, its ranks are those that it would have with `needed_pool_size`.

    Attributes:
        query: The text of the query.
        id: The record's id.
        options: The options of the search.
        is_stored: Whether the store has the record; if not, the attributes that follow are empty.
        excluded_by: The clauses of the filter that the record does not fulfil.
        legs: Its place in each leg that finds candidates.
        is_candidate: Whether it is in the pool of a leg.
        needed_pool_size: The smallest `pool_size` that makes it a candidate; None if it is one, if no leg has it
            among its first `DEEPEST`, or if an approximate index missed it.
        scores: Its raw score in every mode that ranks.
        score: Its final score; None if it has no rank.
        rank: Its final rank, from 1; None if no pool reaches it.
        n_candidates: How many candidates are ranked.
        last_score: The final score of the k-th candidate, or of the last if there are fewer.
        probability: How probable it is that the best candidate answers, 0 to 1; None without a calibration for the
            search. Below `min_probability` the search returns nothing.
        rank_by_weights: The rank that other weights would give it: each mode alone, and the presets.
        needed_weights: The weights in tenths that put it among the first k and are nearest to the search's weights;
            None if it is among the first k already, or if no weights put it there.
        text_length: How many characters its text has.
        text_read_to: How many of these the model has read.
        query_read_to: How many of the query's characters the model has read.
        shared: The tokens that both have; those that add most to the score come first.
        near: The tokens of the query that the record lacks, without punctuation, each with the record's nearest token.
            The most similar pairs come first.
    """

    query: str
    id: str
    options: SearchOptions
    is_stored: bool
    excluded_by: tuple[Clause, ...] = ()
    legs: tuple[LegPlace, ...] = ()
    is_candidate: bool = False
    needed_pool_size: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    rank: int | None = None
    n_candidates: int = 0
    last_score: float | None = None
    probability: float | None = None
    rank_by_weights: Mapping[str, int] = field(default_factory=dict)
    needed_weights: ModeWeights | None = None
    text_length: int = 0
    text_read_to: int = 0
    query_read_to: int = 0
    shared: tuple[TokenMatch, ...] = ()
    near: tuple[NearMatch, ...] = ()

    @property
    def is_found(self) -> bool:
        """Whether the search does find the record: then there is nothing to explain."""
        return self.is_candidate and not self.excluded_by and self._is_first and self._is_above and self._is_answered

    @property
    def _is_answered(self) -> bool:
        return self.probability is None or self.probability >= (self.options.min_probability or 0.0)

    @property
    def _is_first(self) -> bool:
        return self.rank is not None and self.rank <= self.options.k

    @property
    def _is_above(self) -> bool:
        threshold = self.options.score_threshold
        return threshold is None or (self.score is not None and self.score >= threshold)

    def __str__(self) -> str:
        """Return a page with every cause and what would change it."""
        if not self.is_stored:
            return f"The store has no record {self.id!r}."
        if self.is_found:
            head = f"It is found: rank {self.rank} of {self.n_candidates} candidates, k={self.options.k}."
        else:
            head = f"Why a search for {self.query!r} does not find {self.id!r}:"
        parts = [self._filter_lines(), self._leg_lines(), self._rank_lines(), self._token_lines(), self._read_lines()]
        return "\n\n".join([head, *("\n".join(map(_wrapped, lines)) for part in parts if (lines := list(part)))])

    def _filter_lines(self) -> Iterator[str]:
        if self.excluded_by:
            yield "The filter excludes it:"
            yield from (f"  {clause}" for clause in self.excluded_by)
            yield "What follows is about the same search without the filter."

    def _leg_lines(self) -> Iterator[str]:
        pool = max(self.options.pool_size, self.options.k)
        state = "is a candidate" if self.is_candidate else "is not a candidate: no leg brings it"
        yield f"It {state} (each leg brings its first {pool}):"
        for leg in self.legs:
            yield f"  {leg.leg:8} {leg}"
        if self.needed_pool_size is not None:
            yield f"pool_size={self.needed_pool_size} would make it a candidate."
        elif any(leg.is_missed for leg in self.legs):
            yield "Its score is high enough: a larger pool_size makes the engine search further."
        elif not self.is_candidate:
            yield f"No leg has it among its first {max(DEEPEST, pool):,}: a larger pool_size does not help."

    def _rank_lines(self) -> Iterator[str]:
        scores = ", ".join(f"{mode} {score:.3f}" for mode, score in self.scores.items())
        if self.rank is None:
            yield f"It has no rank. Its scores: {scores}."
            return
        then = "" if self.is_candidate else f" with pool_size={self.needed_pool_size}"
        yield f"Rank {self.rank} of {self.n_candidates} candidates{then}, and k={self.options.k} are returned."
        yield f"  score {self.score:.3f} ({scores})"
        if not self._is_first and self.last_score is not None and self.score is not None:
            more = self.last_score - self.score
            yield f"  rank {self.options.k} has {self.last_score:.3f}, {more:.3f} more"
        if self.excluded_by and self._is_first and self._is_above and self._is_answered:
            yield "  so only the filter excludes it"
        if not self._is_answered:
            yield (
                f"  the best candidate answers with a probability of {self.probability:.2f}, below min_probability="
                f"{self.options.min_probability:g}: nothing is returned"
            )
        if not self._is_above:
            yield f"  its score is below score_threshold={self.options.score_threshold}"
        if self.rank_by_weights:
            yield "  rank by other weights: " + _items((n, str(rank)) for n, rank in self.rank_by_weights.items())
        if self.needed_weights is not None:
            w = self.needed_weights
            numbers = f"{w.dense:g},{w.lexical:g},{w.multi_vector:g}"
            yield f"  weights={numbers} would bring it among the first {self.options.k}"
        elif not self._is_first:
            yield f"  no weights in tenths bring it among the first {self.options.k}; k={self.rank} does"

    def _token_lines(self) -> Iterator[str]:
        shared = _items((m.token.strip("▁") or m.token, f"{m.score:.3f}") for m in self.shared[:_SHOWN_TOKENS])
        yield f"Tokens that both have: {shared or 'none'}."
        if self.near:
            yield "Tokens of the query that it lacks, and its nearest:"
            yield "  " + ", ".join(str(match).replace(" ", _FIRM_SPACE) for match in self.near[:_SHOWN_TOKENS])

    def _read_lines(self) -> Iterator[str]:
        if self.text_read_to < self.text_length:
            yield (
                f"The model has read {self.text_read_to:,} of its text's {self.text_length:,} characters: a search "
                "cannot find the rest. Split the text, or allow a larger max_length."
            )
        else:
            yield "The model has read its whole text."
        if self.query_read_to < len(self.query):
            yield f"The model has read {self.query_read_to:,} of the query's {len(self.query):,} characters."


def _items(items: Iterable[tuple[str, str]]) -> str:
    """Return names with their numbers; a line never breaks between a name and its number."""
    return ", ".join(f"{name}{_FIRM_SPACE}{number}" for name, number in items)


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    filled = textwrap.fill(line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return filled.replace(_FIRM_SPACE, " ")
