"""The values that metadata may hold, for every store and both frameworks; `check_metadata` checks them before storing.

| given | kept and returned as | a filter sees |
|---|---|---|
| None | None | a missing key |
| bool, `np.bool_` | bool | a boolean |
| int, float, their numpy scalars | int or float, finite | a number; integers up to 2**53 exactly |
| str, `np.str_`, `Path`, `UUID` | str, valid Unicode | a string; as a date too if it is one in ISO 8601 |
| `datetime` (`Timestamp` of pandas, `np.datetime64`), `date` | `datetime` or `date` | an instant, in microseconds |
| an `Enum` | its value | that value |
| list, tuple, deque, numpy array | list | each element |
| a mapping with strings as keys | dict | its keys, after a dot: `loc.page` |
| set, bytes, `Decimal`, NaN, `time`, `timedelta`, anything else | refused | |

A `datetime` without a time zone counts as UTC, a `date` as midnight UTC. A time zone is kept as its offset from UTC.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Final, NoReturn
from uuid import UUID

import numpy as np

_MAX_DEPTH: Final = 20
"""Most levels of nested lists and mappings: the format of messages to servers does not allow many more."""
_MAX_INTEGER_BITS: Final = 1023
"""Most bits of an integer: a larger one may not fit into a float, and an engine would refuse it."""
_MOST: Final = 2**_MAX_INTEGER_BITS - 2**970
"""The largest float below 2**1023; a payload gets it for larger integers, which stores of the first format may hold."""
_EPOCH: Final = datetime(1970, 1, 1)
_UNIT_SECONDS: Final = {"Y": 366 * 86_400, "M": 31 * 86_400, "W": 7 * 86_400, "D": 86_400, "h": 3600, "m": 60, "s": 1}
"""The most seconds of numpy's units of dates from a second on."""
_TICK: Final = timedelta(microseconds=1)
_ISO: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ]([01][0-9]|2[0-3]):[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
"""The dates and times of ISO 8601 that every supported Python version parses the same."""

_WAYS_OUT: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    ((set, frozenset), "it has no order: use a list, such as sorted(...)"),
    ((bytes, bytearray, memoryview, np.bytes_), "decode it to a string"),
    ((Decimal, Fraction), "use float(...) or str(...)"),
    ((time, timedelta, np.timedelta64), "use a number of seconds, or str(...)"),
    ((complex, np.complexfloating), "use a list of two numbers"),
)
_ANY_WAY_OUT: Final = "use strings, numbers, booleans, dates, None, or lists and mappings of these"

_Trail = tuple[str | int, ...]
"""The keys and positions that lead to a value."""


def check_metadata(metadata: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return a copy of a record's metadata, with every value converted as in the table of this module.

    Args:
        metadata: They are not changed.
        owner: The record, for error messages, such as "record 'a'".

    Raises:
        TypeError: If metadata are not a mapping.
        ValueError: If a key is not a string, or a value cannot be kept exactly.
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"the metadata of {owner} must be a mapping such as {{'year': 2024}}, got {metadata!r:.80}")
    return _mapping(metadata, f"the metadata of {owner}", ())


def check_value(value: Any, owner: str) -> Any:
    """Convert a single value, such as the operand of a filter, as `check_metadata` does.

    Raises:
        ValueError: If the value cannot be kept exactly.
    """
    return _kept(value, owner, ())


def _mapping(metadata: Mapping[Any, Any], owner: str, trail: _Trail) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(key, str):
            _refuse(key, owner, (*trail, repr(key)), "keys must be strings: use str(...)")
        name = key if type(key) is str else _kept(key, owner, trail)
        if not name.isascii():
            _check_unicode(name, owner, (*trail, ascii(name)[1:-1]))
        kept[name] = _kept(value, owner, (*trail, name))
    return kept


def _kept(value: Any, owner: str, trail: _Trail) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return value if value.isascii() else _check_unicode(value, owner, trail)
    if kind is int:
        if value.bit_length() > _MAX_INTEGER_BITS:
            _refuse(value, owner, trail, "integers must be below 2**1023: use a string")
        return value
    if kind is float:
        if not math.isfinite(value):
            _refuse(value, owner, trail, "it is not finite: use None, or leave the key out")
        return value
    if isinstance(value, Mapping | list | tuple | deque | np.ndarray):
        if len(trail) > _MAX_DEPTH:
            _refuse(value, owner, trail[:2], f"lists and mappings may be nested {_MAX_DEPTH} deep")
        return _container(value, owner, trail)
    plain = _plain(value, owner, trail)
    return plain if isinstance(plain, date) else _kept(plain, owner, trail)


