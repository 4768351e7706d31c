"""The clauses of a filter that a record does not fulfil."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from m3_integrations.store.filters import (
    AllOf,
    AnyOf,
    Condition,
    Filter,
    FilterLike,
    Instant,
    Not,
    elements_at,
    matches,
    parse_filter,
)

_NEGATED: Final = {"$eq": "$ne", "$in": "$nin", "$exists": "$exists"}
"""The operators that write the negation of a condition."""

_EPOCH: Final = datetime(1970, 1, 1)
_FIRST, _LAST = datetime.min - _EPOCH, datetime.max - _EPOCH
_HOUR, _LONGEST = timedelta(hours=1), timedelta(days=1) - timedelta.resolution


@dataclass(frozen=True, slots=True)
class Clause:
    """A part of a filter that a record does not fulfil.

    Attributes:
        said: The part, as a user writes it, such as `{"year": {"$gte": 2024}}`.
        where: The parts that contain it, the outermost first: "$or" for each list of alternatives. Clauses that are
            joined by `$and`, or are written side by side, have no entry.
        found: The record's values under each key of the part, a list for each key; empty if the key is missing.
    """

    said: dict[str, Any]
    where: tuple[str, ...]
    found: dict[str, list[Any]]

    def __str__(self) -> str:
        """Return one line with the clause and the record's values."""
        if not self.found:
            return f"{self.said}: nothing fulfils it"
        has = ", ".join(f"{key} = {_shown(values)}" if values else f"no {key}" for key, values in self.found.items())
        inside = "".join(f" in {each}" for each in reversed(self.where))
        return f"{self.said}{inside}: the record has {has}"


def unmet_clauses(filter: FilterLike, metadata: Mapping[str, Any]) -> list[Clause]:  # noqa: A002
    """Return the smallest parts of a filter that exclude a record; an empty list if it matches.

    Of parts that must all be fulfilled, these are the unfulfilled ones. If no alternative of an `$or` is fulfilled, all
    alternatives are returned. A negation is returned as a whole.

    Args:
        filter: A filter as `parse_filter` takes or returns it.
        metadata: Metadata as a store returns them.

    Raises:
        TypeError: For the reasons of `parse_filter`.
        ValueError: For the reasons of `parse_filter`.
    """
    parsed = parse_filter(filter)
    return [] if parsed is None else list(_unmet(parsed, metadata, ()))


def _unmet(filter_: Filter, metadata: Mapping[str, Any], where: tuple[str, ...]) -> Iterator[Clause]:
    if matches(filter_, metadata):
        return
    if isinstance(filter_, AllOf | AnyOf) and filter_.filters:
        inner = where if isinstance(filter_, AllOf) else (*where, "$or")
        for part in filter_.filters:
            yield from _unmet(part, metadata, inner)
        return
    yield Clause(as_said(filter_), where, {key: list(elements_at(metadata, key)) for key in _keys(filter_)})


def as_said(filter: Filter) -> dict[str, Any]:  # noqa: A002
    """Return a parsed filter as a user writes it."""
    if isinstance(filter, Condition):
        value = [_plain(v) for v in filter.value] if filter.operator == "$in" else _plain(filter.value)
        return {filter.key: value if filter.operator == "$eq" else {filter.operator: value}}
    if isinstance(filter, Not):
        said = as_said(filter.filter)
        if isinstance(filter.filter, Condition) and (operator := _NEGATED.get(filter.filter.operator)):
            ((key, value),) = said.items()
            plain = value[filter.filter.operator] if operator != "$ne" else value
            return {key: {operator: False if operator == "$exists" else plain}}
        return {"$not": said}
    return {"$and" if isinstance(filter, AllOf) else "$or": [as_said(part) for part in filter.filters]}


def _keys(filter_: Filter) -> list[str]:
    if isinstance(filter_, Condition):
        return [filter_.key]
    parts = (filter_.filter,) if isinstance(filter_, Not) else filter_.filters
    return list(dict.fromkeys(key for part in parts for key in _keys(part)))


def _plain(value: Any) -> Any:
    if not isinstance(value, Instant):
        return value
    moment = timedelta(microseconds=value.microseconds)
    # In UTC it may be up to a day outside of the years 1 to 9999; then it has another zone, of whole hours.
    late, early = max(moment - _LAST, timedelta()), max(_FIRST - moment, timedelta())
    hours = -(-early // _HOUR) - -(-late // _HOUR)
    zone = timezone(max(-_LONGEST, min(_LONGEST, hours * _HOUR)))
    return (_EPOCH + (moment + zone.utcoffset(None))).replace(tzinfo=zone).isoformat()


def _shown(values: list[Any]) -> str:
    return repr(values[0]) if len(values) == 1 else repr(values)
