"""What a durable store says of itself: which model's vectors, of which sizes, kept how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self, get_args

import numpy as np

from m3_integrations.vectors import MODES, LexicalRows, M3Vectors, Mode, MultiVectorRows

MultiVectorStorage = Literal["none", "float16", "turbo8", "turbo4"]
"""How token vectors are kept: not at all, at 2 bytes a number, or compressed to about 1 or a half."""

FORMAT_NAME: Final = "m3_integrations store"
FORMAT_VERSION: Final = 1
_MAX_NUMBERS: Final = 2**20 - 1
"""A Qdrant server refuses a multi-vector of more numbers in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFormat:
    """What a durable store says of itself.

    Attributes:
        fingerprint: The model of the vectors; None before a model was bound.
        modes: The modes of the records; empty before the first.
        dense_dim: Length of a dense vector; 0 without.
        token_dim: Length of a token vector; 0 without.
        multi_vector: How token vectors are kept.
        token_pooling: How many tokens share a token vector.
    """

    fingerprint: str | None = None
    modes: tuple[Mode, ...] = ()
    dense_dim: int = 0
    token_dim: int = 0
    multi_vector: MultiVectorStorage = "float16"
    token_pooling: int = 1

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """The modes that are kept of what is added."""
        return tuple(mode for mode in MODES if mode != "multi_vector" or self.multi_vector != "none")

    @property
    def max_tokens(self) -> int:
        """How many token vectors a record has at most."""
        return _MAX_NUMBERS // max(self.token_dim, 1)

    @property
    def shape(self) -> M3Vectors | None:
        """No texts, of the modes and sizes of the records; None before the first."""
        if not self.modes:
            return None
        none = np.zeros(1, np.int64)
        return M3Vectors(
            dense=np.empty((0, self.dense_dim), np.float32) if "dense" in self.modes else None,
            lexical=LexicalRows(none, np.empty(0, np.int32), np.empty(0, np.float32))
            if "lexical" in self.modes
            else None,
            multi_vector=MultiVectorRows(none, np.empty((0, self.token_dim), np.float32))
            if "multi_vector" in self.modes
            else None,
        )

    def shaped_like(self, vectors: M3Vectors) -> Self:
        """Give this with the modes and sizes of the first records."""
        return replace(
            self,
            modes=vectors.modes,
            dense_dim=vectors.dense.shape[1] if "dense" in vectors.modes else 0,
            token_dim=vectors.multi_vector.flat.shape[1] if "multi_vector" in vectors.modes else 0,
        )

    def bound_to(self, fingerprint: str) -> Self:
        """Give this bound to a model.

        Raises:
            ValueError: If it is bound to another.
        """
        if self.fingerprint not in {None, fingerprint}:
            raise ValueError(
                f"this store holds vectors of the model {self.fingerprint}, not of {fingerprint}: vectors of two "
                "models cannot be compared, so use the model it was filled with, or another store"
            )
        return replace(self, fingerprint=fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """Give what is written down."""
        return {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "modes": list(self.modes),
            "dense_dim": self.dense_dim,
            "token_dim": self.token_dim,
            "multi_vector": self.multi_vector,
            "token_pooling": self.token_pooling,
        }

    @classmethod
    def from_dict(cls, where: str, found: Mapping[str, Any] | None) -> Self:
        """Read what was written down.

        Args:
            where: The folder or the collection, for error messages.
            found: What is written there.

        Raises:
            ValueError: If this package did not write it, or a later version did.
        """
        if not found or found.get("format") != FORMAT_NAME:
            raise ValueError(f"{where} is no store of this package, and is left as it is: choose another place")
        if found.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"{where} has format version {found.get('version')}, this m3-integrations reads {FORMAT_VERSION}: "
                "upgrade m3-integrations to open it"
            )
        return cls(
            fingerprint=found["fingerprint"],
            modes=tuple(found["modes"]),
            dense_dim=int(found["dense_dim"]),
            token_dim=int(found["token_dim"]),
            multi_vector=found["multi_vector"],
            token_pooling=int(found["token_pooling"]),
        )


def choose_format(
    where: str, found: StoreFormat | None, multi_vector: MultiVectorStorage | None, token_pooling: int | None
) -> StoreFormat:
    """Give the format of a store that is there, or of a new one, as asked for.

    Raises:
        ValueError: For settings that do not exist, or others than those that a store was made with.
    """
    if multi_vector is not None and multi_vector not in get_args(MultiVectorStorage):
        raise ValueError(f"multi_vector must be one of {', '.join(get_args(MultiVectorStorage))}, got {multi_vector!r}")
    is_count = isinstance(token_pooling, int) and not isinstance(token_pooling, bool) and token_pooling >= 1
    if token_pooling is not None and not is_count:
        raise ValueError(f"token_pooling must be 1 or more tokens a vector, got {token_pooling!r}")
    if found is None:
        return StoreFormat(multi_vector=multi_vector or "float16", token_pooling=token_pooling or 1)
    for name, asked in (("multi_vector", multi_vector), ("token_pooling", token_pooling)):
        if asked is not None and asked != getattr(found, name):
            raise ValueError(
                f"{where} was made with {name}={getattr(found, name)!r}, not {asked!r}: leave {name} out, or copy the "
                "records into a new store with copy_store"
            )
    return found
