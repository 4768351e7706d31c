"""Filters in the words of a Qdrant engine: in-process or server, whose classes have the same parts by other names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, Protocol

from m3_integrations.store.filters import AllOf, AnyOf, Condition, Filter, Not
from m3_integrations.store.points import Point, number_halves, number_key, term

Bound = Literal["gt", "gte", "lt", "lte"]


class FilterWords(Protocol):
    """How an engine spells the parts of a filter."""

    def join(self, must: Sequence[Any] = (), should: Sequence[Any] = (), must_not: Sequence[Any] = ()) -> Any:
        """Give a filter: all of `must`, one of `should` where there are any, none of `must_not`."""
        ...

    def any_term(self, terms: list[str]) -> Any:
        """Give a condition: one of these is among the terms."""
        ...

    def bound(self, key: str, bound: Bound, value: int) -> Any:
        """Give a condition: a number under this path is on this side of the value."""
        ...

    def nested(self, key: str, filter_: Any) -> Any:
        """Give a condition: one element of a list fulfils the filter alone."""
        ...


def number_path(key: str) -> str:
    """Give the path of the list with a key's numbers."""
    return f"numbers.{number_key(key)}"


def index_path(key: str) -> str:
    """Give the path that an index on a key's numbers is on."""
    return f"{number_path(key)}[].high"


def index_paths(points: Iterable[Point]) -> list[str]:
    """Give the paths of all numbers that these points have, for engines to index."""
    return sorted({f"numbers.{name}[].high" for point in points for name in point.payload["numbers"]})


def translate(words: FilterWords, filter_: Filter) -> Any:
    """Give an engine's filter that matches exactly what `matches` does."""
    if isinstance(filter_, AllOf):
        return words.join(must=[translate(words, part) for part in filter_.filters])
    if isinstance(filter_, AnyOf):
        return _any(words, [translate(words, part) for part in filter_.filters])
    if isinstance(filter_, Not):
        return words.join(must_not=[translate(words, filter_.filter)])
    return _condition(words, filter_)


def _any(words: FilterWords, parts: list[Any]) -> Any:
    # An engine reads an empty list as no condition at all.
    return words.join(should=parts) if parts else words.join(must_not=[words.join()])


_BOUNDS: Final[dict[str, Bound]] = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}


def _condition(words: FilterWords, condition: Condition) -> Any:
    key, value = condition.key, condition.value
    if condition.operator in _BOUNDS:
        return _range(words, key, _BOUNDS[condition.operator], value)
    if condition.operator == "$exists":
        terms = [term(key)]
    elif condition.operator == "$eq":
        terms = [term(key, value)]
    else:
        terms = [term(key, item) for item in value]
    return words.join(must=[words.any_term(terms)]) if terms else _any(words, [])


def _range(words: FilterWords, key: str, bound: Bound, value: float) -> Any:
    """Compare the high halves, which are indexed; and the low halves only where the high ones are equal.

    Equality of both is a term. Where the low half is 0, as in every integer up to a million, none is below it, and
    only `gt` has to look at low halves, which are not indexed.
    """
    path, index = number_path(key), index_path(key)
    high, low = number_halves(value)
    if low == 0 and bound in {"gte", "lt"}:
        return words.join(must=[words.bound(index, bound, high)])
    strict: Bound = "gt" if bound.startswith("gt") else "lt"
    parts = [words.bound(index, strict, high)]
    if bound != strict:
        parts.append(words.any_term([term(key, value)]))
    if low or strict == "gt":
        nested = words.join(must=[*_equal(words, "high", high), words.bound("low", strict, low)])
        parts.append(words.join(must=[*_equal(words, index, high), words.nested(path, nested)]))
    return words.join(should=parts)


def _equal(words: FilterWords, key: str, value: int) -> list[Any]:
    return [words.bound(key, "gte", value), words.bound(key, "lte", value)]
