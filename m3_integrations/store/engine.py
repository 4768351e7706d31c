"""What the durable stores need of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from m3_integrations.store.filters import Filter
from m3_integrations.store.format import StoreFormat
from m3_integrations.store.points import Point
from m3_integrations.vectors import M3Vectors, Mode


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One search of an engine.

    Attributes:
        mode: The vectors that are compared.
        query: The vectors of one text.
        limit: How many points at most.
        filter: Only points that match.
        ids: Only the points of these records, every one of them scored exactly; all if None.
    """

    mode: Mode
    query: M3Vectors
    limit: int
    filter: Filter | None = None
    ids: Sequence[str] | None = None


class Engine(Protocol):
    """What a Qdrant engine does with points, whose ids are UUIDs, as `point_id` makes them of the records'.

    An update is durable when it returns.
    """

    def lock(self) -> AbstractContextManager[object]:
        """Give what keeps other threads out of the engine, where it needs that."""
        ...

    def read_format(self) -> StoreFormat | None:
        """Give what the store says of itself; None as long as there is none."""
        ...

    def create(self, format_: StoreFormat) -> StoreFormat:
        """Make room for points of this format; give the format that is really there."""
        ...

    def bind(self, format_: StoreFormat) -> None:
        """Write down the format of a store that is there already."""
        ...

    def upsert(self, points: Sequence[Point]) -> None:
        """Add points, replacing those with the same ids."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points that are there."""
        ...

    def delete_where(self, filter_: Filter) -> None:
        """Delete the points that match."""
        ...

    def retrieve(self, ids: Sequence[str], *, with_payload: bool, with_vectors: bool) -> dict[str, Point]:
        """Give the points that are there, by id."""
        ...

    def scroll(self, after: Any) -> tuple[list[Point], Any]:
        """Give the next points without vectors, and where to go on; None at the end."""
        ...

    def count(self, filter_: Filter | None) -> int:
        """Count the points that match."""
        ...

    def search(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        """Give what every search found: records' ids and raw scores; a multi-vector's is the sum over query tokens."""
        ...

    def optimize(self) -> None:
        """Build the indexes."""
        ...

    def flush(self) -> None:
        """Return when everything is durable."""
        ...

    def close(self) -> None:
        """Let go of the engine."""
        ...
