"""Filters on metadata: parsed and checked once, evaluated here or translated for a Qdrant engine.

The language is MongoDB's: `{"product": "vault", "year": {"$gte": 2024}}` asks for both; `$and`, `$or` and `$not` join.

- A dot leads into a mapping: `loc.page` is the page of `{"loc": {"page": 3}}`, and of a list of such mappings, and
  also the value of a key with the name `loc.page`.
- A key that is absent, None or an empty list is missing; a missing key fulfils only `$ne`, `$nin` and `$exists: false`.
- A list matches if any of its elements does; `$ne`, `$nin` and `$not` are exact negations.
- Numbers equal numbers (2024 is 2024.0), booleans only booleans, strings only strings.
- Dates are compared as instants, with dates and with strings of ISO 8601: `{"day": {"$lt": "2024-05-01"}}` and
  `{"day": date(2024, 4, 30)}` compare dates and such strings. Two strings are equal only if all characters are.
- Ranges are for numbers and for dates.
- The values in a filter are converted as metadata are: store/values.py has the table.
- Filters may be nested 20 deep.
- A filter that an engine could not answer exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from m3_integrations.store.values import check_value, elements_of, instant_of


@dataclass(frozen=True, slots=True)
class Instant:
    """A point in time that a filter compares dates with.

    Attributes:
        microseconds: Microseconds since 1970 in UTC.
    """

    microseconds: int


Scalar = str | int | float | bool | Instant
Operator = Literal["$eq", "$in", "$gt", "$gte", "$lt", "$lte", "$exists"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One test of one key.

    Attributes:
        key: The metadata's key.
        operator: The comparison.
        value: A scalar; a tuple of scalars for `$in`; a finite number or an instant for ranges; True for `$exists`.
    """

    key: str
    operator: Operator
    value: Any
    _wanted: frozenset[tuple[str, Any]] = field(init=False, repr=False, compare=False)
    _wants_dates: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        wanted: frozenset[tuple[str, Any]] = frozenset()
        if self.operator in {"$eq", "$in"}:
            values = self.value if self.operator == "$in" else (self.value,)
            wanted = frozenset(name for value in values for name in _names_wanted(value))
        object.__setattr__(self, "_wanted", wanted)
        object.__setattr__(self, "_wants_dates", any(kind == "written" for kind, _ in wanted))

    def holds(self, element: Any) -> bool:
        """Return whether an element of metadata fulfils the condition."""
        if self._wanted:  # one look-up in a set, however long the list of `$in` is
            if isinstance(element, str) and not self._wants_dates:  # fast path: the string need not be read as a date
                return ("string", element) in self._wanted
            return not self._wanted.isdisjoint(_names(element))
        if self.operator == "$exists":
            return True
        if isinstance(self.value, Instant):
            instant = instant_of(element)
            return instant is not None and RANGES[self.operator](instant, self.value.microseconds)
        return is_number(element) and RANGES[self.operator](element, self.value)


@dataclass(frozen=True, slots=True)
class AllOf:
    """A filter that matches if all of these match; without any it matches everything."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A filter that matches if at least one of these matches; without any it matches nothing."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """A filter that matches if this one does not."""

    filter: Filter


Filter = Condition | AllOf | AnyOf | Not
FilterLike = Mapping[str, Any] | Condition | AllOf | AnyOf | Not | None

_EVERYTHING: Final = AllOf(())
_NOTHING: Final = AnyOf(())

RANGES: Final[dict[str, Callable[[float, float], bool]]] = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}
_OPERATORS: Final = ("$eq", "$ne", "$in", "$nin", *RANGES, "$exists", "$not")
_MAX_DEPTH: Final = 20
"""The deepest nesting of filters: the servers' message format allows not much more."""
MAX_NUMBER: Final = 2**53
"""The largest number: larger integers are not exact as the floating-point numbers that engines compare."""


