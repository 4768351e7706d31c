"""The JSON bodies of the routes that explain: why a record is found, why it is not, and which sentences match."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from m3_integrations.search import Evidence, Missing
from m3_integrations.serve.shapes import Asked, SearchQuestion
from m3_integrations.vectors import Mode


class ExplainQuestion(Asked):
    """A query, and the record to compare it with."""

    query: str
    id: str


class SharedToken(BaseModel):
    """A token that query and record share; `score` is its part of the lexical score."""

    token: str
    query_weight: float
    document_weight: float
    score: float


class FoundToken(BaseModel):
    """A token of the query, and the record's token most similar to it."""

    query_token: str
    document_token: str
    similarity: float


class ExplainAnswer(BaseModel):
    """Why a record matches a query."""

    scores: dict[str, float]
    lexical: list[SharedToken]
    multi_vector: list[FoundToken]


class MissingQuestion(SearchQuestion):
    """A search, and the record that it does not find."""

    id: str


class UnmetClause(BaseModel):
    """A part of the filter that the record does not fulfil."""

    said: dict[str, Any] = Field(description='The part, such as {"year": {"$gte": 2024}}.')
    where: list[str] = Field(description="The parts that contain it, such as $or; the outermost first.")
    found: dict[str, list[Any]] = Field(
        description="The record's values under the part's keys; empty if it lacks a key."
    )


class LegPosition(BaseModel):
    """The record's position in one leg."""

    leg: str = Field(description="dense, lexical or bm25.")
    score: float | None = Field(description="The record's raw score; null if BM25 does not find it.")
    rank: int | None = Field(description="From 1; null if the leg does not find it among its first 10,000.")
    n_pool: int = Field(description="How many candidates the leg finds.")
    edge: float | None = Field(description="The raw score of the last of these candidates.")
    is_in_pool: bool = Field(description="Whether the record is among these candidates.")


class NearToken(BaseModel):
    """A token of the query that the record does not have, and the record's token that is nearest to it."""

    query_token: str
    query_weight: float | None = Field(description="Its lexical weight; null without a lexical mode.")
    document_token: str
    similarity: float | None = Field(description="The cosine of their vectors; null if they were compared by spelling.")


class MissingAnswer(BaseModel):
    """Why a search does not find a record. If the store has no such record, all values but the page are empty."""

    page: str = Field(description="All of this answer as a page of text.")
    is_stored: bool = Field(description="Whether there is such a record.")
    is_found: bool = Field(description="Whether the search does find it.")
    excluded_by: list[UnmetClause] = Field(
        description="If there are any, the fields below are about the same search without its filter."
    )
    legs: list[LegPosition]
    is_candidate: bool = Field(description="Whether a leg's pool has it.")
    needed_pool_size: int | None = Field(description="The smallest pool_size that makes it a candidate; null if none.")
    scores: dict[str, float] = Field(description="Its raw score in every mode that ranks.")
    score: float | None = Field(description="Its final score.")
    rank: int | None = Field(description="Its final rank, from 1; null if no pool reaches it.")
    n_candidates: int = Field(description="How many candidates are ranked.")
    last_score: float | None = Field(description="The final score of the k-th candidate, or of the last one.")
    probability: float | None = Field(
        description="How probable it is that the best candidate answers; null without a calibration for such a search."
    )
    rank_by_weights: dict[str, int] = Field(description="Its rank by each mode alone, and by each preset.")
    needed_weights: dict[str, float] | None = Field(
        description="The nearest weights in tenths that put it among the first k; null if it is there, or if none do."
    )
    text_length: int = Field(description="Characters of its text, in code points.")
    text_read_to: int = Field(description="How many of these the model has read.")
    query_read_to: int = Field(description="How many of the query's characters the model has read.")
    shared: list[SharedToken] = Field(
        description="The tokens that both have; those that add most to the score come first."
    )
    near: list[NearToken] = Field(description="The nearest first.")

    @classmethod
    def of(cls, missing: Missing) -> MissingAnswer:
        """Return the answer with the result of `Searcher.explain_missing`."""
        shared = [asdict(match) | {"score": match.score} for match in missing.shared]
        said = asdict(missing) | {"page": str(missing), "is_found": missing.is_found, "shared": shared}
        return cls.model_validate(said)


class SpansQuestion(Asked):
    """A query, and the records to search for matching sentences."""

    query: str
    ids: list[str] = Field(description="An id that is repeated is answered once.")


class FoundSentence(BaseModel):
    """A sentence of a record, and how much of the match it carries."""

    start: int = Field(description="Its first character, in code points of the record's text.")
    end: int = Field(description="The character after its last.")
    score: float = Field(
        description="Higher is better. Comparable within one text; 0 if the model has not read the sentence."
    )
    text: str


class RecordSpans(BaseModel):
    """The sentences of a record, in their order."""

    id: str
    sentences: list[FoundSentence]
    modes: list[Mode] = Field(description="What the scores were read off.")
    read_to: int = Field(description="How many characters of the text the model has read.")

    @classmethod
    def of(cls, evidence: Evidence) -> RecordSpans:
        """Return the answer with the result of `Searcher.spans` for one record."""
        return cls(
            id=evidence.id,
            sentences=[
                FoundSentence(**asdict(each), text=evidence.text[each.start : each.end]) for each in evidence.sentences
            ],
            modes=list(evidence.modes),
            read_to=evidence.read_to,
        )


class SpansAnswer(BaseModel):
    """The records, in the order of the ids."""

    records: list[RecordSpans]
