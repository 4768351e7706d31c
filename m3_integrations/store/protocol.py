"""What a store is: records with vectors, and primitives to find and score them. Fusion and weights are not its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from m3_integrations.store.filters import Filter
from m3_integrations.vectors import FloatArray, M3Vectors, Mode


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One text with its vectors.

    Attributes:
        id: Any string; a second record with the same id replaces the first.
        text: What was encoded.
        metadata: What filters look at.
        vectors: The vectors of this one text; None where they were not asked for.
        is_pooled: Whether a store put means of neighbouring token vectors in the place of the text's own, because it
            was opened so or because the text had more than it keeps.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    vectors: M3Vectors | None = None
    is_pooled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Ids with their raw scores, best first.

    Attributes:
        ids: n ids.
        scores: (n,) float32, higher is better.
    """

    ids: list[str]
    scores: FloatArray


@runtime_checkable
class Store(Protocol):
    """Primitives of a collection that every engine has; safe to call from many threads."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the records have vectors of; empty before the first record."""
        ...

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """The modes that are kept of what is added: vectors of another need not be computed for it."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """The model that the store is bound to; None before `bind`."""
        ...

    def bind(self, fingerprint: str) -> None:
        """Say which model the vectors are from; the first call decides.

        Raises:
            ValueError: If the store was bound to another model.
        """
        ...

    def upsert(self, records: Sequence[Record]) -> None:
        """Add records, replacing those with the same ids; of two in one call the later one counts.

        Raises:
            ValueError: If a record has no vectors, or they are not finite or not of this store's modes and sizes;
                then none is added.
        """
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete records; ids that are not there are passed over. Gives the number deleted."""
        ...

    def delete_where(self, filter: Filter) -> int:  # noqa: A002 - the word users know
        """Delete the records that match. Gives the number deleted."""
        ...

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Give the records of these ids that are there, in the order of the ids; the caller's own copies."""
        ...

    def records(self) -> Iterator[Record]:
        """Give all records without vectors, each once, in an order of the store's own.

        One that is added or deleted meanwhile may be among them or not.
        """
        ...

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002
        """Give the number of records, or of those that match."""
        ...

    def candidates(
        self, query: M3Vectors, limits: Mapping[Mode, int], filter: Filter | None = None  # noqa: A002
    ) -> dict[Mode, Hits]:  # fmt: skip
        """Give the best records by each of these modes alone.

        Args:
            query: The vectors of one text.
            limits: How many at most for "dense" and for "lexical". A text that shares no token is no lexical hit.
            filter: Only records that match.
        """
        ...

    def scores(
        self, query: M3Vectors, ids: Sequence[str], modes: Sequence[Mode], known: Mapping[Mode, Hits] | None = None
    ) -> tuple[list[str], dict[Mode, FloatArray]]:
        """Give the exact raw scores of chosen records: those ids that are there, in order, and (n,) float32 a mode.

        Args:
            query: The vectors of one text.
            ids: Of records; those that are not there are passed over.
            modes: What is compared.
            known: What `candidates` has just given for this query: a store may take it over instead of asking again.
        """
        ...

    def optimize(self) -> None:
        """Do now what makes searching faster; may take long and blocks."""
        ...

    def flush(self) -> None:
        """Return when everything is durable, where the engine is."""
        ...

    def close(self) -> None:
        """Release what the store holds; using it then raises."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
