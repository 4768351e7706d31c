"""What an encoder returns: the vectors of texts and the scores of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from m3_integrations.vectors.modes import MODES, Mode, check_modes
from m3_integrations.vectors.rows import FloatArray, IntArray, LexicalRows, MultiVectorRows, offsets_of


class _ModeColumns:
    """One value per mode that was computed; asking for another raises."""

    _what: str

    def __init__(self, dense: Any, lexical: Any, multi_vector: Any) -> None:
        self._columns: dict[Mode, Any] = {
            mode: column
            for mode, column in zip(MODES, (dense, lexical, multi_vector), strict=True)
            if column is not None
        }
        lengths = {mode: len(column) for mode, column in self._columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"one or more modes of equal length are needed, got lengths {lengths}")
        self._n = next(iter(lengths.values()))

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that were computed."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return self._n

    def _column(self, mode: Mode) -> Any:
        if mode not in self._columns:
            raise ValueError(
                f"{mode} {self._what} were not computed, only {', '.join(self._columns)}: {self._remedy()}"
            )
        return self._columns[mode]

    def _remedy(self) -> str:
        return "ask for them, for instance with encode(texts, modes=('dense', 'lexical', 'multi_vector'))"


class M3Vectors(_ModeColumns):
    """The dense, lexical and multi-vector views of n texts, in the order of the texts.

    An integer, a slice or a list of integers between brackets gives another `M3Vectors` that owns its arrays. Asking
    for a mode that was not computed raises ValueError.
    """

    _what = "vectors"

    def __init__(
        self,
        *,
        dense: FloatArray | None = None,
        lexical: LexicalRows | None = None,
        multi_vector: MultiVectorRows | None = None,
    ) -> None:
        super().__init__(dense, lexical, multi_vector)

    @property
    def dense(self) -> FloatArray:
        """(n, d) float32, unit length."""
        column: FloatArray = self._column("dense")
        return column

    @property
    def lexical(self) -> LexicalRows:
        """N rows of `LexicalWeights`."""
        column: LexicalRows = self._column("lexical")
        return column

    @property
    def multi_vector(self) -> MultiVectorRows:
        """N arrays of shape (tokens, d) float32, unit length: every token but [CLS], [SEP] included."""
        column: MultiVectorRows = self._column("multi_vector")
        return column

    def __getitem__(self, rows: int | slice | Sequence[int] | IntArray) -> M3Vectors:
        if isinstance(rows, slice):
            return self.take(np.arange(len(self))[rows])
        chosen = np.atleast_1d(np.asarray(rows))
        if chosen.size and chosen.dtype.kind not in "iu":
            raise TypeError(f"texts are chosen by integers, a slice or a list of integers, got {rows!r}")
        chosen = chosen.astype(np.int64)
        if np.any((chosen < -len(self)) | (chosen >= len(self))):
            raise IndexError(f"rows {rows} of {len(self)}")
        return self.take(chosen % max(len(self), 1))

    def take(self, rows: IntArray) -> M3Vectors:
        """Copy the chosen texts, in the order given; a text may be chosen more than once."""
        return M3Vectors(
            **{mode: column[rows] if mode == "dense" else column.take(rows) for mode, column in self._columns.items()}
        )

    def select(self, modes: Iterable[Mode]) -> M3Vectors:
        """Keep only these modes, without copying."""
        return M3Vectors(**{mode: self._column(mode) for mode in check_modes(modes)})

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(column.nbytes for column in self._columns.values())

    @staticmethod
    def concatenate(parts: Sequence[M3Vectors]) -> M3Vectors:
        """Put texts one after another; all parts need the same modes.

        Raises:
            ValueError: For no parts or for parts of different modes.
        """
        modes = {part.modes for part in parts}
        if len(modes) != 1:
            raise ValueError(f"parts of the same modes are needed, got {sorted(modes)}")
        columns: dict[str, Any] = {}
        (present,) = modes
        if "dense" in present:
            columns["dense"] = np.concatenate([part.dense for part in parts])
        if "lexical" in present:
            rows = [part.lexical for part in parts]
            columns["lexical"] = LexicalRows(
                offsets_of(np.concatenate([r.lengths for r in rows])),
                np.concatenate([r.indices for r in rows]),
                np.concatenate([r.values for r in rows]),
                rows[0].vocabulary,
            )
        if "multi_vector" in present:
            vectors = [part.multi_vector for part in parts]
            columns["multi_vector"] = MultiVectorRows(
                offsets_of(np.concatenate([v.lengths for v in vectors])), np.concatenate([v.flat for v in vectors])
            )
        return M3Vectors(**columns)

    def __repr__(self) -> str:
        return f"M3Vectors({len(self)} texts, {', '.join(self.modes)})"


class M3Scores(_ModeColumns):
    """The scores of n pairs in every mode, and their weighted mean; higher is better.

    Asking for a mode that was not computed raises ValueError.
    """

    _what = "scores"

    def __init__(
        self,
        *,
        combined: FloatArray,
        dense: FloatArray | None = None,
        lexical: FloatArray | None = None,
        multi_vector: FloatArray | None = None,
    ) -> None:
        super().__init__(dense, lexical, multi_vector)
        if len(combined) != len(self):
            raise ValueError(f"{len(combined)} combined scores for {len(self)} pairs")
        self.combined = combined
        """(n,) float32, the mean of the modes' scores under the weights."""

    @property
    def dense(self) -> FloatArray:
        """(n,) float32, the cosine of the dense vectors, in [-1, 1]."""
        column: FloatArray = self._column("dense")
        return column

    @property
    def lexical(self) -> FloatArray:
        """(n,) float32, the product of the weights summed over shared tokens, 0 or more and not bounded."""
        column: FloatArray = self._column("lexical")
        return column

    @property
    def multi_vector(self) -> FloatArray:
        """(n,) float32, the mean over query tokens of the best cosine with a document token, in [-1, 1]."""
        column: FloatArray = self._column("multi_vector")
        return column

    def _remedy(self) -> str:
        return "this checkpoint has no heads for them"

    def __repr__(self) -> str:
        return f"M3Scores({len(self)} pairs, {', '.join(self.modes)})"
