"""Make files durable: when a call returns, they survive a power cut."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable. Do nothing on Windows, which cannot open folders."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make all files below a folder durable, except those that the engine deletes meanwhile. Other threads can run."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        for path in (*names, ""):
            with suppress(FileNotFoundError):
                sync(Path(parent, path))
