"""A text's views as arrays: lexical weights, multi-vectors, and all three views together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from m3_integrations.vectors.modes import Mode, check_modes

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


def offsets_of(lengths: Sequence[int] | IntArray) -> IntArray:
    """Return the (n + 1,) int64 offsets of rows with these lengths in a flat array."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True, slots=True, eq=False)
class LexicalWeights:
    """The learned weight of every distinct token of one text.

    Attributes:
        indices: (tokens,) int32 token ids, in rising order, each once.
        values: (tokens,) float32 weights, greater than 0, no upper bound.
        vocabulary: The token of every id, shared with the encoder. A pickle does not contain it.
    """

    indices: NDArray[np.int32]
    values: FloatArray
    vocabulary: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def tokens(self) -> list[tuple[str, float]]:
        """Return the tokens with their weights, heaviest first; "▁" marks the start of a word.

        Raises:
            ValueError: If the vocabulary is None: the weights were pickled, or did not come from an encoder.
        """
        names = self.token_names()
        order = np.argsort(-self.values, kind="stable")
        return [(names[i], float(self.values[i])) for i in order]

    def token_names(self) -> list[str]:
        """Return the tokens in the order of the indices.

        Raises:
            ValueError: If the vocabulary is None: the weights were pickled, or did not come from an encoder.
        """
        if self.vocabulary is None:
            raise ValueError("these weights have no vocabulary: look their indices up in encoder.vocabulary")
        return [self.vocabulary[i] for i in self.indices]

    def to_dict(self) -> dict[int, float]:
        """Return {token id: weight} in plain Python numbers, which JSON and vector stores accept."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return LexicalWeights, (self.indices, self.values)

    def __repr__(self) -> str:
        return f"LexicalWeights({len(self)} tokens)"


class _Rows:
    """Rows of different lengths in flat arrays: row i is the slice offsets[i] to offsets[i + 1]."""

    offsets: IntArray

    def _set_offsets(self, offsets: IntArray, n_values: int) -> None:
        self.offsets = np.ascontiguousarray(offsets, dtype=np.int64)
        if self.offsets.ndim != 1 or len(self.offsets) == 0 or self.offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError("offsets must be one-dimensional, begin with 0 and not decrease")
        if n_values != self.offsets[-1]:
            raise ValueError(f"offsets end at {self.offsets[-1]} but there are {n_values} values")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(n,) int64, the number of tokens of every row."""
        return np.diff(self.offsets)

    def _bounds(self, i: int) -> tuple[int, int]:
        n = len(self.offsets) - 1
        if not -n <= i < n:
            raise IndexError(f"index {i} is out of range for {n} rows")
        return int(self.offsets[i % n]), int(self.offsets[i % n + 1])

    def _gather(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Return the offsets of the chosen rows in a new flat array, and their values' positions in the present one."""
        starts = self.offsets[:-1][rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self.offsets[1:][rows] - starts, out=offsets[1:])
        return offsets, np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))


