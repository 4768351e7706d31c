"""`index_files`: encodes new and changed files into a store, and deletes the records of removed files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from tqdm.auto import tqdm

from m3_integrations.indexing.files import FoundFiles, find_files
from m3_integrations.indexing.parts import FilePart, StoredFile, content_digest, make_parts, read_stored
from m3_integrations.indexing.splitting import Splitter, Splitting
from m3_integrations.store import Store
from m3_integrations.vectors import Encoder

_BATCH_SIZE: Final = 128
"""Parts that are encoded and stored at a time. A killed run loses the work on at most so many parts."""


@dataclass(slots=True, repr=False)
class IndexReport:
    """The files and counts of a run.

    Attributes:
        added: Files that were not in the store.
        changed: Files whose content or splitting has changed, or that a killed run left unfinished.
        unchanged: Files whose records are up to date; nothing was encoded.
        deleted: Files that are no longer under the paths; their records were deleted.
        empty: Files without text; they have no records.
        skipped: Skipped paths by the reason.
        failures: Files and folders that could not be read, each with the place and the reason. Their records stay.
        parts_encoded: Number of records written.
        parts_kept: Number of records of changed or unfinished files that were already up to date.
        parts_deleted: Number of records deleted.
    """

    added: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    deleted: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)
    parts_encoded: int = 0
    parts_kept: int = 0
    parts_deleted: int = 0

    def __repr__(self) -> str:
        files = ("added", "changed", "unchanged", "deleted", "empty", "failures")
        shown = [f"{len(getattr(self, name))} {name}" for name in files if getattr(self, name)]
        return f"IndexReport({', '.join([*shown, f'{self.parts_encoded} parts encoded'])})"


def index_files(
    paths: Iterable[str | os.PathLike[str]],
    encoder: Encoder,
    store: Store,
    *,
    splitting: Splitting | None = None,
    exclude: Iterable[Path] = (),
    show_progress: bool = False,
) -> IndexReport:
    """Bring a store up to date with files: encode new and changed parts, and delete the records of removed files.

    After a killed run, the next run continues its work. The function replaces and deletes only records that it made
    itself, of files under these paths. If a file cannot be read, its records stay and the other files are indexed.

    Args:
        paths: Files and folders; see `find_files`.
        encoder: Encodes the parts and counts their tokens.
        store: The store; this call binds it to the encoder's model.
        splitting: Size and overlap of parts; `Splitting()` if None.
        exclude: Folders that are never entered.
        show_progress: Whether to draw a progress bar, over the bytes of new and changed files.

    Raises:
        FileNotFoundError: If a path does not exist. A removed file that the store has raises no error: its records are
            deleted.
        ValueError: If no path is given, a given file is of an unknown kind, the store holds another model's vectors, or
            the encoder cuts texts before `splitting.size` tokens.
    """
    splitting = splitting or Splitting()
    splitter = Splitter(encoder, splitting)
    found = find_files(paths, exclude=exclude)
    stored = read_stored(store.records())
    _check_roots(found.roots, stored)
    store.bind(encoder.fingerprint)
    report = IndexReport(skipped=found.skipped, failures=found.failures)
    sizes = {path: _changed_size(path, stored.get(path), splitting, report) for path in found.files}
    changed = {path: size for path, size in sizes.items() if size is not None}
    is_shown = show_progress and bool(changed)
    with tqdm(total=sum(changed.values()), unit="B", unit_scale=True, desc="indexing", disable=not is_shown) as bar:
        writer = _Writer(encoder, store, report, bar)
        for path, size in changed.items():
            _index_file(path, size, stored.get(path), splitter, writer)
        writer.flush()
    for path in _gone(found, stored):
        report.deleted.append(path)
        writer.delete(stored[path].parts)
    return report


class _Writer:
    """Encodes and stores parts in batches, and counts them in the report."""

    def __init__(self, encoder: Encoder, store: Store, report: IndexReport, bar: tqdm[NoReturn]) -> None:
        self.report = report
        self._encoder, self._store, self._bar = encoder, store, bar
        self._modes = [mode for mode in encoder.modes if mode in store.kept_modes]
        self._batch: list[tuple[FilePart, int]] = []

    def write(self, parts: Sequence[FilePart], size_bytes: int) -> None:
        """Add a file's parts to the batch; the progress bar moves by the file's size as they are written."""
        for i, part in enumerate(parts):
            # Integer shares that add up to the file's size: tqdm warns if a bar goes past its end.
            share = size_bytes * (i + 1) // len(parts) - size_bytes * i // len(parts)
            self._batch.append((part, share))
            if len(self._batch) == _BATCH_SIZE:
                self.flush()
        if not parts:
            self._bar.update(size_bytes)

    def flush(self) -> None:
        """Encode and store the batch."""
        if not self._batch:
            return
        parts = [part for part, _ in self._batch]
        texts = [part.text for part in parts]
        vectors = self._encoder.encode(texts, modes=self._modes)
        self._store.upsert([part.id for part in parts], texts, [part.metadata for part in parts], vectors)
        self.report.parts_encoded += len(parts)
        self._bar.update(sum(size for _, size in self._batch))
        self._batch = []

    def delete(self, ids: Iterable[str]) -> None:
        """Delete records by their ids."""
        self.report.parts_deleted += self._store.delete(list(ids))


def _check_roots(roots: Iterable[Path], stored: Mapping[Path, StoredFile]) -> None:
    for root in roots:
        if root.exists() or root in stored:
            continue
        if n := sum(path.is_relative_to(root) for path in stored):
            raise FileNotFoundError(
                f"the folder {root} does not exist, and the store has {n} of its files: is its disk mounted? If it was "
                f"removed, index {root.parent} to delete its files from the store"
            )
        raise FileNotFoundError(f"no file or folder {root}, and the store has nothing of it")


def _changed_size(path: Path, stored: StoredFile | None, splitting: Splitting, report: IndexReport) -> int | None:
    """Return the size in bytes of a new or changed file.

    Return None for an unchanged or unreadable file, after noting it in the report.
    """
    try:
        os.fspath(path).encode()
        with path.open("rb") as file:
            digest = content_digest(path, hashlib.file_digest(file, "sha256").hexdigest(), splitting)
            size = file.tell()
    except (OSError, UnicodeEncodeError) as error:
        report.failures[path] = _reason(path, error)
        return None
    if stored is not None and stored.done_content == digest:
        report.unchanged.append(path)
        return None
    return size


def _index_file(path: Path, size: int, stored: StoredFile | None, splitter: Splitter, writer: _Writer) -> None:
    """Write a file's new and changed parts, and delete the records of parts that it no longer has."""
    report = writer.report
    try:
        content = path.read_bytes()
        digest = content_digest(path, hashlib.sha256(content).hexdigest(), splitter.splitting)
        parts = make_parts(path, content, digest, splitter)
    except (OSError, ValueError) as error:
        report.failures[path] = _reason(path, error)
        writer.write([], size)
        return
    known = stored or StoredFile()
    if parts:
        (report.added if stored is None else report.changed).append(path)
    else:
        report.empty.append(path)
    fresh = [part for part in parts if known.parts.get(part.id) != part.digest]
    report.parts_kept += len(parts) - len(fresh)
    writer.delete(known.parts.keys() - {part.id for part in parts})
    writer.write(fresh, size)


def _gone(found: FoundFiles, stored: Mapping[Path, StoredFile]) -> list[Path]:
    """Return the store's files under the roots that no longer exist; an unreadable folder's files count as existing."""
    present = set(found.files)
    return [
        path
        for path in stored
        if path not in present
        and any(path.is_relative_to(root) for root in found.roots)
        and not any(path.is_relative_to(failed) for failed in found.failures)
    ]


def _reason(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"{str(path)!a}: the name is not valid Unicode: rename the file"
    return f"{path}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
