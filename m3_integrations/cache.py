"""A bounded memory of recent vectors, so that a text asked for twice in a row is encoded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from m3_integrations.vectors import M3Vectors, Mode

_ENTRY_OVERHEAD_BYTES = 1024
"""What the objects of an entry cost beside its arrays (measured: 0.9 kB)."""

_LARGEST_SHARE = 4
"""An entry larger than this part of the cache would drive out everything else, so it is not kept."""


@dataclass(frozen=True, slots=True)
class CachedText:
    """The vectors of one text, and whether it was cut to its length limit."""

    vectors: M3Vectors
    is_truncated: bool

    @property
    def size_bytes(self) -> int:
        """What keeping it costs."""
        return self.vectors.nbytes + _ENTRY_OVERHEAD_BYTES


def cache_key(text: str, max_length: int, pooling: str) -> bytes:
    """Give 20 bytes that stand for a text under the settings its vectors depend on; the text itself is not kept.

    Raises:
        UnicodeEncodeError: If the text holds half of a surrogate pair.
    """
    return blake2b(f"{pooling} {max_length} {text}".encode(), digest_size=20).digest()


class VectorCache:
    """The least recently used texts are dropped first. Safe to use from many threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, CachedText] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """What is held now."""
        return self._size_bytes

    def get(self, keys: Iterable[bytes], modes: Iterable[Mode]) -> dict[bytes, CachedText]:
        """Give the entries among these keys that have all these modes."""
        needed = set(modes)
        found: dict[bytes, CachedText] = {}
        with self._lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is not None and needed.issubset(entry.vectors.modes):
                    self._entries.move_to_end(key)
                    found[key] = entry
        return found

    def put(self, entries: Mapping[bytes, CachedText], max_size_bytes: int) -> None:
        """Keep these entries, dropping the oldest ones until all fit in max_size_bytes."""
        with self._lock:
            for key, entry in entries.items():
                if entry.size_bytes * _LARGEST_SHARE > max_size_bytes:
                    continue
                self._drop(key)
                self._entries[key] = entry
                self._size_bytes += entry.size_bytes
            while self._size_bytes > max_size_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._size_bytes -= entry.size_bytes
