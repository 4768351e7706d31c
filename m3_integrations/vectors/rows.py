"""Vectors of texts that have different numbers of tokens: lexical weights and multi-vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


def offsets_of(lengths: Sequence[int] | IntArray) -> IntArray:
    """Give (n + 1,) int64 offsets of rows with these lengths in a flat array."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True, slots=True, eq=False)
class LexicalWeights:
    """The learned weight of every distinct token of one text.

    Attributes:
        indices: (tokens,) int32 token ids of the model's vocabulary, rising, each once.
        values: (tokens,) float32, greater than 0, no upper bound. Their product summed over shared tokens is the
            lexical score.
        vocabulary: The token of every id, shared with the encoder. Not pickled.
    """

    indices: NDArray[np.int32]
    values: FloatArray
    vocabulary: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def tokens(self) -> list[tuple[str, float]]:
        """Give the tokens with their weights, heaviest first; "▁" marks the start of a word.

        Raises:
            ValueError: If these weights did not come from an encoder (or were pickled), so the tokens are not known.
        """
        names = self.token_names()
        order = np.argsort(-self.values, kind="stable")
        return [(names[i], float(self.values[i])) for i in order]

    def token_names(self) -> list[str]:
        """Give the tokens in the order of the indices.

        Raises:
            ValueError: If these weights did not come from an encoder (or were pickled), so the tokens are not known.
        """
        if self.vocabulary is None:
            raise ValueError("these weights do not know their vocabulary: look their indices up in encoder.vocabulary")
        return [self.vocabulary[i] for i in self.indices]

    def to_dict(self) -> dict[int, float]:
        """Give {token id: weight} in plain Python numbers, as JSON and vector stores want them."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return LexicalWeights, (self.indices, self.values)

    def __repr__(self) -> str:
        return f"LexicalWeights({len(self)} tokens)"


class _Rows:
    """Rows of different lengths in one flat array: row i is the slice offsets[i] to offsets[i + 1]."""

    def __init__(self, offsets: IntArray, *columns: NDArray[Any]) -> None:
        self.offsets = np.ascontiguousarray(offsets, dtype=np.int64)
        if self.offsets.ndim != 1 or len(self.offsets) == 0 or self.offsets[0] != 0 or np.any(np.diff(offsets) < 0):
            raise ValueError("offsets must be one-dimensional, begin with 0 and never fall")
        for column in columns:
            if len(column) != self.offsets[-1]:
                raise ValueError(f"offsets end at {self.offsets[-1]} but there are {len(column)} values")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(n,) int64, the number of tokens of every row."""
        return np.diff(self.offsets)

    def _bounds(self, i: int) -> tuple[int, int]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return int(self.offsets[i % len(self)]), int(self.offsets[i % len(self) + 1])

    def _gather(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Give the offsets of the chosen rows put one after another, and where each of their values lies now."""
        lengths = self.lengths[rows]
        offsets = offsets_of(lengths)
        return offsets, np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)


class LexicalRows(_Rows, Sequence[LexicalWeights]):
    """The lexical weights of n texts in three flat arrays.

    Attributes:
        offsets: (n + 1,) int64; text i has the values offsets[i] to offsets[i + 1].
        indices: (tokens,) int32 token ids, rising within a text.
        values: (tokens,) float32 weights, greater than 0.
        vocabulary: The token of every id, or None. Not pickled.
    """

    def __init__(
        self,
        offsets: IntArray,
        indices: NDArray[np.int32],
        values: FloatArray,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        super().__init__(offsets, indices, values)
        self.indices = np.ascontiguousarray(indices, dtype=np.int32)
        self.values = np.ascontiguousarray(values, dtype=np.float32)
        self.vocabulary = vocabulary

    @classmethod
    def from_tokens(
        cls,
        rows: IntArray,
        token_ids: IntArray,
        weights: FloatArray,
        n: int,
        vocabulary: Sequence[str] | None = None,
    ) -> Self:
        """Build from one weight per token: only positive weights stay, and of a repeated token the largest.

        Both rules are those of FlagEmbedding's M3 (paper, section 3.2).

        Args:
            rows: (tokens,) which of the n texts a token belongs to, in any order.
            token_ids: (tokens,) its id.
            weights: (tokens,) float32 its weight.
            n: How many texts there are; a text without a positive weight gives an empty row.
            vocabulary: The token of every id.
        """
        keep = weights > 0
        rows, token_ids, weights = rows[keep], token_ids[keep], weights[keep]
        keys = rows.astype(np.int64) << 32 | token_ids
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        values = np.maximum.reduceat(weights[order], first) if len(first) else weights[:0]
        distinct = keys[first]
        lengths = np.bincount(distinct >> 32, minlength=n)
        indices = (distinct & 0xFFFFFFFF).astype(np.int32)
        return cls(offsets_of(lengths), indices, values, vocabulary)

    @classmethod
    def from_weights(cls, weights: Sequence[LexicalWeights]) -> Self:
        """Put single texts' weights together."""
        offsets = offsets_of([len(w) for w in weights])
        indices = np.concatenate([np.empty(0, np.int32), *(w.indices for w in weights)])
        values = np.concatenate([np.empty(0, np.float32), *(w.values for w in weights)])
        return cls(offsets, indices, values, weights[0].vocabulary if weights else None)

    @overload
    def __getitem__(self, i: int) -> LexicalWeights: ...
    @overload
    def __getitem__(self, i: slice) -> LexicalRows: ...
    def __getitem__(self, i: int | slice) -> LexicalWeights | LexicalRows:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        start, end = self._bounds(i)
        return LexicalWeights(self.indices[start:end], self.values[start:end], self.vocabulary)

    def take(self, rows: IntArray) -> LexicalRows:
        """Copy the chosen rows, in the order given."""
        offsets, where = self._gather(rows)
        return LexicalRows(offsets, self.indices[where], self.values[where], self.vocabulary)

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.offsets.nbytes + self.indices.nbytes + self.values.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        return LexicalRows, (self.offsets, self.indices, self.values)


class MultiVectorRows(_Rows, Sequence[FloatArray]):
    """The token vectors of n texts in one flat array.

    Attributes:
        offsets: (n + 1,) int64; text i has the token vectors offsets[i] to offsets[i + 1].
        flat: (tokens, d) float32, unit length.
    """

    def __init__(self, offsets: IntArray, flat: FloatArray) -> None:
        super().__init__(offsets, flat)
        self.flat = np.ascontiguousarray(flat, dtype=np.float32)
        if self.flat.ndim != 2:
            raise ValueError(f"token vectors must be (tokens, d), got shape {self.flat.shape}")

    @overload
    def __getitem__(self, i: int) -> FloatArray: ...
    @overload
    def __getitem__(self, i: slice) -> MultiVectorRows: ...
    def __getitem__(self, i: int | slice) -> FloatArray | MultiVectorRows:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        start, end = self._bounds(i)
        return self.flat[start:end]

    def take(self, rows: IntArray) -> MultiVectorRows:
        """Copy the chosen rows, in the order given."""
        offsets, where = self._gather(rows)
        return MultiVectorRows(offsets, self.flat[where])

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.offsets.nbytes + self.flat.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        return MultiVectorRows, (self.offsets, self.flat)
