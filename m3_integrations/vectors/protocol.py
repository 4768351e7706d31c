"""What searching and the adapters need of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from m3_integrations.vectors.modes import Kind, Mode
from m3_integrations.vectors.results import M3Vectors


@runtime_checkable
class Encoder(Protocol):
    """What searching and the adapters need of an encoder; `M3Encoder` is one, a test's fake another."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the checkpoint has heads for."""
        ...

    @property
    def dim(self) -> int:
        """Length of a dense vector."""
        ...

    def encode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        """Give the vectors of texts, in their order."""
        ...

    async def aencode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        """Give the vectors of texts without blocking the event loop."""
        ...
