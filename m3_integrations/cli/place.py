"""Where a store of the command line is: a folder, or the URL of a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from m3_integrations.store import Store, open_store


def folder_of(where: str) -> Path | None:
    """Give the folder of a store; None for one on a server."""
    return None if "://" in where else Path(where).expanduser()


def is_new(where: str) -> bool:
    """Say whether opening a store would make its folder, or take an empty one."""
    folder = folder_of(where)
    return folder is not None and (not folder.exists() or (folder.is_dir() and not any(folder.iterdir())))


def open_place(where: str, *, collection: str | None, **settings: Any) -> Store:
    """Open the store that a command names; a server's key is in the environment, in QDRANT_API_KEY.

    Raises:
        ValueError: If a collection is named for a folder. Further errors are those of `open_store`.
    """
    folder = folder_of(where)
    if folder is None:
        return open_store(where, api_key=os.environ.get("QDRANT_API_KEY"), collection=collection, **settings)
    if collection is not None:
        raise ValueError(f"--collection is for a server, and {where} is a folder: leave it out")
    return open_store(folder, **settings)
