"""`load_parquet`: Parquet files of encoded records into a store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from tqdm.auto import tqdm

from m3_integrations.parquet.folder import ParquetFile, find_files
from m3_integrations.parquet.tables import EncodedBy, Rows, check_same, read_rows, read_vectors
from m3_integrations.store import Store
from m3_integrations.store.values import is_same

_READ_AT_ONCE: Final = 50
"""Records that are read with their vectors at a time, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Counts of a load.

    Attributes:
        n_loaded: Records that were written into the store.
        n_there: Records that the store already had with the same text and metadata.
    """

    n_loaded: int
    n_there: int


def load_parquet(paths: Iterable[str | os.PathLike[str]], store: Store, *, show_progress: bool = False) -> LoadReport:
    """Put the records of Parquet files and their vectors into a store, without encoding anything.

    After an interruption call it again: a record that the store already has with the same text and metadata is skipped.
    Of two records with the same id the one in the later file stays.

    Args:
        paths: Files that `encode_corpus` has written, and folders of them: paths, or URIs such as
            `s3://bucket/folder`.
        store: The store; this call binds it to the model of the files. Only its `kept_modes` are loaded: no token
            vectors if it was opened with `multi_vector="none"`.
        show_progress: Whether to draw a progress bar, over records.

    Raises:
        TypeError: If paths is one string.
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no file, or a file is damaged, was not written by this package, or is of another model
            or other settings than the first file or the store. All files are opened before the first record is written.
            Damage inside a file is found only when that part is read; records loaded before stay in the store.
    """
    files, encoded_by, total = open_files(paths)
    if store.modes and store.fingerprint is None:
        raise ValueError(
            f"the store holds vectors of an unknown model, and the files are of {encoded_by.fingerprint}: if that is "
            "the store's model too, bind the store to it first"
        )
    store.bind(encoded_by.fingerprint)
    n_loaded = 0
    with tqdm(total=total, unit="record", desc="loading", disable=not show_progress) as bar:
        for file in files:
            for batch in file.batches(_READ_AT_ONCE):
                n_loaded += _load(batch, file.path, encoded_by, store)
                bar.update(batch.num_rows)
    store.flush()
    return LoadReport(n_loaded, total - n_loaded)


def open_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[ParquetFile], EncodedBy, int]:
    """Return the files under these paths, the model and settings of their vectors, and their number of records.

    Raises:
        TypeError, FileNotFoundError, ValueError: For the reasons of `load_parquet`.
    """
    if isinstance(paths, str | os.PathLike):
        raise TypeError(f"paths must be a list of paths, got {paths!r}: pass [{paths!r}]")
    files = [ParquetFile(*found) for path in paths for found in find_files(path, ".parquet")]
    if not files:
        raise ValueError("there is no Parquet file to load: name files that an encoding has written, or their folder")
    encoded_by, total = files[0].said()[0], 0
    for file in files:
        said, n_records = file.said()
        check_same(file.path, said, encoded_by)
        total += n_records
    return files, encoded_by, total


def _load(batch: pa.RecordBatch, where: str, encoded_by: EncodedBy, store: Store) -> int:
    """Write the records that the store lacks or has with other text or metadata; return how many were written."""
    rows = read_rows(batch, where)
    if missing := missing_rows(rows, store):
        kept = [mode for mode in encoded_by.modes if mode in store.kept_modes]
        vectors = read_vectors(batch.take(pa.array(missing)), where, kept)
        chosen = rows.take(missing)
        store.upsert(chosen.ids, chosen.texts, chosen.metadatas, vectors)
    return len(missing)


def missing_rows(rows: Rows, store: Store) -> list[int]:
    """Return the positions of the records that a store lacks, or has with another text or other metadata."""
    there = {record.id: record for record in store.get(rows.ids)}
    return [
        row
        for row, id_ in enumerate(rows.ids)
        if (known := there.get(id_)) is None
        or known.text != rows.texts[row]
        or not is_same(known.metadata, rows.metadatas[row])
    ]
