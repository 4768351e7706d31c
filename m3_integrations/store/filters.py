"""Filters on metadata: parsed and checked once, evaluated here or translated for a Qdrant engine.

The language is MongoDB's: `{"product": "vault", "year": {"$gte": 2024}}` asks for both; `$and`, `$or` and `$not` join.

- Keys are the metadata's own, to the letter: a dot has no meaning.
- A key that is absent, None or an empty list is missing; that satisfies only `$ne`, `$nin` and `$exists: false`.
- A list matches if any of its elements does; `$ne`, `$nin` and `$not` are exact negations.
- Numbers equal numbers (2024 is 2024.0), booleans only booleans, strings only strings. Ranges are for numbers.
- Whatever cannot be honoured exactly by every engine is refused.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, Literal

Scalar = str | int | float | bool
Operator = Literal["$eq", "$in", "$gt", "$gte", "$lt", "$lte", "$exists"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One test of one key.

    Attributes:
        key: The metadata's key.
        operator: What is asked.
        value: A scalar; a tuple of scalars for `$in`; a finite number for ranges; True for `$exists`.
    """

    key: str
    operator: Operator
    value: Any


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of these; true if there are none."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of these; false if there are none."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Not this."""

    filter: Filter


Filter = Condition | AllOf | AnyOf | Not
FilterLike = Mapping[str, Any] | Condition | AllOf | AnyOf | Not | None

_RANGES: Final[dict[str, Callable[[float, float], bool]]] = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}
_OPERATORS: Final = ("$eq", "$ne", "$in", "$nin", *_RANGES, "$exists", "$not")
_MAX_NUMBER: Final = 2**53
"""Integers beyond it cannot be told apart as the floating-point numbers that engines compare."""
_MAX_TERM: Final = 200
"""Characters of a term; a longer one is kept as its digest."""


def parse_filter(filter: FilterLike) -> Filter | None:  # noqa: A002 - the word users know
    """Turn a filter as users write it into one that can be evaluated and translated.

    Returns:
        None if every record matches: for None and for an empty mapping.

    Raises:
        TypeError: If it is not a mapping, or a key is not a string.
        ValueError: For an unknown operator, or a value that the operator cannot compare exactly.
    """
    if filter is None or isinstance(filter, Condition | AllOf | AnyOf | Not):
        return filter
    if not isinstance(filter, Mapping):
        raise TypeError(f"a filter must be a mapping such as {{'year': {{'$gte': 2024}}}}, got {filter!r}")
    parts = [part for key, value in filter.items() for part in _parse_entry(key, value)]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _parse_entry(key: object, value: Any) -> list[Filter]:
    if not isinstance(key, str):
        raise TypeError(f"a filter's keys must be strings, got {key!r}")
    _check_unicode("a filter's key", key)
    if key in {"$and", "$or"}:
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError(f"{key} needs a list of one or more filters, got {value!r}")
        filters = tuple(parse_filter(part) or AllOf(()) for part in value)
        return [AllOf(filters) if key == "$and" else AnyOf(filters)]
    if key == "$not":
        return [Not(parse_filter(value) or AllOf(()))]
    if key.startswith("$"):
        raise ValueError(f"unknown operator {key}: outside a key there are $and, $or and $not")
    if not isinstance(value, Mapping):
        return [_parse_condition(key, "$eq", value)]
    if not value:
        raise ValueError(f"the filter on {key!r} is empty: give a value, or one of {', '.join(_OPERATORS)}")
    return [_parse_condition(key, operator, operand) for operator, operand in value.items()]


def _parse_condition(key: str, operator: str, value: Any) -> Filter:
    where = f"{operator} on {key!r}"
    if operator == "$eq":
        return Condition(key, "$eq", _scalar(where, value))
    if operator in {"$in", "$nin"}:
        if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
            raise ValueError(f"{where} needs a list, got {value!r}")
        condition = Condition(key, "$in", tuple(_scalar(where, item) for item in value))
        return condition if operator == "$in" else Not(condition)
    if operator == "$ne":
        return Not(Condition(key, "$eq", _scalar(where, value)))
    if operator in _RANGES:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where} needs a number, got {value!r}: only numbers have an order here")
        return Condition(key, operator, _scalar(where, value))  # type: ignore[arg-type]
    if operator == "$exists":
        if not isinstance(value, bool):
            raise ValueError(f"{where} needs True or False, got {value!r}")
        exists = Condition(key, "$exists", value=True)
        return exists if value else Not(exists)
    if operator == "$not" and isinstance(value, Mapping):
        return Not(AllOf(tuple(_parse_entry(key, value))))
    raise ValueError(f"unknown {where}: known are {', '.join(_OPERATORS)}")


def _scalar(where: str, value: Any) -> Scalar:
    if isinstance(value, str):
        _check_unicode(where, value)
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        if not abs(value) <= _MAX_NUMBER:  # also of what is not a number
            raise ValueError(f"{where} cannot compare {value!r} exactly: numbers must be finite and within 2**53")
        return value
    if value is None:
        raise ValueError(f"{where} cannot compare None: ask for a missing key with {{'$exists': False}}")
    raise ValueError(f"{where} needs a string, a number or a boolean, got {value!r}")


def _check_unicode(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be valid Unicode, got {text!a}") from error


def matches(filter: Filter | None, metadata: Mapping[str, Any]) -> bool:  # noqa: A002
    """Evaluate a filter on one record's metadata: the meaning that every engine's translation must have."""
    if filter is None:
        return True
    if isinstance(filter, AllOf):
        return all(matches(part, metadata) for part in filter.filters)
    if isinstance(filter, AnyOf):
        return any(matches(part, metadata) for part in filter.filters)
    if isinstance(filter, Not):
        return not matches(filter.filter, metadata)
    elements = _elements(metadata.get(filter.key))
    if filter.operator == "$exists":
        return len(elements) > 0
    return any(_holds(filter, element) for element in elements)


def _holds(condition: Condition, element: Any) -> bool:
    if condition.operator == "$eq":
        return _equal(element, condition.value)
    if condition.operator == "$in":
        return any(_equal(element, value) for value in condition.value)
    return _is_number(element) and _RANGES[condition.operator](element, condition.value)


def _equal(element: Any, value: Scalar) -> bool:
    if isinstance(value, bool) or isinstance(element, bool):
        return element is value
    if isinstance(value, str):
        return isinstance(element, str) and element == value
    return _is_number(element) and bool(element == value)


def _is_number(element: Any) -> bool:
    return isinstance(element, Real) and not isinstance(element, bool)


def _elements(value: Any) -> Collection[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        return value
    return () if value is None else (value,)


def filter_payload(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Qdrant engine stores of a record for filters to ask for.

    `terms` is a list of what is equal to what; `numbers` has, by key, numbers in two halves that are exact as integers.
    """
    terms: dict[str, None] = {}  # each once, in order
    numbers: dict[str, list[dict[str, int]]] = {}
    for key, value in metadata.items():
        elements = _elements(value)
        if elements:
            terms[_term(key)] = None
        for element in elements:
            is_number = _is_number(element)
            if isinstance(element, str | bool) or (is_number and abs(element) <= _MAX_NUMBER):
                terms[_term(key, element)] = None
            if is_number:
                high, low = _halves(element)
                numbers.setdefault(_number_key(key), []).append({"high": high, "low": low})
    return {"terms": list(terms), "numbers": numbers}


