"""Find the judged document of a store's record."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any


def document_of(id: str, metadata: Mapping[str, Any], judged: Set[str]) -> str:  # noqa: A002 - a record's id
    """Return the name that judgements use for a record, or for the document that the record is a part of.

    For most records it is the record's id. For a record of `m3 index` it is the key of its entry in a JSONL file, or
    the path or the name of its file.

    Args:
        id: The record's id.
        metadata: The record's metadata.
        judged: The names of all judged documents.
    """
    file = metadata.get("m3_file")
    if id in judged or not isinstance(file, str) or not id.startswith(f"{file}#"):
        return id
    key = id.removeprefix(f"{file}#").rpartition("#")[0] or file
    return next((name for name in (key, Path(file).name, Path(file).stem) if name in judged), key)
