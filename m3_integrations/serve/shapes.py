"""The JSON bodies of the server's own routes."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Header
from pydantic import BaseModel, ConfigDict, Field, Strict

from m3_integrations.search import Bm25, Fusion, SearchMode
from m3_integrations.vectors import Kind, Mode

Weights = list[float] | dict[str, float] | str
"""Three numbers (dense, lexical, multi-vector), a mapping with these keys, or a preset such as "miracl"."""


class Asked(BaseModel):
    """A request's body: a field that does not exist is refused, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)  # strict: neither true nor "5" is accepted as a number


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    code: int


class ErrorAnswer(BaseModel):
    """The body of every error answer."""

    error: ErrorDetail
    detail: str = Field(description="The message again: Jina's clients read it here.")


class EncoderLimits(BaseModel):
    """Limits on one request."""

    texts: int = Field(description="The most texts, pairs, documents or records of a request.")
    body_bytes: int = Field(description="The most bytes of a request's body.")
    tokens: int = Field(
        description="The most tokens of /v1/encode. A text counts as its characters, at most its length limit."
    )


class EncoderAnswer(BaseModel):
    """The server's model, its settings and the limits on a request."""

    api: int = Field(description="The version of these routes.")
    model: str
    fingerprint: str = Field(description="Identifies the model by its files. Vectors of two models cannot be compared.")
    dim: int = Field(description="Length of a dense vector.")
    token_dim: int = Field(description="Length of a token vector; 0 without that head.")
    modes: list[Mode]
    max_length: int = Field(description="The most tokens of a document.")
    query_max_length: int = Field(description="The most tokens of a query.")
    dtype: str = Field(description="Type of the network's weights. Vectors are always float32.")
    pooling: str = Field(description="How a text's tokens become its dense vector.")
    version: str = Field(description="The package's version.")
    limits: EncoderLimits


class EncodeQuestion(Asked):
    """Texts to encode."""

    texts: list[str]
    kind: Kind = "document"
    modes: list[Mode] | None = Field(default=None, description="By default all modes that the model has.")
    max_length: int | None = Field(default=None, ge=3, description="The most tokens of a text, special ones included.")


class TokenizeQuestion(Asked):
    """Texts to split into tokens."""

    texts: list[str]
    kind: Kind = "document"
    max_length: int | None = Field(default=None, ge=3)
    with_spans: bool = Field(default=False, description="Whether to return the place of each token in its text.")


class TokenizeAnswer(BaseModel):
    """The tokens of each text, one for every row of its multi-vector."""

    tokens: list[list[str]]
    spans: list[list[Annotated[list[int], Field(min_length=2, max_length=2)]]] | None = Field(
        default=None, description="The first character of each token and the one after its last, in code points."
    )


class VocabularyAnswer(BaseModel):
    """The token of every id."""

    tokens: list[str]


class ScoreQuestion(Asked):
    """Pairs of a query and a text to score."""

    pairs: list[Annotated[tuple[str, str], Strict(False)]]
    weights: Weights | None = Field(default=None, description="Equal by default.")


class ScoreAnswer(BaseModel):
    """One score per pair and mode; modes that the model does not have are left out."""

    combined: list[float]
    dense: list[float] | None = None
    lexical: list[float] | None = None
    multi_vector: list[float] | None = None
    truncated_queries: list[int] = Field(description="Positions of the pairs whose query was longer than its limit.")
    truncated_texts: list[int] = Field(description="Positions of the pairs whose text was longer than its limit.")


class SearchQuestion(Asked):
    """A query, and options of `SearchOptions`."""

    query: str
    k: int | None = Field(default=None, ge=1, le=10_000)
    mode: SearchMode | None = None
    weights: Weights | None = None
    filter: dict[str, Any] | None = Field(default=None, description='Such as {"year": {"$gte": 2024}}.')
    score_threshold: float | None = None
    pool_size: int | None = Field(default=None, ge=1, le=10_000)
    fusion: Fusion | None = None
    rrf_k: int | None = Field(default=None, ge=0)
    bm25: Bm25 | None = None
    min_probability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Nothing is returned unless the best result answers with at least this probability. Above 0 it "
        "needs a server with a calibration that was fitted for such a search.",
    )


