"""The records of a file, and how they tell what the file was.

The store is the only memory of what was indexed. Every record says in its metadata which file it is from (`m3_file`)
and what it was made of (`m3_part`, a digest of its text and metadata). The first one of a file says two things more:
what the file's content was and how it was cut (`m3_content`), and a digest of all its parts (`m3_parts`). A file is
done when the store has just those parts: a run that was killed, wherever it was, leaves one that is not.
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
"""Counts changes of what is made of a file; with a new one every file is indexed again."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A record to be.

    Attributes:
        id: The file, the entry's key if the file has several, and the number of the part, with "#" between them.
        text: What is encoded.
        metadata: What the file says of it; `source`, the file, unless the file names another; `headings` of Markdown;
            and what the index keeps for itself.
        digest: Of everything that is stored of it.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    digest: str


@dataclass(slots=True)
class StoredFile:
    """What a store has of a file.

    Attributes:
        parts: The digest of every record by its id.
        content: What the first part says that the file was; None without a first part.
        parts_digest: What the first part says that all parts are.
    """

    parts: dict[str, str] = field(default_factory=dict)
    content: str | None = None
    parts_digest: str | None = None

    @property
    def done_content(self) -> str | None:
        """What the file was when all of it was stored; None if some of it is not, or is another's."""
        return self.content if self.parts_digest == _digest(sorted(self.parts.values())) else None


def content_digest(path: Path, sha256: str, splitting: Splitting) -> str:
    """Return a digest of a file's content and of how it is cut."""
    return _digest([_FORMAT, asdict(splitting), path.suffix.lower(), sha256])


def make_parts(path: Path, content: bytes, digest: str, splitter: Splitter) -> list[FilePart]:
    """Return the records of a file in their order; none for one without text.

    Args:
        path: Absolute.
        content: Its bytes.
        digest: What `content_digest` gives for it.
        splitter: Cuts every entry.

    Raises:
        ValueError: Naming file and line, if the content cannot be read.
    """
    pieces: list[tuple[str, str, dict[str, Any]]] = []
    for entry in read_entries(path, content):
        prefix = f"{path}#{entry.key}#" if entry.key else f"{path}#"
        for i, piece in enumerate(splitter.split(entry.text, markup=markup_of(path))):
            metadata = {"source": str(path), **entry.metadata}
            if piece.headings:
                metadata["headings"] = list(piece.headings)
            pieces.append((f"{prefix}{i}", piece.text, metadata))
    if not pieces:
        return []
    digests = [_digest(piece) for piece in pieces]
    # The first part is another one whenever the file is: so it is written again, and says what the file is now.
    digests[0] = _digest([digests, digest])
    own: list[dict[str, str]] = [{"m3_file": str(path), "m3_part": part} for part in digests]
    own[0] |= {"m3_content": digest, "m3_parts": _digest(sorted(digests))}
    return [
        FilePart(id_, text, metadata | kept, part)
        for (id_, text, metadata), kept, part in zip(pieces, own, digests, strict=True)
    ]


def read_stored(records: Iterable[Record]) -> dict[Path, StoredFile]:
    """Return what a store has of every file; records that were not made here are passed over."""
    files: dict[Path, StoredFile] = {}
    for record in records:
        file, part = record.metadata.get("m3_file"), record.metadata.get("m3_part")
        # A record that somebody made from ours has our metadata, but not our id.
        if not isinstance(file, str) or not isinstance(part, str) or not record.id.startswith(f"{file}#"):
            continue
        stored = files.setdefault(Path(file), StoredFile())
        stored.parts[record.id] = part
        if "m3_content" in record.metadata:
            stored.content, stored.parts_digest = record.metadata["m3_content"], record.metadata.get("m3_parts")
    return files


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