class LexicalRows(_Rows, Sequence[LexicalWeights]):
    """The lexical weights of n texts in three flat arrays.

    Attributes:
        offsets: (n + 1,) int64; text i has the values offsets[i] to offsets[i + 1].
        indices: (tokens,) int32 token ids, rising within a text.
        values: (tokens,) float32 weights, greater than 0.
        vocabulary: The token of every id, or None. A pickle does not contain it.
    """

    def __init__(
        self,
        offsets: IntArray,
        indices: NDArray[np.int32],
        values: FloatArray,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        if len(indices) != len(values):
            raise ValueError(f"{len(indices)} token ids for {len(values)} weights")
        self._set_offsets(offsets, len(values))
        self.indices = np.ascontiguousarray(indices, dtype=np.int32)
        self.values = np.ascontiguousarray(values, dtype=np.float32)
        self.vocabulary = vocabulary

    @staticmethod
    def from_weights(weights: Sequence[LexicalWeights]) -> LexicalRows:
        """Join the weights of single texts; the vocabulary is that of the first."""
        offsets = offsets_of([len(w) for w in weights])
        indices = np.concatenate([np.empty(0, np.int32), *(w.indices for w in weights)])
        values = np.concatenate([np.empty(0, np.float32), *(w.values for w in weights)])
        return LexicalRows(offsets, indices, values, weights[0].vocabulary if weights else None)

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

    def __repr__(self) -> str:
        return f"LexicalRows({len(self)} texts, {len(self.values)} tokens)"

    def __reduce__(self) -> tuple[Any, ...]:
        return LexicalRows, (self.offsets, self.indices, self.values)


class MultiVectorRows(_Rows, Sequence[FloatArray]):
    """The token vectors of n texts in one flat array.

    Attributes:
        offsets: (n + 1,) int64; text i has the token vectors offsets[i] to offsets[i + 1].
        flat: (tokens, d) float32, unit length.
    """

    def __init__(self, offsets: IntArray, flat: FloatArray) -> None:
        if flat.ndim != 2:
            raise ValueError(f"token vectors must be (tokens, d), got shape {flat.shape}")
        self._set_offsets(offsets, len(flat))
        self.flat = np.ascontiguousarray(flat, dtype=np.float32)

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

    def __repr__(self) -> str:
        return f"MultiVectorRows({len(self)} texts, {len(self.flat)} tokens, {self.flat.shape[1]} dimensions)"

    def __reduce__(self) -> tuple[Any, ...]:
        return MultiVectorRows, (self.offsets, self.flat)


class M3Vectors:
    """The dense, lexical and multi-vector views of n texts, in the order of the texts.

    Indexing with an integer, a slice or a list of integers returns another `M3Vectors`, with copies of the arrays.
    Reading a mode that was not computed raises ValueError.

    Attributes:
        modes: The modes that were computed.
        nbytes: Size of all arrays in bytes.
    """

    def __init__(
        self,
        *,
        dense: FloatArray | None = None,
        lexical: LexicalRows | None = None,
        multi_vector: MultiVectorRows | None = None,
    ) -> None:
        columns: dict[Mode, Any] = {"dense": dense, "lexical": lexical, "multi_vector": multi_vector}
        self._columns = {mode: column for mode, column in columns.items() if column is not None}
        self.modes: tuple[Mode, ...] = tuple(self._columns)
        lengths = {
            mode: len(column) if mode == "dense" else len(column.offsets) - 1 for mode, column in self._columns.items()
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"there must be one or more modes, all of equal length, got lengths {lengths}")
        self._n = lengths[self.modes[0]]

    def __len__(self) -> int:
        return self._n

    @property
    def dense(self) -> FloatArray:
        """(n, d) float32, unit length."""
        column: FloatArray = self._column("dense")
        return column

    @property
    def lexical(self) -> LexicalRows:
        """One `LexicalWeights` per text."""
        column: LexicalRows = self._column("lexical")
        return column

    @property
    def multi_vector(self) -> MultiVectorRows:
        """One (tokens, d) float32 array per text, rows of unit length: all tokens except [CLS]; [SEP] is included."""
        column: MultiVectorRows = self._column("multi_vector")
        return column

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        arrays = [self._columns[mode] for mode in self.modes if mode == "dense"]
        arrays += [a for m in self.modes if m != "dense" for a in vars(self._columns[m]).values()]
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))

    def _column(self, mode: Mode) -> Any:
        if mode not in self._columns:
            raise ValueError(
                f"{mode} vectors were not computed, only {', '.join(self.modes)}: ask for them with modes=, if the "
                "checkpoint has a head for them (see encoder.modes)"
            )
        return self._columns[mode]

    def __getitem__(self, rows: int | slice | Sequence[int] | IntArray) -> M3Vectors:
        if isinstance(rows, slice):
            return self.take(np.arange(self._n)[rows])
        chosen = np.atleast_1d(np.asarray(rows))
        if chosen.ndim > 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            raise TypeError(f"texts are chosen by integers, a slice or a list of integers, got {rows!r}")
        chosen = chosen.astype(np.int64)
        if np.any((chosen < -self._n) | (chosen >= self._n)):
            raise IndexError(f"index {rows} is out of range for {self._n} texts")
        return self.take(chosen % max(self._n, 1))

    def take(self, rows: IntArray) -> M3Vectors:
        """Copy the chosen texts, in the order given; a text may be chosen more than once."""
        return M3Vectors(
            **{mode: column[rows] if mode == "dense" else column.take(rows) for mode, column in self._columns.items()}
        )

    def select(self, modes: Iterable[Mode]) -> M3Vectors:
        """Return the vectors of only these modes, without copying.

        Raises:
            TypeError: If modes is one string.
            ValueError: For no mode, an unknown one, or one that was not computed.
        """
        if modes == self.modes:
            return self
        return M3Vectors(**{mode: self._column(mode) for mode in check_modes(modes)})

    @staticmethod
    def concatenate(parts: Sequence[M3Vectors]) -> M3Vectors:
        """Join the texts of all parts, in order; all parts need the same modes. A single part is returned itself.

        Raises:
            ValueError: For no parts or for parts of different modes.
        """
        modes = {part.modes for part in parts}
        if len(modes) != 1:
            raise ValueError(f"all parts must have the same modes, got {sorted(modes)}")
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {}
        for mode in parts[0].modes:
            each = [part._columns[mode] for part in parts]
            if mode == "dense":
                columns[mode] = np.concatenate(each)
                continue
            offsets = offsets_of(np.concatenate([rows.lengths for rows in each]))
            if mode == "lexical":
                indices, values = (np.concatenate([getattr(r, n) for r in each]) for n in ("indices", "values"))
                columns[mode] = LexicalRows(offsets, indices, values, each[0].vocabulary)
            else:
                columns[mode] = MultiVectorRows(offsets, np.concatenate([rows.flat for rows in each]))
        return M3Vectors(**columns)

    def __repr__(self) -> str:
        return f"M3Vectors({self._n} texts, {', '.join(self.modes)})"
