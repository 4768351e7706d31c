"""`open_store`: one door for every engine."""

from __future__ import annotations

from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.protocol import Store


def open_store(where: None = None) -> Store:
    """Give a new store in memory: exact, gone with the process.

    Args:
        where: None.

    Raises:
        NotImplementedError: For a folder or a URL.
    """
    if where is not None:
        raise NotImplementedError(f"only open_store(None), a store in memory, is there so far; got {where!r}")
    return MemoryStore()
