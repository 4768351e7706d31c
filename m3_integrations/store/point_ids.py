"""The UUID of a record's point. Engines accept only UUIDs and numbers as ids of points.

It is made of the record's id alone, so that adding a record again replaces its point. In a folder most of these UUIDs
contain the record's id, which a search would otherwise read from the payload of every candidate:

- An id that is a UUID of versions 1 to 7, in lower case and with hyphens, is also the id of the point.
- An id of up to 15 bytes of UTF-8 is put into a UUID of version 8, the version for such uses (RFC 9562).
- Of any other id, a UUID of version 8 has the hash.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from functools import lru_cache
from typing import Final

_NAMESPACE: Final = uuid.UUID("6f1c6c62-9a0e-5a35-8ce5-3a2f5b0f7c11")
_UUID: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[1-7][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_ID_BYTES: Final = 15
"""Of the 122 free bits of a UUID of version 8, the first says whether the last 120 are a hash; the second is 0."""
_IS_HASH: Final = 1 << 121
_LOW_BITS: Final = 62  # the free bits after the variant; 12 are between it and the version, and 48 before that


@lru_cache(maxsize=1 << 16)  # searches need the same few hundred again and again
def point_id(id_: str) -> str:
    """Return the UUID of a record's point in a store of format version 3."""
    if _UUID.fullmatch(id_):
        return id_
    text = id_.encode()
    if len(text) <= _ID_BYTES and not text.endswith(b"\0"):
        bits = int.from_bytes(text.ljust(_ID_BYTES, b"\0"))
    else:
        bits = _IS_HASH | int.from_bytes(hashlib.sha256(text).digest()[:_ID_BYTES])
    high, middle, low = bits >> 74, bits >> _LOW_BITS & 0xFFF, bits & (1 << _LOW_BITS) - 1
    return str(uuid.UUID(int=high << 80 | 8 << 76 | middle << 64 | 2 << _LOW_BITS | low))


def record_id(point: uuid.UUID) -> str | None:
    """Return the id of the record for which `point_id` made this point; None if the UUID has only the hash."""
    number = point.int
    if number >> 76 & 0xF != 8:
        return str(point)
    bits = number >> 80 << 74 | (number >> 64 & 0xFFF) << _LOW_BITS | number & (1 << _LOW_BITS) - 1
    return None if bits & _IS_HASH else bits.to_bytes(_ID_BYTES).rstrip(b"\0").decode()


@lru_cache(maxsize=1 << 16)
def hashed_point_id(id_: str) -> str:
    """Return the UUID of a record's point in a store of format version 1 or 2, which never contains the id."""
    return str(uuid.uuid5(_NAMESPACE, id_))
