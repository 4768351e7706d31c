"""Which judged document a record of a store is."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any


def document_of(id: str, metadata: Mapping[str, Any], judged: Set[str]) -> str:  # noqa: A002 - a record's id
    """Return the document that a record is, or is a part of, by the name that judgements have for it.

    Most records are the document of their id. One that `m3 index` made is the entry of its JSONL file, or else the
    file, by its path or its name.

    Args:
        id: The record's.
        metadata: The record's.
        judged: The names of all judged documents.
    """
    file = metadata.get("m3_file")
    if id in judged or not isinstance(file, str) or not id.startswith(f"{file}#"):
        return id
    key = id.removeprefix(f"{file}#").rpartition("#")[0] or file
    return next((name for name in (key, Path(file).name, Path(file).stem) if name in judged), key)
