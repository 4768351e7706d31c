"""The points that the searches of a folder have met: making their UUIDs and reading their ids takes time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from m3_integrations.store.points import StoreFormat

_MAX_MET: Final = 1 << 16
"""The most points that are remembered, at some 400 bytes each; with more of them all are forgotten."""


class MetPoints:
    """Points and the ids of their records."""

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}  # by the UUIDs as numbers, whose hash is fast
        self._points: dict[str, uuid.UUID] = {}

    def point_of(self, id_: str, format_: StoreFormat) -> Any:
        """Return the UUID of a record's point."""
        if id_ not in self._points:
            self._keep(uuid.UUID(format_.point_id(id_)), id_)
        return self._points[id_]

    def ids_of(
        self,
        points: Iterable[uuid.UUID],
        format_: StoreFormat,
        read: Callable[[list[uuid.UUID]], Iterable[tuple[uuid.UUID, str]]],
    ) -> dict[int, str]:
        """Return the ids of the records with these points, and of others, by the UUIDs as numbers.

        Args:
            points: The points.
            format_: The format of the store, which says what a UUID tells.
            read: A function that reads the ids that the UUIDs do not tell.
        """
        if len(self._ids) > _MAX_MET:
            self._ids, self._points = {}, {}
        untold: dict[int, uuid.UUID] = {}
        for point in points:
            if point.int not in self._ids:
                if (id_ := format_.record_id(point)) is None:
                    untold[point.int] = point
                else:
                    self._keep(point, id_)
        if untold:
            for point, id_ in read(list(untold.values())):
                self._keep(point, id_)
        return self._ids

    def _keep(self, point: uuid.UUID, id_: str) -> None:
        self._ids[point.int], self._points[id_] = id_, point
