"""A bounded memory of recent vectors, so that a text asked for twice in a row is encoded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

from m3_integrations.vectors import M3Vectors, Mode

_ENTRY_OVERHEAD_BYTES: Final = 1400
"""What the objects of an entry cost beside its arrays (tracemalloc over 2,000 texts in three modes: 1,354)."""


@dataclass(frozen=True, slots=True)
class CachedText:
    """The vectors of one text, whether it was cut to its length limit, and what keeping them costs."""

    vectors: M3Vectors
    is_truncated: bool
    size_bytes: int


def cache_key(text: str, max_length: int, pooling: str) -> bytes:
    """Return 20 bytes that stand for a text under the settings its vectors depend on; the text itself is not kept.

    Raises:
        UnicodeEncodeError: If the text holds half of a surrogate pair.
    """
    return blake2b(f"{pooling} {max_length} {text}".encode(), digest_size=20).digest()


class VectorCache:
    """The least recently used texts are dropped first. Safe to use from many threads.

    Attributes:
        size_bytes: What is held now.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, CachedText] = OrderedDict()
        self.size_bytes = 0
        self._max_size_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, keys: Iterable[bytes], modes: Iterable[Mode]) -> dict[bytes, CachedText]:
        """Return the entries among these keys that have all these modes."""
        needed = set(modes)
        found: dict[bytes, CachedText] = {}
        with self._lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is not None and needed.issubset(entry.vectors.modes):
                    self._entries.move_to_end(key)
                    found[key] = entry
        return found

    def allow(self, size_bytes: int) -> None:
        """Let the cache grow to this size; of several handles' wishes the largest counts."""
        self._max_size_bytes = max(self._max_size_bytes, size_bytes)

    def put(self, keys: Sequence[bytes], vectors: M3Vectors, truncated: Collection[bytes]) -> None:
        """Keep the last of these texts, as many as fit in half of the cache, and drop the oldest to make room.

        Half, so that a long run does not drive out what interactive callers ask for.

        Args:
            keys: One per text.
            vectors: Those of the texts; they are copied.
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
                if (before := self._entries.pop(key, None)) is not None:
                    self.size_bytes -= before.size_bytes
                self._entries[key] = entry
                self.size_bytes += entry.size_bytes
            while self.size_bytes > self._max_size_bytes:
                self.size_bytes -= self._entries.popitem(last=False)[1].size_bytes
