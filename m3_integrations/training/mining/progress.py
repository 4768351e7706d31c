"""A file of finished lines: after a run was killed, the same run continues from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from filelock import FileLock, Timeout

_HEAD: Final = "begun_with"


class ProgressFile:
    """A file with a JSON object in each line; the first line has the settings that the run was begun with.

    The lines of a call of `append` are durable when it returns. An incomplete last line, after a kill or on a full
    disk, is dropped.

    Attributes:
        path: The path of the file.
        rows: The objects in the file, in their order, without the first line.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]]) -> None:
        self.path, self.rows = path, rows

    @classmethod
    @contextmanager
    def open(cls, path: Path, begun_with: Mapping[str, Any], *, block: int = 1) -> Iterator[Self]:
        """Open a file, or begin one if it does not exist; only one process at a time can have it open.

        Args:
            path: The file. While it is open, a lock file is beside it.
            begun_with: The settings that the lines depend on, as values for JSON.
            block: The number of lines that are written together; the lines of an incomplete block are dropped.

        Raises:
            BlockingIOError: If another process has it open.
            ValueError: If it was begun with other settings, or is not such a file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock")
        try:
            with FileLock(lock, timeout=0):
                head, rows = _read(path)
                if head is not None:
                    _hold_to(path, head, dict(begun_with))
                kept = rows[: len(rows) // block * block]
                replace_lines(path, [{_HEAD: dict(begun_with)}, *kept])
                yield cls(path, kept)
                lock.unlink()
        except Timeout as error:
            raise BlockingIOError(f"another process writes {path}: wait until it ends") from error

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add objects to the end of the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_line(row) for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows.extend(rows)


def replace_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file with a JSON object in each line under another name, sync it, then rename it: it is never partial."""
    aside = path.with_name(f"{path.name}.unfinished")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(_line(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _read(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the settings that a file was begun with (None if it does not exist) and its complete lines."""
    if not path.exists():
        return None, []
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if not line.endswith(b"\n"):
                break
            raise ValueError(f"{path}, line {len(rows) + 1} is not JSON: {error}") from error
    if not rows or not isinstance(rows[0], dict) or _HEAD not in rows[0]:
        raise ValueError(f"{path} was not written by an earlier run: move it away, or choose another place")
    return rows[0][_HEAD], rows[1:]


def _hold_to(path: Path, head: dict[str, Any], begun_with: dict[str, Any]) -> None:
    now = json.loads(json.dumps(begun_with))
    if other := sorted(name for name in {*head, *now} if head.get(name) != now.get(name)):
        raise ValueError(
            f"{path} was begun with another {', '.join(other)}: use the earlier settings, or delete the file to begin "
            "anew"
        )
