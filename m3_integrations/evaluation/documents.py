"""Find the judged documents of a store's records."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any


def document_of(id: str, metadata: Mapping[str, Any], judged: Set[str]) -> str:  # noqa: A002 - a record's id
    """Return the name that judgements use for a record, or for the document that the record is a part of.

    For most records it is the record's id. For a record of `m3 index` it is the key of its entry in a JSONL file, or
    the path or the name of its file. If none of these is judged, it is the path, with the key if there is one.

    Args:
        id: The record's id.
        metadata: The record's metadata.
        judged: The names of all judged documents.
    """
    file = metadata.get("m3_file")
    if id in judged or not isinstance(file, str) or not id.startswith(f"{file}#"):
        return id
    key = id.removeprefix(f"{file}#").rpartition("#")[0] or file
    # Not the key alone: entries of several files with one key, such as "line 1", are not one document.
    return next((name for name in (key, Path(file).name, Path(file).stem) if name in judged), id.rpartition("#")[0])


class JudgedDocuments:
    """Names the documents of records, and remembers which files each judged name stands for.

    Args:
        judged: The names of all judged documents.
    """

    def __init__(self, judged: Set[str]) -> None:
        self._judged = judged
        self._records: dict[str, dict[str, str]] = {}  # of each judged name, one record of each file

    def name_of(self, id: str, metadata: Mapping[str, Any]) -> str:  # noqa: A002 - a record's id
        """Return the result of `document_of` for a record."""
        name = document_of(id, metadata, self._judged)
        if name in self._judged:
            file = metadata.get("m3_file")
            place = file if isinstance(file, str) and id.startswith(f"{file}#") else id
            self._records.setdefault(name, {}).setdefault(place, id)
        return name

    def warn_of_shared_names(self) -> None:
        """Warn if a judged name stands for records of several files: they are measured as one document."""
        shared = {name: list(records.values()) for name, records in self._records.items() if len(records) > 1}
        if shared:
            name, ids = next(iter(shared.items()))
            more = f", and {len(shared) - 1:,} further names do too" if len(shared) > 1 else ""
            warnings.warn(
                f"the judged name {name!r} stands for records of {len(ids):,} files, such as {ids[0]!r} and "
                f"{ids[1]!r}, which count as one document{more}: name the full ids of the records in the qrels",
                stacklevel=4,
            )
