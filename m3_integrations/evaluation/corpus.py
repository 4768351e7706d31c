"""The documents of a collection, and the lines of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3_integrations.vectors import IntArray
from m3_integrations.vectors.texts import titled_text


class Corpus:
    """The documents of a corpus.jsonl: the ids are in memory, the texts are read from the file at every use.

    Args:
        path: A file with a JSON object in each line, with "_id", "text" and optionally "title".
        titles: Whether a document's text is its title, a space and its text, as BEIR joins them; if not, its text
            alone.

    Attributes:
        ids: The id of every document, in the order of the file. Documents with equal scores keep this order.
        digest: A hash of all ids and texts, 32 hexadecimal digits.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a line is not such an object, for the reasons of `parse_row`, or if there is no document.
    """

    def __init__(self, path: Path, *, titles: bool = True) -> None:
        self.path, self._titles = path, titles
        self.ids: list[str] = []
        digest, offsets, known = hashlib.blake2b(digest_size=16), [], set[str]()
        for number, (offset, line) in enumerate(read_lines(path), start=1):
            row = parse_row(line, path, number, known=known)
            self.ids.append(row["_id"])
            offsets.append(offset)
            try:
                text = self._text(row)
            except ValueError as error:
                raise ValueError(f"{path}, entry {number}: {error}") from error
            digest.update(f"{row['_id']}\0{text}\0".encode())
        if not self.ids:
            raise ValueError(f"{path} has no documents")
        self._offsets = np.array(offsets, dtype=np.int64)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {len(self)} documents)"

    def _text(self, row: Mapping[str, Any]) -> str:
        return titled_text(row, titles=self._titles)

    def texts(self, rows: IntArray | None = None) -> Texts:
        """Return the texts of these rows, or of all. A text is read when the iteration reaches it."""
        return Texts(self, np.arange(len(self)) if rows is None else rows)

    def read(self, rows: IntArray) -> Iterator[str]:
        """Read the texts of these rows from the file, in the order given."""
        with self.path.open("rb") as file:
            for row in rows.tolist():
                file.seek(self._offsets[row])
                yield self._text(parse_row(file.readline(), self.path, row + 1))


@dataclass(frozen=True, eq=False)
class Texts:
    """Chosen texts of a corpus. Their number is known before they are read: a progress bar needs it."""

    corpus: Corpus
    rows: IntArray

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return self.corpus.read(self.rows)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the offset in bytes and the text of every line that is not blank."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield offset, line
            offset += len(line)


def parse_row(
    line: bytes, path: Path, number: int, keys: tuple[str, str] = ("_id", "text"), *, known: set[str] | None = None
) -> dict[str, Any]:
    """Return the object of a line of JSON. An id that is a number becomes a string.

    Args:
        line: The line.
        path: The file of the line, for messages.
        number: The number of the line, counted from 1, for messages.
        keys: The key of the id, and another key whose value must be a string.
        known: The ids of the lines before; this line's id is added. None if the ids were compared already.

    Raises:
        ValueError: If the line is not such an object, if its id is known, or if it contains half a surrogate pair,
            which no tokenizer and no file of results accepts.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, entry {number} is not JSON: {error}") from error
    if isinstance(row, dict) and isinstance(row.get(keys[0]), int):
        row[keys[0]] = str(row[keys[0]])
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise ValueError(f"{path}, entry {number} must be an object with the strings {' and '.join(keys)}")
    try:
        "".join((row[keys[0]], row[keys[1]], str(row.get("title")))).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}, entry {number} holds half a surrogate pair: {error}") from error
    if known is not None:
        if row[keys[0]] in known:
            raise ValueError(
                f"{path} has more than one entry with the {keys[0]} {row[keys[0]]!r}; the second is {number}"
            )
        known.add(row[keys[0]])
    return row