def parse_filter(filter: FilterLike) -> Filter | None:  # noqa: A002 - the word users know
    """Parse a filter as users write it into one that can be evaluated and translated.

    Empty parts, such as `{}` in a list of `$and`, are left out.

    Returns:
        The parsed filter; None if it is empty and every record matches, as for None, `{}` or `{"$and": [{}]}`.

    Raises:
        TypeError: If it is not a mapping, or a key is not a string.
        ValueError: For an unknown operator, a value that the operator cannot compare exactly, or filters that are
            nested too deep.
    """
    if filter is None or isinstance(filter, Condition | Not):
        return filter
    parsed = _parse(filter, 0)
    return None if parsed == _EVERYTHING else parsed


def _parse(filter: FilterLike, depth: int) -> Filter:  # noqa: A002 - likewise
    if filter is None:
        return _EVERYTHING
    if isinstance(filter, Condition | AllOf | AnyOf | Not):
        return filter
    if not isinstance(filter, Mapping):
        raise TypeError(f"a filter must be a mapping such as {{'year': {{'$gte': 2024}}}}, got {filter!r}")
    if depth > _MAX_DEPTH:
        raise ValueError(f"filters may be nested {_MAX_DEPTH} deep, and this one is deeper: flatten it")
    return _all_of([_parse_entry(key, value, depth) for key, value in filter.items()])


def _all_of(parts: Sequence[Filter]) -> Filter:
    """Return the filter that asks for all of these, without the empty ones."""
    said = tuple(part for part in parts if part != _EVERYTHING)
    if _NOTHING in said:
        return _NOTHING
    return said[0] if len(said) == 1 else AllOf(said)


def _any_of(parts: Sequence[Filter]) -> Filter:
    if _EVERYTHING in parts:
        return _EVERYTHING
    said = tuple(part for part in parts if part != _NOTHING)
    return said[0] if len(said) == 1 else AnyOf(said)


def _not(part: Filter) -> Filter:
    if part in (_EVERYTHING, _NOTHING):
        return _NOTHING if part == _EVERYTHING else _EVERYTHING
    return part.filter if isinstance(part, Not) else Not(part)


def _parse_entry(given: object, value: Any, depth: int) -> Filter:
    if not isinstance(given, str):
        raise TypeError(f"a filter's keys must be strings, got {given!r}")
    key: str = check_value(given, "a filter's key")
    if key in {"$and", "$or"}:
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError(f"{key} needs a list of one or more filters, got {value!r}")
        filters = [_parse(part, depth + 1) for part in value]
        return _all_of(filters) if key == "$and" else _any_of(filters)
    if key == "$not":
        return _not(_parse(value, depth + 1))
    if key.startswith("$"):
        raise ValueError(f"unknown operator {key}: outside a key use $and, $or or $not")
    if not isinstance(value, Mapping):
        return _parse_condition(key, "$eq", value, depth)
    if not value:
        raise ValueError(f"the filter on {key!r} is empty: pass a value, or one of {', '.join(_OPERATORS)}")
    return _all_of([_parse_condition(key, operator, operand, depth) for operator, operand in value.items()])


def _parse_condition(key: str, operator: str, value: Any, depth: int) -> Filter:
    where = f"{operator} on {key!r}"
    if operator in {"$eq", "$ne"}:
        condition: Filter = Condition(key, "$eq", _scalar(where, value))
        return condition if operator == "$eq" else Not(condition)
    if operator in {"$in", "$nin"}:
        listed = list(value) if isinstance(value, AbstractSet) else check_value(value, where)
        if not isinstance(listed, list):
            raise ValueError(f"{where} needs a list, got {value!r}")
        scalars = tuple(_scalar(where, item) for item in listed)
        condition = Condition(key, "$in", scalars) if scalars else _NOTHING
        return condition if operator == "$in" else _not(condition)
    if operator in RANGES:
        return Condition(key, operator, _bound(where, value))  # type: ignore[arg-type]
    if operator == "$exists":
        value = check_value(value, where)
        if not isinstance(value, bool):
            raise ValueError(f"{where} needs True or False, got {value!r}")
        exists = Condition(key, "$exists", value=True)
        return exists if value else Not(exists)
    if operator == "$not" and isinstance(value, Mapping):
        return _not(_parse({key: value}, depth + 1))
    raise ValueError(f"unknown {where}: use one of {', '.join(_OPERATORS)}")


