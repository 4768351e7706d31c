"""The ids that the searches of a folder have met, because making UUIDs and reading ids takes time."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from m3_integrations.store.points import StoreFormat

_MOST: Final = 1 << 16
"""The most records that are remembered from one search to the next, at some 300 bytes each."""


class RememberedIds:
    """The ids of records, and the UUIDs of their points.

    Attributes:
        ids: The ids by the UUIDs as numbers, whose hash is fast.
    """

    def __init__(self, format_: StoreFormat) -> None:
        self._format = format_
        self.ids: dict[int, str] = {}
        self._points: dict[str, uuid.UUID] = {}

    def make_room(self) -> None:
        """Forget everything if it is too much; called before a search."""
        if len(self.ids) > _MOST:
            self.ids, self._points = {}, {}

    def point_of(self, id_: str) -> Any:
        """Return the UUID of a record's point."""
        if id_ not in self._points:
            self.add([(uuid.UUID(self._format.point_id(id_)), id_)])
        return self._points[id_]

    def unknown(self, points: Iterable[uuid.UUID]) -> list[Any]:
        """Return the points whose ids must be read; the ids that UUIDs contain are remembered."""
        unread = dict[int, uuid.UUID]()
        for point in points:
            if point.int not in self.ids:
                if (id_ := self._format.record_id(point)) is None:
                    unread[point.int] = point
                else:
                    self.add([(point, id_)])
        return list(unread.values())

    def add(self, pairs: Iterable[tuple[uuid.UUID, str]]) -> None:
        """Remember the ids of these points' records."""
        for point, id_ in pairs:
            self.ids[point.int], self._points[id_] = id_, point
