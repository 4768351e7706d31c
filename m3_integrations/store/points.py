"""Records as the points of a Qdrant engine, and back."""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, Final

from m3_integrations.store.filters import Scalar
from m3_integrations.store.protocol import Record
from m3_integrations.vectors import M3Vectors

NAMESPACE: Final = uuid.UUID("6f1c6c62-9a0e-5a35-8ce5-3a2f5b0f7c11")
"""Engines take UUIDs only: a record's is made from its id, so that adding it again replaces it."""

MAX_RECORDS_PER_BATCH: Final = 50
"""What the engine's log holds is replayed when a store is opened: small batches keep that short."""

_MAX_TERM: Final = 200
"""Characters of a term; a longer one is kept as its digest."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A record as an engine keeps it.

    Attributes:
        id: A UUID, made from the record's id.
        payload: See `as_payload`.
        vectors: The vectors of the one text; None where they were not asked for.
    """

    id: str
    payload: Mapping[str, Any]
    vectors: M3Vectors | None = None

    @property
    def nbytes(self) -> int:
        """About how much is written: vectors, text and metadata."""
        size = len(self.payload["text"]) + 2 * len(self.payload["metadata"])
        return size + (self.vectors.nbytes if self.vectors is not None else 0)


@lru_cache(maxsize=1 << 16)  # a search asks for the same few hundred again, and hashing them took a part of its time
def point_id(id_: str) -> str:
    """Give the UUID of a record's id."""
    return str(uuid.uuid5(NAMESPACE, id_))


def as_payload(record: Record) -> dict[str, Any]:
    """Give what is stored beside the vectors.

    `metadata` is one JSON text, because engines give back some floats a bit off. What filters ask for stands beside
    it: `terms`, a list of what is equal to what, and `numbers`, by key, in two halves that are exact as integers.

    Raises:
        ValueError: If the metadata would not come back from JSON as they are, or a text is not valid Unicode.
    """
    metadata = dict(record.metadata)
    try:
        written = json.dumps(metadata, allow_nan=False)
        is_same = json.loads(written) == metadata
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata of record {record.id!r} must be what JSON can hold: {error}") from error
    if not is_same:
        raise ValueError(
            f"metadata of record {record.id!r} must come back from JSON as they are: use lists and string keys, "
            f"got {metadata!r}"
        )
    terms = list(dict.fromkeys(term for key, value in metadata.items() for term in _terms(key, value)))
    for text in (record.id, record.text, *terms):
        text.encode()  # UnicodeEncodeError is a ValueError; an engine's own error would come in the middle of a batch
    payload = {
        "id": record.id,
        "text": record.text,
        "metadata": written,
        "terms": terms,
        "numbers": {
            number_key(key): [dict(zip(("high", "low"), number_halves(number), strict=True)) for number in numbers]
            for key, value in metadata.items()
            if (numbers := [element for element in _elements(value) if _is_number(element)])
        },
    }
    return payload | ({"is_pooled": True} if record.is_pooled else {})


def as_record(point: Point) -> Record:
    """Give back the record that a point was made from."""
    payload = point.payload
    return Record(
        payload["id"],
        payload["text"],
        json.loads(payload["metadata"]),
        point.vectors,
        is_pooled=bool(payload.get("is_pooled", False)),
    )


def term(key: str, *value: Scalar) -> str:
    """Give what stands for a key having this value, or any value."""
    text = json.dumps([key, *(float(v) + 0.0 if _is_number(v) else v for v in value)], ensure_ascii=False)
    return text if len(text) <= _MAX_TERM else "#" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def number_key(key: str) -> str:
    """Give the name under which a key's numbers are: one without characters that mean something in an engine's path."""
    return "k" + "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in key)


def number_halves(number: float) -> tuple[int, int]:
    """Give two integers of 32 bits that are in the order of the numbers, the first before the second.

    From the bits of a double, which are in order for positive numbers, and in reverse for negative ones. Exact,
    whatever an engine's parser does to floats. Integers beyond 2**53 become the nearest double: no filter may ask
    for such numbers.
    """
    (bits,) = struct.unpack(">Q", struct.pack(">d", _as_double(number) + 0.0))  # -0.0 becomes 0.0
    bits = bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63
    return bits >> 32, bits & 0xFFFF_FFFF


def _as_double(number: float) -> float:
    """Give a double on the same side of every number that filters may ask for: those within 2**53."""
    if abs(number) > 2**53:
        return float(2**54) if number > 0 else -float(2**54)
    return float(number)


def _terms(key: str, value: Any) -> Iterator[str]:
    elements = _elements(value)
    if elements:
        yield term(key)
    for element in elements:
        if isinstance(element, str | bool) or (_is_number(element) and abs(element) <= 2**53):
            yield term(key, element)


def _elements(value: Any) -> Sequence[Any]:
    if isinstance(value, list):
        return value
    return () if value is None else (value,)


def _is_number(element: Any) -> bool:
    return isinstance(element, Real) and not isinstance(element, bool)


def batches(points: Iterable[Point], max_bytes: int) -> Iterator[list[Point]]:
    """Cut points into batches of at most 50 and of about so many bytes; a larger one is alone."""
    batch: list[Point] = []
    size = 0
    for point in points:
        if batch and (len(batch) == MAX_RECORDS_PER_BATCH or size + point.nbytes > max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(point)
        size += point.nbytes
    if batch:
        yield batch