def _scalar(where: str, value: Any) -> Scalar:
    value = check_value(value, where)
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        if abs(value) > MAX_NUMBER:
            raise ValueError(f"{where} cannot compare {value!r} exactly: numbers must be within 2**53")
        return value
    if (instant := instant_of(value)) is not None:
        return Instant(instant)
    if value is None:
        raise ValueError(f"{where} cannot compare None: ask for a missing key with {{'$exists': False}}")
    hint = ": for several values use {'$in': [...]}" if isinstance(value, list) else ""
    raise ValueError(f"{where} needs a string, a number, a boolean or a date, got {value!r:.80}{hint}")


def _bound(where: str, value: Any) -> int | float | Instant:
    """Return the number or the instant that a range compares with."""
    scalar = _scalar(where, value)
    if isinstance(scalar, str) and (instant := instant_of(scalar)) is not None:
        return Instant(instant)
    if isinstance(scalar, str | bool):
        raise ValueError(  # noqa: TRY004 - as every operand that has no meaning
            f"{where} needs a number or a date such as '2024-05-01', got {value!r}: others have no order here"
        )
    return scalar


def matches(filter: FilterLike, metadata: Mapping[str, Any]) -> bool:  # noqa: A002
    """Evaluate a filter on one record's metadata: the meaning that every engine's translation must have.

    Args:
        filter: A filter as `parse_filter` takes or returns it.
        metadata: Metadata as a store or `values.check_metadata` returns them.

    Raises:
        TypeError: For the reasons of `parse_filter`.
        ValueError: For the reasons of `parse_filter`.
    """
    parsed = parse_filter(filter)
    return parsed is None or _matches(parsed, metadata)


def _matches(filter: Filter, metadata: Mapping[str, Any]) -> bool:  # noqa: A002
    if isinstance(filter, Condition):
        return any(map(filter.holds, elements_at(metadata, filter.key)))
    if isinstance(filter, Not):
        return not _matches(filter.filter, metadata)
    if isinstance(filter, AllOf):
        return all(_matches(part, metadata) for part in filter.filters)
    return any(_matches(part, metadata) for part in filter.filters)


def elements_at(metadata: Mapping[str, Any], path: str) -> Iterable[Any]:
    """Return the elements at a path: under the key with this name, then in mappings under the path's parts."""
    return _elements_at(metadata, path) if "." in path else elements_of(metadata.get(path))


def _elements_at(metadata: Mapping[str, Any], path: str) -> Iterator[Any]:
    if path in metadata:
        yield from elements_of(metadata[path])
    at = path.find(".")
    while at >= 0:
        for element in elements_of(metadata.get(path[:at])):
            if isinstance(element, dict):
                yield from _elements_at(element, path[at + 1 :])
        at = path.find(".", at + 1)


def _names(element: Any) -> Sequence[tuple[str, Any]]:
    """Return an element's names; it equals an operand if they share a name. True is not 1, and 1 is 1.0."""
    if isinstance(element, str):
        instant = instant_of(element)
        return (("string", element),) if instant is None else (("string", element), ("written", instant))
    if isinstance(element, bool):
        return (("boolean", element),)
    if isinstance(element, int | float):
        return (("number", element),)
    instant = instant_of(element)
    return [] if instant is None else [("date", instant)]


def _names_wanted(value: Scalar) -> Sequence[tuple[str, Any]]:
    """Return an operand's names: a date equals dates and date strings, a string equals dates and itself."""
    if isinstance(value, Instant):
        return [("date", value.microseconds), ("written", value.microseconds)]
    return [("date" if name == "written" else name, each) for name, each in _names(value)]


def is_number(element: Any) -> bool:
    """Return whether this is a number; a boolean does not count as one."""
    return isinstance(element, int | float) and not isinstance(element, bool)