def number_path(key: str) -> str:
    """Return the path in a payload that an engine's index on a key's numbers is on."""
    return f"numbers.{_number_key(key)}[].high"


def number_paths(payloads: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the paths of all numbers in these payloads, for an engine to index."""
    return sorted({f"numbers.{name}[].high" for payload in payloads for name in payload["numbers"]})


def translate(filter: Filter) -> dict[str, Any]:  # noqa: A002
    """Return the filter of a Qdrant engine, as Qdrant's REST interface writes it, that matches what `matches` does."""
    if isinstance(filter, AllOf):
        return {"must": [translate(part) for part in filter.filters]} if filter.filters else {}
    if isinstance(filter, AnyOf):
        return _any([translate(part) for part in filter.filters])
    if isinstance(filter, Not):
        return {"must_not": [translate(filter.filter)]}
    key, value = filter.key, filter.value
    if filter.operator in _RANGES:
        return _translate_range(key, filter.operator.removeprefix("$"), value)
    if filter.operator == "$exists":
        return {"must": [_has_term([_term(key)])]}
    terms = [_term(key, item) for item in (value if filter.operator == "$in" else [value])]
    return {"must": [_has_term(terms)]} if terms else _any([])


def _translate_range(key: str, bound: str, value: float) -> dict[str, Any]:
    """Compare the high halves, which are indexed; and the low halves only where the high ones are equal.

    Equality of both is a term. Where the low half is 0, as in every integer up to a million, none is below it, and
    only `gt` has to look at low halves, which are not indexed.
    """
    index = number_path(key)
    high, low = _halves(value)
    if low == 0 and bound in {"gte", "lt"}:
        return {"must": [_in_range(index, bound, high)]}
    strict = bound[:2]
    parts = [_in_range(index, strict, high)]
    if bound != strict:
        parts.append(_has_term([_term(key, value)]))
    if low or strict == "gt":
        of_one = {"must": [*_at("high", high), _in_range("low", strict, low)]}
        nested = {"nested": {"key": f"numbers.{_number_key(key)}", "filter": of_one}}  # one element fulfils it alone
        parts.append({"must": [*_at(index, high), nested]})
    return {"should": parts}


def _any(parts: list[dict[str, Any]]) -> dict[str, Any]:
    # An engine reads an empty list as no condition at all.
    return {"should": parts} if parts else {"must_not": [{}]}


def _has_term(terms: list[str]) -> dict[str, Any]:
    return {"key": "terms", "match": {"any": terms}}


def _in_range(key: str, bound: str, value: int) -> dict[str, Any]:
    return {"key": key, "range": {bound: float(value)}}


def _at(key: str, value: int) -> list[dict[str, Any]]:
    return [_in_range(key, "gte", value), _in_range(key, "lte", value)]


def _term(key: str, *value: Scalar) -> str:
    """Return what stands for a key having this value, or any value."""
    text = json.dumps([key, *(float(v) + 0.0 if _is_number(v) else v for v in value)], ensure_ascii=False)
    return text if len(text) <= _MAX_TERM else "#" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _number_key(key: str) -> str:
    """Return the name that a key's numbers are under: without characters that have a meaning in an engine's path."""
    return "k" + "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in key)


def _halves(number: float) -> tuple[int, int]:
    """Return two integers of 32 bits that are in the order of the numbers, the first before the second.

    They are the bits of a double, which are in order for positive numbers, and in reverse for negative ones. They are
    exact, whatever an engine's parser does to floats. Integers beyond 2**53, which no filter may ask for, become one
    double beyond it.
    """
    if abs(number) > _MAX_NUMBER:
        number = 2.0**54 if number > 0 else -(2.0**54)
    (bits,) = struct.unpack(">Q", struct.pack(">d", float(number) + 0.0))  # -0.0 becomes 0.0
    bits = bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63
    return bits >> 32, bits & 0xFFFF_FFFF
