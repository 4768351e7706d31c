"""The part of a text that the model has read, and its tokens' vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from m3_integrations.store import Record
from m3_integrations.vectors import Encoder, FloatArray, IntArray, M3Vectors
from m3_integrations.vectors.pooling import group_starts

NO_LIMIT: Final = 1 << 30
"""More tokens than any checkpoint has positions for."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadTokens:
    """The part of a text that the model has read.

    Attributes:
        tokens: The tokens that its vectors were made of, without [SEP].
        spans: (tokens, 2) int64, the first character of each token and the character after its last.
        read_to: The number of characters that were read.
    """

    tokens: list[str]
    spans: IntArray
    read_to: int


def read_tokens(encoder: Encoder, records: Sequence[Record]) -> list[ReadTokens]:
    """Return the part of each record's text that was read, without a pass of the network.

    A record may have been cut at another limit than this encoder's. The number of its token vectors shows where it was
    cut. If they are pooled or absent, this function assumes this encoder's limit.
    """
    lengths = [_n_read(record) for record in records]
    found: dict[int, ReadTokens] = {}
    for limit in (NO_LIMIT, None):
        rows = [row for row, n in enumerate(lengths) if (n is None) is (limit is None)]
        texts = [records[row].text for row in rows]
        if texts:
            tokens = encoder.tokenize(texts, max_length=limit)
            spans = encoder.token_spans(texts, max_length=limit)
            for row, text, words, places in zip(rows, texts, tokens, spans, strict=True):
                found[row] = _cut(text, words, places, lengths[row])
    return [found[row] for row in range(len(records))]


def _n_read(record: Record) -> int | None:
    """Return the number of tokens that a record's vectors stand for, with [SEP]; None if the vectors do not show it."""
    if record.vectors is None or record.is_pooled or "multi_vector" not in record.vectors.modes:
        return None
    return len(record.vectors.multi_vector[0])


def _cut(text: str, tokens: list[str], spans: IntArray, n_read: int | None) -> ReadTokens:
    n = (len(tokens) if n_read is None else min(n_read, len(tokens))) - 1
    end = int(spans[n - 1, 1]) if n > 0 else 0
    is_whole = n == len(tokens) - 1 and not text[end:].strip()
    return ReadTokens(tokens[:n], spans[:n], len(text) if is_whole else end)


def token_vectors(vectors: M3Vectors, n: int) -> FloatArray:
    """Return a vector for each of n tokens of a record, (n, d) float32; tokens that were pooled share one."""
    rows = vectors.multi_vector[0]
    if len(rows) > n:  # the last is [SEP]'s
        return rows[:n]
    return rows[np.searchsorted(group_starts(n + 1, len(rows)), np.arange(n), side="right") - 1]
