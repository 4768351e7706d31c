"""Read and check the answers of an `m3 serve`: its model, vectors, tokens and scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from m3_integrations.vectors import (
    FloatArray,
    IntArray,
    LexicalRows,
    M3Scores,
    M3Vectors,
    Mode,
    MultiVectorRows,
    check_modes,
    take_vectors,
)

API: Final = 1
"""Version of the interface that this package speaks."""

ENVELOPE_BYTES: Final = 1 << 20
"""The most bytes of an answer that are not values."""

_LONGEST_EXPANSION: Final = 18
"""The most characters that NFKC makes of one; tokenizers normalise by it."""

_INSTRUCTION_TOKENS: Final = 1024
"""Assumed most tokens of the server's query instruction, which the client does not know."""


@dataclass(frozen=True, slots=True)
class About:
    """A server's description of its encoder.

    Attributes:
        model: The model's name at the server.
        fingerprint: The model's fingerprint.
        dim: Length of a dense vector.
        token_dim: Length of a token vector; 0 without that mode.
        modes: The modes that the checkpoint has heads for.
        max_length: The most tokens of a document.
        query_max_length: The most tokens of a query.
        dtype: The dtype of the network.
        pooling: How a dense vector is made.
        most_texts: The most texts, or pairs, of a request.
        most_bytes: The most bytes of a request's body.
        most_tokens: The most tokens of a request. A text counts as its characters, and at most as its length limit.
    """

    model: str
    fingerprint: str
    dim: int
    token_dim: int
    modes: tuple[Mode, ...]
    max_length: int
    query_max_length: int
    dtype: str
    pooling: str
    most_texts: int
    most_bytes: int
    most_tokens: int


