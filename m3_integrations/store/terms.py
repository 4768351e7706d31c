"""The payload that a Qdrant engine keeps for filters, and the translation of filters for an engine.

Every engine must answer as `filters.matches` does. Engines treat floats, dates, missing keys and lists differently, so
they only compare exact strings and integers.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from m3_integrations.store.filters import (
    MAX_NUMBER,
    RANGES,
    AllOf,
    AnyOf,
    Condition,
    Filter,
    Instant,
    Not,
    Scalar,
    is_number,
)
from m3_integrations.store.values import elements_of, instant_of

_MAX_TERM: Final = 200
"""The most characters of a term; a longer one is kept as its hash."""

_AS_JSON: Final = json.JSONEncoder(ensure_ascii=False).encode
_SPECIAL: Final = re.compile("[^0-9A-Za-z]")
_DOUBLE: Final = struct.Struct(">d")
_INTEGER: Final = struct.Struct(">Q")
_ONES: Final = 0xFFFF_FFFF_FFFF_FFFF


def filter_payload(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record's payload that filters use.

    `terms` is a list of strings, one for each path with a value and each path with this value. Numbers and instants are
    integers of 64 bits in two halves. `numbers` and `dates` have the high halves by path. `lows` has, by the same two
    names and path, both halves of those whose low half is not 0; for most numbers it is 0.
    """
    terms: dict[str, None] = {}  # each once, in order
    highs: dict[str, dict[str, list[int]]] = {"numbers": {}, "dates": {}}
    lows: dict[str, dict[str, list[dict[str, int]]]] = {}
    for path, elements in _paths(metadata):
        if elements:
            terms[_term(path)] = None
        for element in elements:
            if isinstance(element, str | bool) or (is_number(element) and abs(element) <= MAX_NUMBER):
                terms[_term(path, element)] = None
            value: float | Instant
            if is_number(element):
                kind, value = "numbers", element
            elif (instant := instant_of(element)) is not None:
                terms[_term(path, "is" if isinstance(element, str) else "on", str(instant))] = None
                kind, value = "dates", Instant(instant)
            else:
                continue
            high, low = _halves(value)
            highs[kind].setdefault(name := _name(path), []).append(high)
            if low:
                lows.setdefault(kind, {}).setdefault(name, []).append({"high": high, "low": low})
    return {"terms": list(terms), **highs, "lows": lows}


