"""The scores of pairs of texts, in every mode and combined."""

from __future__ import annotations

from m3_integrations.vectors.arrays import FloatArray
from m3_integrations.vectors.modes import Mode


class M3Scores:
    """The scores of n pairs in every mode, and their weighted mean; higher is better.

    Reading a mode that was not computed raises ValueError.

    Attributes:
        combined: (n,) float32, the weighted mean of the modes' scores; -1 or more. With lexical scores it has no upper
            bound.
        modes: The modes that were computed.
    """

    def __init__(
        self,
        *,
        combined: FloatArray,
        dense: FloatArray | None = None,
        lexical: FloatArray | None = None,
        multi_vector: FloatArray | None = None,
    ) -> None:
        columns: dict[Mode, FloatArray | None] = {"dense": dense, "lexical": lexical, "multi_vector": multi_vector}
        self._columns = {mode: column for mode, column in columns.items() if column is not None}
        lengths = {mode: len(column) for mode, column in self._columns.items()}
        if not lengths or set(lengths.values()) != {len(combined)}:
            raise ValueError(f"{len(combined)} combined scores need as many in one or more modes, got {lengths}")
        self.combined = combined
        self.modes: tuple[Mode, ...] = tuple(self._columns)

    def __len__(self) -> int:
        return len(self.combined)

    @property
    def dense(self) -> FloatArray:
        """(n,) float32, the cosine of the dense vectors, in [-1, 1] up to rounding."""
        return self._column("dense")

    @property
    def lexical(self) -> FloatArray:
        """(n,) float32, the sum over shared tokens of the products of their weights; 0 or more, no upper bound."""
        return self._column("lexical")

    @property
    def multi_vector(self) -> FloatArray:
        """(n,) float32, the mean over query tokens of the best cosine with a document token.

        In [-1, 1] up to rounding.
        """
        return self._column("multi_vector")

    def _column(self, mode: Mode) -> FloatArray:
        if mode not in self._columns:
            raise ValueError(
                f"{mode} scores were not computed, only {', '.join(self.modes)}: this checkpoint has no heads for them"
            )
        return self._columns[mode]

    def __repr__(self) -> str:
        return f"M3Scores({len(self)} pairs, {', '.join(self.modes)})"