def _container(value: Any, owner: str, trail: _Trail) -> Any:
    if isinstance(value, Mapping):
        return _mapping(value, owner, trail)
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            _refuse(value, owner, trail, "a masked element has no value: use .filled(...) or .tolist()")
        if value.ndim == 0:
            return _kept(value[()], owner, trail)
    return [_kept(each, owner, (*trail, i)) for i, each in enumerate(value)]


def _plain(value: Any, owner: str, trail: _Trail) -> Any:  # noqa: PLR0911 - one return for each type
    """Convert a value to one of Python's plain types; a date is returned as it is kept."""
    if hints := [
        hint for kinds, hint in _WAYS_OUT if isinstance(value, kinds)
    ]:  # first, because a timedelta64 is an np.integer too
        _refuse(value, owner, trail, hints[0])
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.datetime64):
        value = _from_datetime64(value, owner, trail)
    if isinstance(value, datetime):
        return _moment(value, owner, trail)
    if isinstance(value, date):
        return date(value.year, value.month, value.day)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, PurePath | UUID):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        if number == value or not math.isfinite(number):  # refuse a long double with more digits than float64
            return number
    return _refuse(value, owner, trail, _ANY_WAY_OUT)


def _from_datetime64(value: np.datetime64, owner: str, trail: _Trail) -> datetime | date:
    unit, count = np.datetime_data(value.dtype)
    most_us = {"ms": 1000, "us": 1}.get(unit, 10**6 * _UNIT_SECONDS.get(unit, 0))
    is_far = abs(int(value.astype(np.int64))) * count * most_us > 2**62  # numpy's own products would overflow
    exact = value.astype("datetime64[us]")
    python = exact.item()
    if np.isnat(value) or is_far or not isinstance(python, datetime) or exact != value:
        _refuse(value, owner, trail, "dates have years 1 to 9999 and microseconds: round it, or use None")
    is_day = unit in {"Y", "M", "W", "D"}
    return python.date() if is_day else python


def _moment(value: datetime, owner: str, trail: _Trail) -> datetime:
    if value != value or getattr(value, "nanosecond", False):  # noqa: PLR0124 - pandas.NaT is a datetime, and != itself
        _refuse(value, owner, trail, "dates have microseconds at most: round it, or use None for a missing date")
    offset = value.utcoffset()
    zone = None if offset is None else timezone(offset)
    day, clock = (value.year, value.month, value.day), (value.hour, value.minute, value.second, value.microsecond)
    return datetime(*day, *clock, tzinfo=zone)


def _check_unicode(text: str, owner: str, trail: _Trail) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        _refuse(text, owner, trail, f"it is not valid Unicode: half a surrogate pair at position {error.start}")
    return text


def _refuse(value: Any, owner: str, trail: _Trail, hint: str) -> NoReturn:
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in trail).removeprefix(".")
    under = f" under {place!r}" if place else ""
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:  # Python may refuse to print it
        said = f"an integer of {value.bit_length()} bits"
    else:
        said = ascii(value) if isinstance(value, str) else repr(value)
    said = said if len(said) <= 80 else f"{said[:77]}..."
    raise ValueError(f"{owner} cannot have {said} ({type(value).__name__}){under}: {hint}")


def instant_of(value: Any) -> int | None:
    """Return the microseconds from 1970-01-01 UTC to a `datetime`, a `date` or a string of ISO 8601; None for others.

    Strings are dates and times such as `2024-05-01`, `2024-05-01T10:30` or `2024-05-01T10:30:00.5+02:00`.
    """
    if isinstance(value, str):
        if len(value) < 10 or value[4] != "-" or not _ISO.fullmatch(value):  # cheap checks before the regex
            return None
        try:
            value = datetime.fromisoformat(value)
        except ValueError:  # such as month 13
            return None
    if isinstance(value, datetime):
        since = value.replace(tzinfo=None) - _EPOCH
        return (since - (value.utcoffset() or timedelta(0))) // _TICK
    if isinstance(value, date):
        return (datetime(value.year, value.month, value.day) - _EPOCH) // _TICK
    return None


