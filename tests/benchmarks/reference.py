"""FlagEmbedding at its defaults, as a contender: its calls, the work they do, and how far our numbers are from its."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from FlagEmbedding import BGEM3FlagModel

from tests.benchmarks.measure import available_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from m3_integrations.vectors import M3Scores, M3Vectors
    from tests.benchmarks.workload import IntArray

BATCH_SIZE = 256
"""Texts per batch, FlagEmbedding's default."""
SCORE_KEYS = {"dense": "dense", "lexical": "sparse", "multi_vector": "colbert"}
"""What FlagEmbedding calls the scores of our modes."""


class FlagEmbedding:
    """BGEM3FlagModel with all its settings at their defaults, but for the dtype and the one device.

    Args:
        folder: The checkpoint.
        device: "cpu" or "cuda:0"; a single one, since for several it starts a process each.
        dtype: "float32" or "float16".
    """

    def __init__(self, folder: Path, *, device: str, dtype: str) -> None:
        self._device = device
        self._model: Any = BGEM3FlagModel(str(folder), use_fp16=dtype == "float16", devices=device)

    def encode(self, texts: list[str], *, multi_vector: bool = True) -> dict[str, Any]:
        """Dense vectors and lexical weights, and multi-vectors if asked for, as FlagEmbedding returns them."""
        with _bars_drawn_unseen():
            result: dict[str, Any] = self._model.encode(
                texts, return_dense=True, return_sparse=True, return_colbert_vecs=multi_vector
            )
        return result

    def score(self, query: str, passages: list[str], *, batch_size: int = BATCH_SIZE) -> dict[str, list[float]]:
        """Every passage's score for the query, under FlagEmbedding's own keys (`SCORE_KEYS`)."""
        with _bars_drawn_unseen():
            scores: dict[str, list[float]] = self._model.compute_score(
                [(query, passage) for passage in passages], batch_size=batch_size
            )
        return scores

    def affordable_score_batch_size(self, n_pairs: int, query_tokens: int, longest_passage: int) -> int:
        """The default, or less where the scores of all queries with all passages of a batch would not fit in memory.

        compute_score makes one number for each token of each query with each token of each passage of a batch.
        """
        limit, batch_size = available_bytes(self._device) / 2, BATCH_SIZE
        while limit and 4 * min(batch_size, n_pairs) ** 2 * query_tokens * longest_passage > limit:
            batch_size //= 2
        return batch_size


def forwarded_tokens(lengths: IntArray) -> int:
    """Tokens that `FlagEmbedding.encode` sends through the network for texts of these lengths, padding included.

    Batches of 256 texts, longest first, each padded to its longest; the first goes through twice, since the forward
    pass that finds a batch size that fits in memory is thrown away.
    """
    falling = np.sort(lengths)[::-1]
    batches = [falling[i : i + BATCH_SIZE] for i in range(0, len(falling), BATCH_SIZE)]
    return sum(int(batch[0]) * len(batch) for batch in [batches[0], *batches])


def vector_differences(theirs: dict[str, Any], ours: M3Vectors) -> dict[str, float]:
    """The largest absolute difference of any number in each mode; infinite where shapes differ."""
    lexical = (
        _largest_lexical_difference(
            {int(token_id): float(weight) for token_id, weight in their_weights.items()}, weights.to_dict()
        )
        for their_weights, weights in zip(theirs["lexical_weights"], ours.lexical, strict=True)
    )
    multi_vector = (_largest_difference(a, b) for a, b in zip(theirs["colbert_vecs"], ours.multi_vector, strict=True))
    return {
        "dense": _largest_difference(theirs["dense_vecs"], ours.dense),
        "lexical": max(lexical),
        "multi_vector": max(multi_vector),
    }


def score_differences(theirs: dict[str, list[float]], ours: M3Scores) -> dict[str, float]:
    """The largest absolute difference of any score in each mode; infinite where shapes differ."""
    return {
        f"{mode} score": _largest_difference(np.array(theirs[key]), getattr(ours, mode))
        for mode, key in SCORE_KEYS.items()
    }


def _largest_difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a.astype(np.float64) - b).max())


def _largest_lexical_difference(a: dict[int, float], b: dict[int, float]) -> float:
    """A token that only one of them has counts with its whole weight."""
    return max((abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in a.keys() | b.keys()), default=0.0)


@contextlib.contextmanager
def _bars_drawn_unseen() -> Iterator[None]:
    """Let FlagEmbedding draw its progress bars as always, but into memory."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
