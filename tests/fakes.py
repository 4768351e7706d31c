"""A collection of random vectors, and an encoder that knows the vectors of its texts; no network involved."""

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from m3_integrations import M3Scores, M3Vectors, ModeWeights, scoring
from m3_integrations.vectors import (
    MODES,
    FloatArray,
    IntArray,
    Kind,
    LexicalRows,
    Mode,
    MultiVectorRows,
    offsets_of,
)

DIM, TOKEN_DIM, VOCABULARY = 8, 32, 40

WIDER = np.linalg.qr(np.random.default_rng(0).normal(size=(TOKEN_DIM, 6)))[0].T
"""(6, 32): turns six numbers into 32 with the same inner products. Qdrant 1.18 multiplies fewer in half precision."""


def random_vectors(random: np.random.Generator, n: int, tokens: int | None = None) -> M3Vectors:
    """Texts of 1 to 9 tokens, or of that many, over 40 token ids."""
    lengths = random.integers(1, 10, n) if tokens is None else np.full(n, tokens)
    rows = np.repeat(np.arange(n), lengths)
    dense, flat = random.normal(size=(n, DIM)), random.normal(size=(len(rows), 6)) @ WIDER
    return M3Vectors(
        dense=(dense / np.linalg.norm(dense, axis=1, keepdims=True)).astype(np.float32),
        lexical=lexical_of_tokens(
            rows,
            random.integers(0, VOCABULARY, len(rows)),
            random.normal(size=len(rows)).astype(np.float32),
            n,
            [f"t{i}" for i in range(VOCABULARY)],
        ),
        multi_vector=MultiVectorRows(
            offsets_of(lengths), (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)
        ),
    )


def lexical_of_tokens(
    rows: IntArray, token_ids: IntArray, weights: FloatArray, n: int, vocabulary: Sequence[str] | None = None
) -> LexicalRows:
    """By a plain loop: only positive weights stay, and of a repeated token the largest."""
    largest: list[dict[int, float]] = [{} for _ in range(n)]
    for row, token, weight in zip(rows.tolist(), token_ids.tolist(), weights.tolist(), strict=True):
        if weight > 0:
            largest[row][token] = max(weight, largest[row].get(token, 0.0))
    return LexicalRows(
        offsets_of([len(text) for text in largest]),
        np.array([token for text in largest for token in sorted(text)], np.int32),
        np.array([text[token] for text in largest for token in sorted(text)], np.float32),
        vocabulary,
    )


class FakeEncoder:
    """Gives every text random vectors of its own, always the same; counts its calls."""

    model = "fake"
    fingerprint = "fa4e"
    dim = DIM

    def __init__(self, modes: tuple[Mode, ...] = MODES, delay_s: float = 0.0) -> None:
        self.modes = modes
        self.delay_s = delay_s
        self.encoded: list[tuple[Kind, str]] = []

    def _vectors(self, texts: Sequence[str], kind: Kind) -> M3Vectors:
        time.sleep(self.delay_s)
        self.encoded.extend((kind, text) for text in texts)
        parts = [random_vectors(np.random.default_rng(list(text.encode())), 1, len(text.split()) + 1) for text in texts]
        return M3Vectors.concatenate(parts) if parts else random_vectors(np.random.default_rng(0), 1)[:0]

    def tokenize(
        self, texts: Sequence[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[list[str]]:
        room = None if max_length is None else max_length - 2  # [CLS] and [SEP]
        return [[*text.split()[:room], "</s>"] for text in texts]

    def token_spans(
        self, texts: Sequence[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[IntArray]:
        found: list[IntArray] = []
        for text, tokens in zip(texts, self.tokenize(texts, kind=kind, max_length=max_length), strict=True):
            spans = [word.span() for word in re.finditer(r"\S+", text)][: len(tokens) - 1]
            found.append(np.array([*spans, (spans[-1][1] if spans else 0,) * 2], dtype=np.int64))
        return found

    def encode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        return self._vectors(texts, kind).select(modes or self.modes)

    def encode_batches(
        self, texts: Iterable[str], *, modes: Sequence[Mode] | None = None, show_progress: bool = False
    ) -> Iterator[M3Vectors]:
        for text in texts:
            yield self.encode([text], modes=modes)

    async def aencode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        return await asyncio.to_thread(self.encode, texts, kind=kind, modes=modes)

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, weights: ModeWeights | None = None) -> M3Scores:
        queries = self.encode([query for query, _ in pairs], kind="query")
        documents = self.encode([text for _, text in pairs])
        rows = np.arange(len(pairs))
        return scoring.score_pairs(queries, documents, rows, rows, weights)