def read_about(url: str, body: bytes) -> About:
    """Read a server's description of its encoder.

    Raises:
        ValueError: If the server is not an m3 serve, or has another version of the interface.
    """
    try:
        found = json.loads(body)
        api = found["api"]
    except (ValueError, KeyError, TypeError) as error:
        begins = body[:60].decode(errors="replace")
        raise ValueError(f"{url} answers, but it is not an m3 serve: its answer begins {begins!r}") from error
    if api != API:
        raise ValueError(
            f"{url} has version {api!r} of the interface (its package is {found.get('version')}), and this package has "
            f"version {API}: upgrade the older of the two"
        )
    try:
        limits = found["limits"]
        about = About(
            str(found["model"]), str(found["fingerprint"]), int(found["dim"]), int(found["token_dim"] or 0),
            check_modes(found["modes"]), int(found["max_length"]), int(found["query_max_length"]),
            str(found["dtype"]), str(found["pooling"]),
            int(limits["texts"]), int(limits["body_bytes"]), int(limits["tokens"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the description of its encoder by {url} cannot be read ({error!r}): {found!r}") from error
    if (
        min(about.dim, about.max_length, about.most_texts, about.most_bytes, about.most_tokens) < 1
        or about.token_dim < 0
    ):
        raise ValueError(f"the description of its encoder by {url} has impossible numbers: {found!r}")
    return about


def most_vector_bytes(about: About, texts: Iterable[str], *, is_query: bool, max_length: int | None) -> int:
    """Return the most bytes of an answer with the vectors of these texts."""
    limit = about.max_length if max_length is None else max_length
    size = ENVELOPE_BYTES
    for text in texts:
        tokens = len(text) * _LONGEST_EXPANSION + 3
        tokens = tokens + _INSTRUCTION_TOKENS if is_query else min(tokens, limit)
        size += (about.dim + 8) * 4 + tokens * (about.token_dim + 2) * 4
    return size


def read_vectors(
    url: str, about: About, body: bytes, n: int, *, modes: Sequence[Mode], vocabulary: Sequence[str]
) -> tuple[M3Vectors, int]:
    """Return the vectors of n texts in these modes, and how many of the texts were cut.

    Raises:
        ValueError: If the answer lacks one of these arrays or holds others.
    """
    try:
        arrays = load(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        n_cut = int(header["__metadata__"]["truncated"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        _refuse(url, f"the answer holds no vectors ({error})", error)

    try:
        vectors = take_vectors(arrays, n, modes, dim=about.dim, token_dim=about.token_dim, vocabulary=vocabulary)
    except ValueError as error:
        _refuse(url, f"the answer has {error}", error)
    if arrays:
        _refuse(url, f"the answer has {', '.join(sorted(arrays))}, which was not requested")
    return vectors, n_cut


def empty_vectors(about: About, modes: Sequence[Mode]) -> M3Vectors:
    """Return the vectors of no text."""
    nothing, none = np.zeros(1, np.int64), np.empty(0, np.float32)
    columns: dict[Mode, Any] = {
        "dense": np.empty((0, about.dim), np.float32),
        "lexical": LexicalRows(nothing, np.empty(0, np.int32), none),
        "multi_vector": MultiVectorRows(nothing, np.empty((0, about.token_dim), np.float32)),
    }
    return M3Vectors(**{mode: columns[mode] for mode in modes})


def read_tokens(url: str, body: bytes, n: int) -> list[list[str]]:
    """Return the tokens of n texts.

    Raises:
        ValueError: If the answer does not hold a list of strings for each of n texts.
    """
    tokens = _json(url, body, "tokens")
    if not isinstance(tokens, list) or len(tokens) != n or not all(_is_strings(each) for each in tokens):
        _refuse(url, f"the answer does not hold the tokens of {n} texts")
    return cast("list[list[str]]", tokens)


def read_spans(url: str, body: bytes, texts: Sequence[str]) -> list[IntArray]:
    """Return where the tokens of texts stand in them, (tokens, 2) int64 each.

    Raises:
        ValueError: If the answer holds anything else. A server of an earlier version does not send them.
    """
    listed = _json(url, body, "spans")
    try:
        spans = [np.array(each, dtype=np.int64).reshape(-1, 2) for each in listed]
    except (TypeError, ValueError, OverflowError):
        spans = []
    if len(spans) != len(texts) or any(
        each.size and not 0 <= each.min() <= each.max() <= len(text) for each, text in zip(spans, texts, strict=True)
    ):
        _refuse(url, f"the answer does not hold the places of the tokens of {len(texts)} texts")
    return spans


def read_vocabulary(url: str, body: bytes) -> tuple[str, ...]:
    """Return the token of every id.

    Raises:
        ValueError: If the answer does not hold a list of strings.
    """
    tokens = _json(url, body, "tokens")
    if not _is_strings(tokens):
        _refuse(url, "the answer does not hold a vocabulary")
    return tuple(tokens)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _json(url: str, body: bytes, name: str) -> Any:
    """Return the value with this name from a JSON object; raise ValueError if there is none."""
    try:
        return json.loads(body)[name]
    except (ValueError, KeyError, TypeError) as error:
        _refuse(url, f"the answer has no {name}", error)


def read_scores(url: str, body: bytes, n: int, modes: Sequence[Mode]) -> tuple[M3Scores, list[int], list[int]]:
    """Return the scores of n pairs in these modes, the pairs whose query was cut, and the pairs whose text was cut.

    Raises:
        ValueError: If the answer does not hold n finite scores in each mode, or row numbers of pairs.
    """
    columns: dict[str, FloatArray] = {}
    for name in ("combined", *modes):
        try:
            columns[name] = np.array(_json(url, body, name), dtype=np.float32)
        except (ValueError, TypeError) as error:
            _refuse(url, f"the answer does not hold {name} scores", error)
        if columns[name].shape != (n,) or not np.isfinite(columns[name]).all():
            _refuse(url, f"the answer does not hold {n} finite {name} scores")
    cut = [_rows(url, body, name, n) for name in ("truncated_queries", "truncated_texts")]
    return M3Scores(**columns), cut[0], cut[1]


def _rows(url: str, body: bytes, name: str, n: int) -> list[int]:
    rows = _json(url, body, name)
    if not isinstance(rows, list) or not all(isinstance(row, int) and 0 <= row < n for row in rows):
        _refuse(url, f"the answer does not hold {name} of {n} pairs")
    return rows


def _refuse(url: str, what: str, error: Exception | None = None) -> NoReturn:
    raise ValueError(f"{url} sent a wrong answer: {what}. Is a proxy between this process and m3 serve?") from error