def as_json_values(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return checked metadata as an engine's payload, and as an exact text if the payload would change a value.

    In the payload dates are strings of ISO 8601, so that other clients of the engine can filter by them. Engines change
    the last bit of some floating-point numbers, and integers of more than 64 bits. If the metadata have none of these
    values, the second result is None.
    """
    dates: list[_Trail] = []
    inexact: list[_Trail] = []
    native = _native(metadata, (), dates, inexact)
    if not dates and not inexact:
        return native, None
    return native, json.dumps({"metadata": with_iso_dates(metadata), "dates": dates}, ensure_ascii=False)


def read_exact(text: str) -> dict[str, Any]:
    """Return the metadata from the text that `as_json_values` made."""
    found = json.loads(text)
    metadata: dict[str, Any] = found["metadata"]
    put_dates(metadata, found["dates"])
    return metadata


def put_dates(metadata: dict[str, Any], dates: Sequence[_Trail]) -> None:
    """Replace the strings of dates by dates.

    Args:
        metadata: Has strings of ISO 8601 for dates; it is changed.
        dates: The keys and positions that lead to each date, as `split_dates` returns them.
    """
    for trail in dates:
        place: Any = metadata
        for step in trail[:-1]:
            place = place[step]
        written = place[trail[-1]]
        place[trail[-1]] = datetime.fromisoformat(written) if "T" in written else date.fromisoformat(written)


def split_dates(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[_Trail]]:
    """Return checked metadata with strings of ISO 8601 for dates, and the keys and positions that lead to each date."""
    dates: list[_Trail] = []
    written: dict[str, Any] = _written(metadata, (), dates)
    return written, dates


def _native(value: Any, trail: _Trail, dates: list[_Trail], inexact: list[_Trail]) -> Any:
    if isinstance(value, dict):
        return {key: _native(each, (*trail, key), dates, inexact) for key, each in value.items()}
    if isinstance(value, list):
        return [_native(each, (*trail, i), dates, inexact) for i, each in enumerate(value)]
    if isinstance(value, date):
        dates.append(trail)
        return value.isoformat()
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        inexact.append(trail)
        return float(max(min(value, _MOST), -_MOST))
    if isinstance(value, float) and not _is_read_exactly(value):
        inexact.append(trail)
    return value


def with_iso_dates(value: Any) -> Any:
    """Return a value with strings of ISO 8601 for its dates, because JSON has no dates."""
    return _written(value, (), [])


def _written(value: Any, trail: _Trail, dates: list[_Trail]) -> Any:
    if isinstance(value, dict):
        return {key: _written(each, (*trail, key), dates) for key, each in value.items()}
    if isinstance(value, list):
        return [_written(each, (*trail, i), dates) for i, each in enumerate(value)]
    if isinstance(value, date):
        dates.append(trail)
        return value.isoformat()
    return value


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of the same type: True is not 1, and 1 is not 1.0.

    Python's `==` calls these equal, and also two times of the same instant in different zones.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return repr(one) == repr(other)


def _is_read_exactly(number: float) -> bool:
    """Return whether every parser reads the number's shortest decimal form as exactly this number.

    An integer up to 2**53 multiplied or divided by a power of ten up to 10**22 is one correctly rounded operation
    (Clinger, "How to read floating point numbers accurately", 1990).
    """
    if number.is_integer() and abs(number) <= 2**53:
        return True
    written = repr(number)
    if len(written) <= 16 and "e" not in written:  # 15 digits: most numbers that people write
        return True
    digits = Decimal(written).as_tuple()
    whole = int("".join(map(str, digits.digits)))
    return whole <= 2**53 and isinstance(digits.exponent, int) and abs(digits.exponent) <= 22


def elements_of(value: Any) -> Sequence[Any]:
    """Return the values that a filter compares: a list's elements, nothing for None, otherwise the value itself."""
    if isinstance(value, list):
        return value
    return () if value is None else (value,)
