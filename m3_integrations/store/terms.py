"""What a Qdrant engine keeps of a record for filters to ask for, and filters as an engine has them.

Every engine must answer as `filters.matches` does. What they do with floats, dates, missing keys and lists differs, so
that they are asked about exact strings and integers only.
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
"""Characters of a term; a longer one is kept as its digest."""

_AS_JSON: Final = json.JSONEncoder(ensure_ascii=False).encode
_SPECIAL: Final = re.compile("[^0-9A-Za-z]")
_DOUBLE: Final = struct.Struct(">d")
_INTEGER: Final = struct.Struct(">Q")
_ONES: Final = 0xFFFF_FFFF_FFFF_FFFF


def filter_payload(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Qdrant engine stores of a record for filters to ask for.

    `terms` is a list of what is equal to what. Numbers and instants are integers of 64 bits in two halves. `numbers`
    and `dates` have the high halves by path; `lows` has, by the same two names and path, both halves of those whose
    low one is not 0. Of most numbers it is.
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
    """Return the paths in payloads whose integers a filter compares, each with a filter for what has its key."""
    if isinstance(filter, AllOf | AnyOf):
        return {path: exists for part in filter.filters for path, exists in range_paths(part).items()}
    if isinstance(filter, Not):
        return range_paths(filter.filter)
    return {_path_of(filter): Condition(filter.key, "$exists", value=True)} if filter.operator in RANGES else {}


def _paths(metadata: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield every path that leads to something, with what is there; a path that is met twice comes twice."""
    for key, value in metadata.items():
        path, elements = before + key, elements_of(value)
        yield path, elements
        for element in elements:
            if isinstance(element, dict):
                yield from _paths(element, path + ".")


def translate(filter: Filter) -> dict[str, Any]:  # noqa: A002
    """Return the filter of a Qdrant engine, as Qdrant's REST interface writes it, that matches what `matches` does."""
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
    """Compare the high halves, which are indexed; and the low halves only where the high ones are equal.

    Where a low half is 0, as in every whole number up to a million, what has the same high half is that very value or
    above it. Equality is a term.
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
        nested = {"nested": {"key": f"lows.{path}", "filter": of_one}}  # one element fulfils it alone
        parts.append({"must": [*_at(path, high), nested]})
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


def _equal_terms(path: str, value: Scalar) -> list[str]:
    """Return the terms of which a record has one if an element at this path equals the value, as `matches` has it."""
    if isinstance(value, Instant):
        return [_term(path, kind, str(value.microseconds)) for kind in ("on", "is")]
    terms = [_term(path, value)]
    if isinstance(value, str) and (instant := instant_of(value)) is not None:
        terms.append(_term(path, "on", str(instant)))  # a date; another string of the same instant is not equal
    return terms


def _term(path: str, *value: str | float) -> str:
    """Return what stands for a path leading to this value, to a date of this instant, or to anything."""
    text = _AS_JSON([path, *(float(v) + 0.0 if is_number(v) else v for v in value)])
    return text if len(text) <= _MAX_TERM else "#" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _path_of(condition: Condition) -> str:
    """Return where in a payload the high halves are that a range compares."""
    return f"{'dates' if isinstance(condition.value, Instant) else 'numbers'}.{_name(condition.key)}"


def _name(path: str) -> str:
    """Return the name that a path's numbers are under: without characters that have a meaning in an engine's path."""
    return "k" + _SPECIAL.sub(lambda found: f"_{ord(found[0]):x}_", path)


def _halves(value: float | Instant) -> tuple[int, int]:
    """Return two integers of 32 bits that are in the order of the numbers or instants, the first before the second.

    Of a number they are the bits of a double, which are in order for positive numbers, and in reverse for negative
    ones. They are exact, whatever an engine's parser does to floats. Integers beyond 2**53, which no filter may ask
    for, become one double beyond it.
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
    """Return what has this high half and 0 as its low one: of the kind of a value."""
    bits = high << 32
    if isinstance(value, Instant):
        return Instant(bits - (1 << 63))
    (number,) = _DOUBLE.unpack(_INTEGER.pack(bits ^ 1 << 63 if bits >> 63 else bits ^ _ONES))
    return float(number)