def integer_paths(payloads: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the paths of all numbers and dates in these payloads."""
    return {f"{kind}.{name}" for payload in payloads for kind in ("numbers", "dates") for name in payload[kind]}


def range_paths(filter: Filter) -> dict[str, Filter]:  # noqa: A002
    """Return the paths in payloads whose integers a filter compares, each with a filter for records with its key."""
    if isinstance(filter, AllOf | AnyOf):
        return {path: exists for part in filter.filters for path, exists in range_paths(part).items()}
    if isinstance(filter, Not):
        return range_paths(filter.filter)
    return {_path_of(filter): Condition(filter.key, "$exists", value=True)} if filter.operator in RANGES else {}


def _paths(metadata: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield every path with its elements; a path that occurs twice, in a list of mappings, is yielded twice."""
    for key, value in metadata.items():
        path, elements = before + key, elements_of(value)
        yield path, elements
        for element in elements:
            if isinstance(element, dict):
                yield from _paths(element, path + ".")


def translate(filter: Filter) -> dict[str, Any]:  # noqa: A002
    """Return the filter for a Qdrant engine that matches as `matches` does, in the form of Qdrant's REST interface."""
    if isinstance(filter, AllOf):
        return {"must": [translate(part) for part in filter.filters]} if filter.filters else {}
    if isinstance(filter, AnyOf):
        return _any([translate(part) for part in filter.filters])
    if isinstance(filter, Not):
        return {"must_not": [translate(filter.filter)]}
    key, value = filter.key, filter.value
    if filter.operator in RANGES:
        return _translate_range(filter)
    if filter.operator == "$exists":
        return {"must": [_has_term([_term(key)])]}
    values = value if filter.operator == "$in" else [value]
    return {"must": [_has_term([term for each in values for term in _equal_terms(key, each)])]}


def _translate_range(condition: Condition) -> dict[str, Any]:
    """Return a filter that compares the high halves, which are indexed, and the low halves if the high ones are equal.

    If the bound's low half is 0, as in every whole number up to a million, a value with the same high half equals the
    bound or is above it. Equality is tested by a term.
    """
    path, bound, value = _path_of(condition), condition.operator.removeprefix("$"), condition.value
    high, low = _halves(value)
    if low == 0 and bound in {"gte", "lt"}:
        return {"must": [_in_range(path, bound, high)]}
    strict = bound[:2]
    parts = [_in_range(path, strict, high)]
    if bound != strict:
        parts.append(_has_term(_equal_terms(condition.key, value)))
    if low and strict == "lt":
        parts.append(_has_term(_equal_terms(condition.key, _whole(value, high))))
    if low or strict == "gt":
        of_one = {"must": [*_at("high", high), _in_range("low", strict, low)]}
        nested = {"nested": {"key": f"lows.{path}", "filter": of_one}}  # one element must fulfil both conditions
        parts.append({"must": [*_at(path, high), nested]})
    return {"should": parts}


def _any(parts: list[dict[str, Any]]) -> dict[str, Any]:
    # An engine reads an empty list as no condition, so everything would match.
    return {"should": parts} if parts else {"must_not": [{}]}


def _has_term(terms: list[str]) -> dict[str, Any]:
    return {"key": "terms", "match": {"any": terms}}


def _in_range(key: str, bound: str, value: int) -> dict[str, Any]:
    return {"key": key, "range": {bound: float(value)}}


def _at(key: str, value: int) -> list[dict[str, Any]]:
    return [_in_range(key, "gte", value), _in_range(key, "lte", value)]


def _equal_terms(path: str, value: Scalar) -> list[str]:
    """Return terms; a record has one of them if an element at this path equals the value, as in `matches`."""
    if isinstance(value, Instant):
        return [_term(path, kind, str(value.microseconds)) for kind in ("on", "is")]
    terms = [_term(path, value)]
    if isinstance(value, str) and (instant := instant_of(value)) is not None:
        terms.append(_term(path, "on", str(instant)))  # a date is equal; another string of the same instant is not
    return terms


def _term(path: str, *value: str | float) -> str:
    """Return the term for a path with this value, with a date of this instant, or with any value."""
    text = _AS_JSON([path, *(float(v) + 0.0 if is_number(v) else v for v in value)])
    return text if len(text) <= _MAX_TERM else "#" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _path_of(condition: Condition) -> str:
    """Return the path in a payload of the high halves that a range compares."""
    return f"{'dates' if isinstance(condition.value, Instant) else 'numbers'}.{_name(condition.key)}"


def _name(path: str) -> str:
    """Return the payload's name for a path, without characters that have a meaning in an engine's path."""
    return "k" + _SPECIAL.sub(lambda found: f"_{ord(found[0]):x}_", path)


def _halves(value: float | Instant) -> tuple[int, int]:
    """Return two integers of 32 bits, high and low, that sort as the numbers or instants do.

    For a number they are the bits of a double, whose order is right for positive numbers and reversed for negative
    ones; the bits are changed to correct it. Integers are exact, whatever an engine's parser does to floats. Integers
    beyond 2**53, which no filter may contain, all become one double beyond it.
    """
    if isinstance(value, Instant):
        bits = value.microseconds + (1 << 63)
    else:
        if abs(value) > MAX_NUMBER:
            value = 2.0**54 if value > 0 else -(2.0**54)
        (bits,) = _INTEGER.unpack(_DOUBLE.pack(float(value) + 0.0))  # -0.0 becomes 0.0
        bits = bits ^ _ONES if bits >> 63 else bits | 1 << 63
    return bits >> 32, bits & 0xFFFF_FFFF


def _whole(value: float | Instant, high: int) -> float | Instant:
    """Return the number or instant with this high half and the low half 0, of the same kind as the value."""
    bits = high << 32
    if isinstance(value, Instant):
        return Instant(bits - (1 << 63))
    (number,) = _DOUBLE.unpack(_INTEGER.pack(bits ^ 1 << 63 if bits >> 63 else bits ^ _ONES))
    return float(number)