class FoundRecord(BaseModel):
    """One result of a search."""

    id: str
    text: str
    metadata: dict[str, Any] = Field(description="Dates are strings of ISO 8601.")
    score: float
    scores: dict[str, float] = Field(
        description="The raw score in every mode that ranked it. At a server with a calibration the best result has "
        '"probability": how probable it is that it answers.'
    )


class SearchAnswer(BaseModel):
    """Results, best first."""

    hits: list[FoundRecord]


class NewRecord(Asked):
    """A text to encode and store; a record with the same id is replaced."""

    text: str
    id: str | None = Field(default=None, description="A random one by default.")
    metadata: dict[str, Any] = Field(default_factory=dict)


class UpsertQuestion(Asked):
    """Texts to encode and store."""

    records: list[NewRecord]


class UpsertAnswer(BaseModel):
    """The records' ids, in the records' order."""

    ids: list[str]


class GetQuestion(Asked):
    """Records to return."""

    ids: list[str]


class StoredRecord(BaseModel):
    """A record without its vectors."""

    id: str
    text: str
    metadata: dict[str, Any] = Field(description="Dates are strings of ISO 8601.")


class GetAnswer(BaseModel):
    """The records that were found, in the order of the ids."""

    records: list[StoredRecord]


class DeleteQuestion(Asked):
    """Records to delete: either ids, or a filter that is not empty."""

    ids: list[str] | None = None
    filter: dict[str, Any] | None = None


class DeleteAnswer(BaseModel):
    """How many records were deleted."""

    deleted: int


class StoreDetail(BaseModel):
    """A store's modes, model and format."""

    modes: list[Mode] = Field(description="The modes that the records have vectors of; empty before the first record.")
    kept_modes: list[Mode] = Field(description="The modes that the store keeps.")
    fingerprint: str | None = Field(description="The model that it is bound to.")
    format: dict[str, Any] | None = Field(description="The format of the records; null for a store in memory.")


class StoreLimits(BaseModel):
    """Limits on one request."""

    records: int = Field(description="The most records, or ids, of a request.")
    body_bytes: int = Field(description="The most bytes of a request's body.")


class StoreAnswer(BaseModel):
    """The server's store, if it has one."""

    api: int = Field(description="The version of these routes.")
    version: str = Field(description="The package's version.")
    store: StoreDetail | None
    limits: StoreLimits


ParsedFilter = dict[str, Any] | None
"""A filter in `store.wire`'s format: {"all": [...]}, {"any": [...]}, {"not": ...} or {"key", "operator", "value"}."""

_PARSED: Final = (
    'A parsed filter: {"all": [filters]}, {"any": [filters]}, {"not": filter}, or {"key": "year", "operator": "$gte", '
    '"value": 2024}; a date is {"instant": microseconds from 1970 in UTC}.'
)


Expected = Annotated[
    str | None,
    Header(
        alias="X-M3-Fingerprint",
        description="The model of the store that the client opened, empty if it was bound to none. If the store is now "
        "of another model, the request is refused. Without this header the model is not checked.",
    ),
]
"""The model that a client expects of the store that it changes."""


class FetchQuestion(Asked):
    """Records to return."""

    ids: list[str]
    with_vectors: bool = False


class PageQuestion(Asked):
    """Which page of all records to return."""

    after: str | None = Field(
        default=None, description="The value of `after` on the page before; null for the first page."
    )


class CountQuestion(Asked):
    """Which records to count."""

    filter: ParsedFilter = Field(default=None, description=_PARSED)


class CountAnswer(BaseModel):
    """How many records match."""

    count: int


class RemoveQuestion(Asked):
    """Records to delete: either ids, or a filter."""

    ids: list[str] | None = None
    filter: ParsedFilter = Field(default=None, description=_PARSED)


class StoredAnswer(BaseModel):
    """How many records were stored."""

    upserted: int


class BindQuestion(Asked):
    """A model to bind the store to."""

    fingerprint: str


class OptimizeQuestion(Asked):
    """The run of `optimize` to wait for."""

    run: int | None = Field(default=None, description="The value of `run` in the answer before; null to begin a run.")


class OptimizeAnswer(BaseModel):
    """A run of `optimize`, and whether it has ended."""

    run: int
    is_done: bool


class DoneAnswer(BaseModel):
    """The request was carried out."""


class StateAnswer(BaseModel):
    """The server's state: "ok" or "ready"."""

    status: str
