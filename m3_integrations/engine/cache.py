"""A cache of recent vectors with a bounded size, so that a text requested twice in a row is encoded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

from m3_integrations.vectors import M3Vectors, Mode

_ENTRY_OVERHEAD_BYTES: Final = 1600
"""Memory of an entry's objects beside its arrays: 1,556 and a key of 53, by tracemalloc over 2,000 texts in three modes
(Python 3.11)."""

_FEW_TEXTS: Final = 16
"""The most texts of a short call."""


@dataclass(frozen=True, slots=True)
class CachedText:
    """The vectors of one text, whether it was cut to its length limit, and the memory that the entry takes."""

    vectors: M3Vectors
    is_truncated: bool
    size_bytes: int


def cache_key(text: str, max_length: int, pooling: str) -> bytes:
    """Return a 20-byte hash of a text and the settings that its vectors depend on. The cache does not keep the text."""
    return blake2b(f"{pooling} {max_length} {text}".encode(), digest_size=20).digest()


class VectorCache:
    """A cache that drops the least recently used texts first. Threads may use it at once.

    The texts of long calls get at most half of the room: an import must not drop what interactive callers need.
    """

    def __init__(self) -> None:
        self._few: OrderedDict[bytes, CachedText] = OrderedDict()  # texts of short calls
        self._many: OrderedDict[bytes, CachedText] = OrderedDict()  # texts of long calls
        self._few_bytes = self._many_bytes = self._max_size_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._few) + len(self._many)

    @property
    def size_bytes(self) -> int:
        """The size of all entries."""
        return self._few_bytes + self._many_bytes

    def get(self, keys: Iterable[bytes], modes: Iterable[Mode]) -> dict[bytes, CachedText]:
        """Return the entries among these keys that have all these modes."""
        needed = set(modes)
        found: dict[bytes, CachedText] = {}
        with self._lock:
            for key in keys:
                entries = self._few if key in self._few else self._many
                entry = entries.get(key)
                if entry is not None and needed.issubset(entry.vectors.modes):
                    entries.move_to_end(key)
                    found[key] = entry
        return found

    def allow(self, size_bytes: int) -> None:
        """Let the cache grow to this size; if several handles call this, the largest size counts."""
        self._max_size_bytes = max(self._max_size_bytes, size_bytes)

    def put(self, keys: Sequence[bytes], vectors: M3Vectors, truncated: Collection[bytes]) -> None:
        """Keep the last of these texts, as many as fit in half of the cache, and drop the oldest to make room.

        Args:
            keys: One per text.
            vectors: The vectors of the texts; they are copied.
            truncated: The keys of texts that were cut.
        """
        room, fitting = self._max_size_bytes // 2, list[tuple[bytes, CachedText]]()
        for i in range(len(keys) - 1, -1, -1):
            one = vectors.take(np.array([i]))
            entry = CachedText(one, keys[i] in truncated, one.nbytes + _ENTRY_OVERHEAD_BYTES)
            if entry.size_bytes > room:
                break
            room -= entry.size_bytes
            fitting.append((keys[i], entry))
        with self._lock:
            for key, entry in reversed(fitting):
                self._drop(key)
                if len(keys) <= _FEW_TEXTS:
                    self._few[key] = entry
                    self._few_bytes += entry.size_bytes
                else:
                    self._many[key] = entry
                    self._many_bytes += entry.size_bytes
            while self._many_bytes > self._max_size_bytes // 2:
                self._drop(next(iter(self._many)))
            while self.size_bytes > self._max_size_bytes:
                self._drop(next(iter(self._many or self._few)))

    def _drop(self, key: bytes) -> None:
        if (entry := self._few.pop(key, None)) is not None:
            self._few_bytes -= entry.size_bytes
        elif (entry := self._many.pop(key, None)) is not None:
            self._many_bytes -= entry.size_bytes
