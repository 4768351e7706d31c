"""The format of a store's calls between `ServedStore` and `m3 serve`: records, filters and arrays as bytes.

A body is one file of safetensors: arrays by name, and under "json" the bytes of a JSON value. JSON has no dates, so the
dates of a record are strings of ISO 8601, with a list of the keys and positions where they are. A filter is sent in its
parsed form, so that a date in it stays a date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from m3_integrations.store.filters import (
    MAX_NUMBER,
    AllOf,
    AnyOf,
    Condition,
    Filter,
    Instant,
    Not,
    Operator,
    is_number,
)
from m3_integrations.store.protocol import Record
from m3_integrations.store.values import check_value, put_dates, split_dates
from m3_integrations.vectors import M3Vectors, Tensors, modes_of, take_array, take_vectors, to_tensors

API: Final = 1
"""The version of these calls: it rises if an older client or server would misread a call."""

_JSON: Final = "json"

_MAX_DEPTH: Final = 64
"""The most levels of a parsed filter: one that users write 20 deep has some 45 levels."""


_MAX_INSTANT: Final = 2**58
"""The largest instant in microseconds: the year 9999 and any time zone are below it."""


def pack(said: Any, arrays: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """Return a body with a JSON value and arrays."""
    written = json.dumps(said, ensure_ascii=False).encode()
    return save({**(arrays or {}), _JSON: np.frombuffer(written, np.uint8)})


def unpack(body: bytes) -> tuple[Any, Tensors]:
    """Return the JSON value and the arrays of a body.

    Raises:
        ValueError: If `pack` did not make it.
    """
    try:
        arrays = load(body)
        return json.loads(take_array(arrays, _JSON, np.uint8, -1).tobytes()), arrays
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"content that is not safetensors with JSON in it ({error})") from error


def check_empty(arrays: Tensors) -> None:
    """Raise ValueError if a body has arrays that were not read."""
    if arrays:
        raise ValueError(f"{', '.join(sorted(arrays))}, which was not requested")


def record_to_json(record: Record) -> dict[str, Any]:
    """Return a record without its vectors as a value for JSON; its metadata must have been checked."""
    written, dates = split_dates(record.metadata)
    said: dict[str, Any] = {"id": record.id, "text": record.text, "metadata": written}
    if dates:
        said["dates"] = dates
    if record.is_pooled:
        said["is_pooled"] = True
    return said


def record_from_json(said: Any) -> Record:
    """Return the record that `record_to_json` turned into this value.

    Raises:
        ValueError: If `record_to_json` did not make it.
    """
    try:
        metadata = said["metadata"]
        put_dates(metadata, said.get("dates", ()))
        record = Record(said["id"], said["text"], metadata, None, said.get("is_pooled", False) is True)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"a record that cannot be read ({error!r})") from error
    if not (isinstance(record.id, str) and isinstance(record.text, str) and isinstance(metadata, dict)):
        raise ValueError("a record whose id, text or metadata has another type")  # noqa: TRY004 - what was sent
    return record


def pack_records(records: Sequence[Record], vectors: M3Vectors | None = None, **said: Any) -> bytes:
    """Return a body with records, the vectors of all of them, and further values."""
    written = [record_to_json(record) for record in records]
    return pack({**said, "records": written}, {} if vectors is None else to_tensors(vectors))


def unpack_records(body: bytes) -> tuple[list[Record], M3Vectors | None, dict[str, Any]]:
    """Return a body's records without vectors, the vectors of all of them, and its further values.

    Raises:
        ValueError: If `pack_records` did not make it.
    """
    said, arrays = unpack(body)
    if not isinstance(said, dict) or not isinstance(said.get("records"), list):
        raise ValueError("no records")  # noqa: TRY004 - what was sent
    records = [record_from_json(each) for each in said.pop("records")]
    modes = modes_of(arrays)
    vectors = take_vectors(arrays, len(records), modes) if modes else None
    check_empty(arrays)
    return records, vectors, said


def parts_of(sizes: Sequence[int], max_n: int, max_bytes: int) -> Iterator[slice]:
    """Yield slices of at most max_n things and max_bytes bytes; a single larger thing is a slice alone."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and (i - start == max_n or total + size > max_bytes):
            yield slice(start, i)
            start, total = i, 0
        total += size
    if len(sizes) > start:
        yield slice(start, len(sizes))


def filter_to_json(filter_: Filter | None) -> Any:
    """Return a parsed filter as a value for JSON: None, or a dict with "all", "any", "not" or "key"."""
    if filter_ is None:
        return None
    if isinstance(filter_, Not):
        return {"not": filter_to_json(filter_.filter)}
    if isinstance(filter_, AllOf | AnyOf):
        return {"all" if isinstance(filter_, AllOf) else "any": [filter_to_json(part) for part in filter_.filters]}
    value = filter_.value
    written = [_operand_to_json(each) for each in value] if isinstance(value, tuple) else _operand_to_json(value)
    return {"key": filter_.key, "operator": filter_.operator, "value": written}


def _operand_to_json(value: Any) -> Any:
    return {"instant": value.microseconds} if isinstance(value, Instant) else value


def filter_from_json(said: Any) -> Filter | None:
    """Return the filter that `filter_to_json` turned into this value.

    Raises:
        ValueError: If `filter_to_json` did not make it.
    """
    return None if said is None else _filter(said, 0)


def _filter(said: Any, depth: int) -> Filter:
    if depth > _MAX_DEPTH or not isinstance(said, dict):
        raise ValueError(f"a filter must be an object, and at most {_MAX_DEPTH} deep")
    if set(said) == {"not"}:
        return Not(_filter(said["not"], depth + 1))
    for name, kind in (("all", AllOf), ("any", AnyOf)):
        if set(said) == {name} and isinstance(said[name], list):
            return kind(tuple(_filter(part, depth + 1) for part in said[name]))
    if set(said) != {"key", "operator", "value"} or not isinstance(said["key"], str):
        raise ValueError('a filter must have "all", "any", "not", or "key", "operator" and "value"')
    key: str = check_value(said["key"], "a filter's key")
    return Condition(key, *_comparison(said["operator"], said["value"]))


def _comparison(operator: Any, value: Any) -> tuple[Operator, Any]:
    """Return a condition's operator and value; raise ValueError if `parse_filter` cannot make them."""
    if operator not in get_args(Operator):
        raise ValueError(f"a filter's operator must be one of {', '.join(get_args(Operator))}")
    if operator == "$exists":
        is_right, read = value is True, value
    elif operator == "$in":
        is_right = isinstance(value, list) and len(value) > 0
        read = tuple(map(_operand, value)) if is_right else None
    else:
        read = _operand(value)
        is_right = operator == "$eq" or isinstance(read, Instant) or is_number(read)
    if not is_right:
        raise ValueError(f"a filter cannot compare by {operator} with such a value")
    return operator, read


def _operand(value: Any) -> str | int | float | bool | Instant:
    if isinstance(value, dict) and set(value) == {"instant"}:
        instant = value["instant"]
        if type(instant) is int and abs(instant) <= _MAX_INSTANT:
            return Instant(instant)
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        read: str = check_value(value, "a filter's value")
        return read
    if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:
        return value
    raise ValueError("a filter compares with strings, booleans, numbers within 2**53, or {'instant': microseconds}")
