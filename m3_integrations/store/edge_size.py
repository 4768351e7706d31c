"""The size of a store in a folder, now and with another way to keep its token vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from m3_integrations.store.points import MultiVectorStorage

MULTI_VECTOR_FOLDER: Final = "vector_storage-multi_vector"
"""The engine's name for the folders of token vectors."""

_BITS: Final[dict[MultiVectorStorage, int]] = {"none": 0, "float16": 16, "turbo8": 8, "turbo4": 4}
_NORM_BYTES: Final = 4
"""The engine keeps one float32 number with each compressed vector."""


@dataclass(frozen=True, slots=True)
class DiskUse:
    """The disk space of a store in a folder after it is closed.

    Attributes:
        size_bytes: The allocated bytes of all its files, without the engine's log, which closing makes small.
        token_bytes: The allocated bytes of its token vectors.
    """

    size_bytes: int
    token_bytes: int

    def with_token_vectors(self, factor: float) -> int:
        """Return the bytes of the whole store if its token vectors took this many times their present bytes."""
        return round(self.size_bytes + (factor - 1) * self.token_bytes)


def disk_use(folder: Path) -> DiskUse:
    """Measure a store in a folder. Records that were just written may not be counted until it closes."""
    log = folder / "engine" / "wal"
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent != log]
    sizes = {file: allocated_bytes(file) for file in files}
    return DiskUse(sum(sizes.values()), sum(size for file, size in sizes.items() if MULTI_VECTOR_FOLDER in file.parts))


def token_vector_bytes(storage: MultiVectorStorage, dim: int) -> float:
    """Return the bytes that the engine uses for a token vector, as measured with 8 to 1,024 numbers.

    Args:
        storage: The way to keep it.
        dim: The number of its numbers.
    """
    return dim * _BITS[storage] / 8 + (_NORM_BYTES if storage.startswith("turbo") else 0)


def smaller_storages(storage: MultiVectorStorage) -> list[MultiVectorStorage]:
    """Return the ways to keep token vectors that take fewer bytes than this one, the largest first."""
    return [each for each in ("turbo8", "turbo4", "none") if _BITS[each] < _BITS[storage]]


def allocated_bytes(file: Path) -> int:
    """Return the bytes that a file takes on its disk."""
    found = file.stat()
    return found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size
