"""Why a record matches a query."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from m3_integrations.scoring import score_vectors
from m3_integrations.search.reading import NO_LIMIT
from m3_integrations.store import Record
from m3_integrations.vectors import Encoder, M3Vectors
from m3_integrations.vectors.pooling import group_starts

_UNKNOWN: Final = "?"


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """A token that query and document share, with its learned weight in each."""

    token: str
    query_weight: float
    document_weight: float

    @property
    def score(self) -> float:
        """The token's part of the lexical score."""
        return self.query_weight * self.document_weight


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A query token, the most similar document token, and their similarity (cosine).

    The document token is "?" if this encoder cannot name it: it cuts the text sooner than the encoder of the document
    did. That happens only if the document was encoded with another pooling and is almost as long as the checkpoint
    allows.
    """

    query_token: str
    document_token: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a record matches a query.

    Attributes:
        scores: The raw score in every mode.
        lexical: The shared tokens; those with the largest part of the score come first.
        multi_vector: One pair for each query token, in the order of the query. The mean of their similarities is the
            multi-vector score.
    """

    scores: dict[str, float]
    lexical: list[TokenMatch] = field(default_factory=list)
    multi_vector: list[TokenPair] = field(default_factory=list)


def explain_record(encoder: Encoder, query: str, record: Record) -> Explanation:
    """Compare a query with a record that has its vectors.

    Raises:
        ValueError: If the record has no vectors.
    """
    if record.vectors is None:
        raise ValueError(f"record {record.id!r} came without vectors: get it with with_vectors=True")
    vectors = encoder.encode([query], kind="query")
    scores = score_vectors(vectors, record.vectors)
    explanation = Explanation({mode: float(getattr(scores, mode)[0]) for mode in scores.modes})
    if "lexical" in scores.modes:
        explanation.lexical.extend(_token_matches(vectors, record.vectors))
    if "multi_vector" in scores.modes:
        (words,) = encoder.tokenize([query], kind="query")
        similarities = vectors.multi_vector[0] @ record.vectors.multi_vector[0].T  # (query tokens, document tokens)
        others = _document_tokens(encoder, record, similarities.shape[1])
        if others:
            for word, row in zip(words, similarities, strict=True):
                explanation.multi_vector.append(TokenPair(word, others[int(row.argmax())], float(row.max())))
    return explanation


def _document_tokens(encoder: Encoder, record: Record, n: int) -> list[str]:
    """Return the token that each of a record's n vectors stands for.

    The record may have been cut at another limit than this encoder's. The number of its vectors shows where it was cut.
    The number of pooled vectors does not, so for them this function assumes this encoder's limit.
    """
    if record.is_pooled:
        return _pooled_tokens(encoder.tokenize([record.text])[0], n)
    (tokens,) = encoder.tokenize([record.text], max_length=NO_LIMIT)
    *words, separator = tokens
    # How many tokens fit under the checkpoint's limit depends on the pooling.
    words = [*words, *[_UNKNOWN] * (n - len(tokens))]
    return [*words[: n - 1], separator] if n else []


def _pooled_tokens(tokens: list[str], n: int) -> list[str]:
    """Return the tokens that each of n pooled vectors stands for, joined."""
    starts = [*group_starts(len(tokens), n).tolist(), len(tokens)]
    return ["".join(tokens[a:b]) for a, b in pairwise(starts)]


def _token_matches(query: M3Vectors, document: M3Vectors) -> list[TokenMatch]:
    weights = document.lexical[0].to_dict()
    of_query = query.lexical[0]
    shared = [
        TokenMatch(token, value, weights[index])
        for index, value, token in zip(
            of_query.indices.tolist(), of_query.values.tolist(), of_query.token_names(), strict=True
        )
        if index in weights
    ]
    return sorted(shared, key=lambda match: -match.score)
