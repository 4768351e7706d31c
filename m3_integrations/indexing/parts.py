"""Makes the records of a file, and reads from a store which files it has.

What was indexed is recorded only in the store. Each record's metadata name its file (`m3_file`) and have a digest of
its text and metadata (`m3_part`). A file's first record also has a digest of the file's content and splitting
(`m3_content`), and a digest of all the file's parts (`m3_parts`). A file is done if the store has exactly these parts.
So a file that a killed run left unfinished is recognised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from m3_integrations.indexing.reading import markup_of, read_entries
from m3_integrations.indexing.splitting import Splitter, Splitting
from m3_integrations.store import Record

_FORMAT: Final = 1
"""Version of the records that a file becomes. A new version makes the next run index every file again."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A record to be written.

    Attributes:
        id: The file, the entry's key if the file has several, and the number of the part, joined by "#".
        text: The text to encode.
        metadata: The entry's metadata; `source`, by default the file; `headings`, if the text has any; and the index's
            own keys.
        digest: A digest of id, text and metadata; for the first part, of all the file's parts and its content.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    digest: str


@dataclass(slots=True)
class StoredFile:
    """The records of a file in a store.

    Attributes:
        parts: The digest of every record by its id.
        content: `m3_content` of the first record; None if the store lacks the first record.
        parts_digest: `m3_parts` of the first record.
    """

    parts: dict[str, str] = field(default_factory=dict)
    content: str | None = None
    parts_digest: str | None = None

    @property
    def done_content(self) -> str | None:
        """The content digest, if the store has exactly the file's parts; otherwise None."""
        return self.content if self.parts_digest == _digest(sorted(self.parts.values())) else None


def content_digest(path: Path, sha256: str, splitting: Splitting) -> str:
    """Return a digest of a file's content, its ending and its splitting."""
    return _digest([_FORMAT, asdict(splitting), path.suffix.lower(), sha256])


def make_parts(path: Path, content: bytes, digest: str, splitter: Splitter) -> list[FilePart]:
    """Return the records of a file in their order; none if it has no text.

    Args:
        path: The file's absolute path.
        content: The file's bytes.
        digest: The result of `content_digest`.
        splitter: Splits every entry.

    Raises:
        ValueError: If the content cannot be read or split; the message names the file, and the line if there is one.
    """
    pieces: list[tuple[str, str, dict[str, Any]]] = []
    for entry in read_entries(path, content):
        prefix = f"{path}#{entry.key}#" if entry.key else f"{path}#"
        try:
            split = splitter.split(entry.text, markup=markup_of(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        for i, piece in enumerate(split):
            metadata = {"source": str(path), **entry.metadata}
            if piece.headings:
                metadata["headings"] = list(piece.headings)
            pieces.append((f"{prefix}{i}", piece.text, metadata))
    if not pieces:
        return []
    digests = [_digest(piece) for piece in pieces]
    # The first part's digest changes whenever the file changes, so that it is written again with the new m3_content.
    digests[0] = _digest([digests, digest])
    own: list[dict[str, str]] = [{"m3_file": str(path), "m3_part": part} for part in digests]
    own[0] |= {"m3_content": digest, "m3_parts": _digest(sorted(digests))}
    return [
        FilePart(id_, text, metadata | kept, part)
        for (id_, text, metadata), kept, part in zip(pieces, own, digests, strict=True)
    ]


def read_stored(records: Iterable[Record]) -> dict[Path, StoredFile]:
    """Return a store's records by file; records that were not made by this module are skipped."""
    files: dict[Path, StoredFile] = {}
    for record in records:
        file, part = record.metadata.get("m3_file"), record.metadata.get("m3_part")
        # A user's copy of one of our records has our metadata, but another id.
        if not isinstance(file, str) or not isinstance(part, str) or not record.id.startswith(f"{file}#"):
            continue
        stored = files.setdefault(Path(file), StoredFile())
        stored.parts[record.id] = part
        if "m3_content" in record.metadata:
            stored.content, stored.parts_digest = record.metadata["m3_content"], record.metadata.get("m3_parts")
    return files


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
