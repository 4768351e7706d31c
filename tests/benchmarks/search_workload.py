"""Collections of BGE-M3's shape without a model: topics, so that some texts are near, and Zipf's vocabulary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from m3_integrations.model.forward_pass import largest_weights, lexical_rows
from m3_integrations.vectors import (
    FloatArray,
    IntArray,
    Kind,
    M3Scores,
    M3Vectors,
    Mode,
    ModeWeights,
    MultiVectorRows,
    offsets_of,
)

DIM, VOCABULARY, TOKENS_PER_TEXT, N_TOPICS = 1024, 250_002, 120, 500


class Collection:
    """Texts and queries as random vectors: dense 1024, about 86 different tokens a text, and token vectors if asked.

    Args:
        n: How many texts.
        n_token_vectors: Per text; 0 for none.
        seed: Decides everything.
    """

    def __init__(self, n: int, n_token_vectors: int, seed: int = 0) -> None:
        self.n, self.n_token_vectors = n, n_token_vectors
        self._random = np.random.default_rng(seed)
        self._topics = self._random.normal(size=(N_TOPICS, DIM)).astype(np.float32)

    def batches(self, batch: int = 500) -> Iterator[tuple[list[str], list[str], list[dict[str, int]], M3Vectors]]:
        """Yield the columns of the records, a batch at a time: ids, texts, metadata, vectors."""
        for start in range(0, self.n, batch):
            size = min(batch, self.n - start)
            rows = range(start, start + size)
            vectors = self._vectors(size, TOKENS_PER_TEXT, self.n_token_vectors)
            yield [f"r{i}" for i in rows], [f"text {i}" for i in rows], [{"year": 2000 + i % 25} for i in rows], vectors

    def queries(self, n: int) -> M3Vectors:
        """Give queries of 12 tokens."""
        return self._vectors(n, 12, 12 if self.n_token_vectors else 0)

    def _vectors(self, n: int, n_tokens: int, n_token_vectors: int) -> M3Vectors:
        topics = self._topics[self._random.integers(0, N_TOPICS, n)]
        tokens = np.minimum(self._random.zipf(1.3, (n, n_tokens)), VOCABULARY - 1)
        rows = np.repeat(np.arange(n), n_tokens)
        weights = self._random.gamma(2.0, 0.1, n * n_tokens).astype(np.float32)
        keys, largest = largest_weights(
            *(torch.from_numpy(array) for array in (weights, rows, tokens.ravel(), np.empty(0, np.int64)))
        )
        multi_vector = None
        if n_token_vectors:
            flat = _unit(np.repeat(topics, n_token_vectors, axis=0), self._random)
            multi_vector = MultiVectorRows(offsets_of([n_token_vectors] * n), flat)
        return M3Vectors(
            dense=_unit(topics, self._random),
            lexical=lexical_rows(keys.numpy(), largest.numpy(), n),
            multi_vector=multi_vector,
        )


def _unit(centres: FloatArray, random: np.random.Generator) -> FloatArray:
    moved = centres + random.standard_normal(centres.shape, dtype=np.float32)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), dtype=np.float32)


class KnownQueries:
    """An encoder that knows the vectors of its queries, which are "0", "1" and so on: only searching is timed."""

    model, fingerprint, dim = "known queries", "known", DIM

    def __init__(self, queries: M3Vectors) -> None:
        self.queries = queries
        self.modes: tuple[Mode, ...] = queries.modes

    def tokenize(
        self, texts: Sequence[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[list[str]]:
        raise NotImplementedError

    def token_spans(
        self, texts: Sequence[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[IntArray]:
        raise NotImplementedError

    def encode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        return self.queries[[int(text) for text in texts]].select(modes or self.modes)

    def encode_batches(
        self, texts: Iterable[str], *, modes: Sequence[Mode] | None = None, show_progress: bool = False
    ) -> Iterator[M3Vectors]:
        raise NotImplementedError

    async def aencode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        await asyncio.sleep(0)
        return self.encode(texts, kind=kind, modes=modes)

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, weights: ModeWeights | None = None) -> M3Scores:
        raise NotImplementedError


def disk_bytes(folder: Path) -> int:
    """What a folder takes on the disk; the engine's files have holes."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))
