"""The encoder's interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from m3_integrations.vectors.arrays import IntArray, M3Vectors
from m3_integrations.vectors.modes import Kind, Mode, ModeWeights
from m3_integrations.vectors.scores import M3Scores


@runtime_checkable
class Encoder(Protocol):
    """The methods that search and the adapters call; `M3Encoder`, `RemoteEncoder` and the tests' fakes have them."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the checkpoint has heads for."""
        ...

    @property
    def dim(self) -> int:
        """Length of a dense vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """An identifier made from the model's files; vectors with different fingerprints cannot be compared."""
        ...

    def tokenize(
        self, texts: Sequence[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[list[str]]:
        """Return the tokens of every text, one per token vector; the last is [SEP].

        A text is cut at `max_length` tokens, [CLS] and [SEP] included; at the encoder's limit if that is None.
        """
        ...

    def token_spans(
        self, texts: Sequence[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[IntArray]:
        """Return where each token of `tokenize` stands in its text: (tokens, 2), its first character and its end."""
        ...

    def encode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        """Return the vectors of texts, in their order."""
        ...

    def encode_batches(
        self, texts: Iterable[str], *, modes: Sequence[Mode] | None = None, show_progress: bool = False
    ) -> Iterator[M3Vectors]:
        """Return the vectors of documents, in their order and in bounded memory."""
        ...

    async def aencode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        """Return the vectors of texts without blocking the event loop."""
        ...

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, weights: ModeWeights | None = None) -> M3Scores:
        """Score pairs of a query and a document."""
        ...
