"""What a Qdrant engine keeps of a record for filters to ask for, and filters as an engine has them.

Every engine must answer as `filters.matches` does. What they do with floats, dates, missing keys and lists differs, so
that they are asked about exact strings and integers only.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
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


def filter_payload(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Qdrant engine stores of a record for filters to ask for.

    `terms` is a list of what is equal to what. `numbers` and `dates` have, by path, numbers and instants in two halves
    that are exact as integers.
    """
    terms: dict[str, None] = {}  # each once, in order
    numbers: dict[str, list[dict[str, int]]] = {}
    dates: dict[str, list[dict[str, int]]] = {}
    for path, elements in _paths(metadata):
        if elements:
            terms[_term(path)] = None
        for element in elements:
            if isinstance(element, str | bool) or (is_number(element) and abs(element) <= MAX_NUMBER):
                terms[_term(path, element)] = None
            if is_number(element):
                numbers.setdefault(_name(path), []).append(_halves(element))
            elif (instant := instant_of(element)) is not None:
                terms[_term(path, "is" if isinstance(element, str) else "on", str(instant))] = None
                dates.setdefault(_name(path), []).append(_halves(Instant(instant)))
    return {"terms": list(terms), "numbers": numbers, "dates": dates}


def _paths(metadata: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield every path that leads to something, with what is there; a path that is met twice comes twice."""
    for key, value in metadata.items():
        path, elements = before + key, elements_of(value)
        yield path, elements
        for element in elements:
            if isinstance(element, dict):
                yield from _paths(element, path + ".")


def range_paths(filter: Filter) -> set[str]:  # noqa: A002
    """Return the paths in payloads whose integers a filter compares, for an engine to index."""
    if isinstance(filter, AllOf | AnyOf):
        return set().union(*map(range_paths, filter.filters))
    if isinstance(filter, Not):
        return range_paths(filter.filter)
    return {f"{_list_of(filter)}[].high"} if filter.operator in RANGES else set()


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

    Equality of both is a term. Where the low half is 0, as in every integer up to a million, none is below it, and
    only `gt` has to look at low halves, which are not indexed.
    """
    where, bound = _list_of(condition), condition.operator.removeprefix("$")
    index, halves = f"{where}[].high", _halves(condition.value)
    high, low = halves["high"], halves["low"]
    if low == 0 and bound in {"gte", "lt"}:
        return {"must": [_in_range(index, bound, high)]}
    strict = bound[:2]
    parts = [_in_range(index, strict, high)]
    if bound != strict:
        parts.append(_has_term(_equal_terms(condition.key, condition.value)))
    if low or strict == "gt":
        of_one = {"must": [*_at("high", high), _in_range("low", strict, low)]}
        nested = {"nested": {"key": where, "filter": of_one}}  # one element fulfils it alone
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


def _equal_terms(path: str, value: Scalar) -> list[str]:
    """Return the terms of which a record has one if an element at this path equals the value, as `_equal` has it."""
    if isinstance(value, Instant):
        return [_term(path, kind, str(value.microseconds)) for kind in ("on", "is")]
    terms = [_term(path, value)]
    if isinstance(value, str) and (instant := instant_of(value)) is not None:
        terms.append(_term(path, "on", str(instant)))  # a date; another string of the same instant is not equal
    return terms


def _term(path: str, *value: str | float) -> str:
    """Return what stands for a path leading to this value, to a date of this instant, or to anything."""
    text = json.dumps([path, *(float(v) + 0.0 if is_number(v) else v for v in value)], ensure_ascii=False)
    return text if len(text) <= _MAX_TERM else "#" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _list_of(condition: Condition) -> str:
    """Return where in a payload the halves are that a range compares."""
    return f"{'dates' if isinstance(condition.value, Instant) else 'numbers'}.{_name(condition.key)}"


def _name(path: str) -> str:
    """Return the name that a path's numbers are under: without characters that have a meaning in an engine's path."""
    return "k" + "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in path)


def _halves(value: float | Instant) -> dict[str, int]:
    """Return two integers of 32 bits, "high" before "low", that are in the order of the numbers or instants.

    Of a number they are the bits of a double, which are in order for positive numbers, and in reverse for negative
    ones. They are exact, whatever an engine's parser does to floats. Integers beyond 2**53, which no filter may ask
    for, become one double beyond it.
    """
    if isinstance(value, Instant):
        bits = value.microseconds + (1 << 63)
    else:
        if abs(value) > MAX_NUMBER:
            value = 2.0**54 if value > 0 else -(2.0**54)
        (bits,) = struct.unpack(">Q", struct.pack(">d", float(value) + 0.0))  # -0.0 becomes 0.0
        bits = bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63
    return {"high": bits >> 32, "low": bits & 0xFFFF_FFFF}
