"""`ParquetFolder`: a folder of Parquet files with encoded records, on this machine or in an object store."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from m3_integrations.parquet.tables import EncodedBy, check_same
from m3_integrations.store.syncing import sync

_PACKED: Final = ("", ".gz", ".bz2", ".zst")
"""Endings of compressions that pyarrow unpacks by itself; "" is no compression."""

_WRITTEN_AT_ONCE: Final = 64
"""Records of a row group. A reader may have to hold a whole row group in memory."""


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A Parquet file of encoded records.

    Each method raises ValueError if the file is damaged or not a Parquet file, and FileNotFoundError or PermissionError
    if it cannot be opened.
    """

    files: fs.FileSystem
    path: str

    def said(self) -> tuple[EncodedBy, int]:
        """Return the model and settings of the file's vectors, and its number of records."""
        with self._opened() as file:
            return EncodedBy.of(file.schema_arrow, self.path), file.metadata.num_rows

    def keys(self) -> NDArray[np.bytes_]:
        """Return the keys of the n records, (n,) S16."""
        with self._opened() as file:
            return np.frombuffer(b"".join(file.read(["key"]).column("key").to_pylist()), "S16")

    def batches(self, n: int) -> Iterator[pa.RecordBatch]:
        """Yield the records, at most n at a time."""
        with self._opened() as file:  # an error in the caller's loop is not raised in here
            yield from file.iter_batches(n)

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(
                self.path, filesystem=self.files, pre_buffer=False, page_checksum_verification=True
            ) as file:
                yield file
        except (FileNotFoundError, PermissionError):
            raise
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{self.path} is damaged, or not a Parquet file ({error}): delete it and run the encoding again, "
                "which encodes only its records"
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """The records that a folder already has.

    Attributes:
        run: The number of the last run; 0 without files.
        encoded_by: The model and settings of the vectors; None without files.
        keys: (n,) S16, the keys of all n records, sorted.
    """

    run: int
    encoded_by: EncodedBy | None
    keys: NDArray[np.bytes_]


class ParquetFolder:
    """A folder of Parquet files with encoded records, on this machine or in an object store.

    A file is either complete or does not exist. Its name starts with the number of the run that wrote it. So if a
    record was encoded again because its text changed, the newer version is read last.

    Args:
        where: A path, or a URI such as `s3://bucket/folder`. It need not exist.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self._files, self.path = _place(where)

    def prepare(self) -> None:
        """Make the folder if it does not exist."""
        self._files.create_dir(self.path, recursive=True)

    def files(self) -> list[ParquetFile]:
        """Return the Parquet files sorted by name; none if the folder does not exist."""
        return [ParquetFile(self._files, path) for path in _listed(self._files, self.path, ".parquet")]

    def read_done(self) -> Done:
        """Return the keys of the records that the folder has, and their model and settings.

        Raises:
            ValueError: If a file is damaged, or the files are of several models or settings.
        """
        run, encoded_by, keys = 0, None, [np.empty(0, "S16")]
        for file in self.files():
            said, _ = file.said()
            check_same(file.path, said, encoded_by)
            encoded_by = said
            keys.append(file.keys())
            number = file.path.rpartition("/")[2].partition("-")[0]
            run = max(run, int(number) if number.isdecimal() else 0)
        return Done(run, encoded_by, np.sort(np.concatenate(keys)))

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return bool(self._files.get_file_info(f"{self.path}/{name}").is_file)

    def write(self, name: str, table: pa.Table) -> None:
        """Write a file; on return it is complete and, if it is on this machine, durable."""
        path = f"{self.path}/{name}"
        if not isinstance(self._files, fs.LocalFileSystem):  # an object store shows only complete objects
            with self._files.open_output_stream(path) as stream:
                _write(table, stream)
            return
        unfinished = Path(self.path, f".{name}.{uuid.uuid4().hex}")
        try:
            with unfinished.open("wb") as file:
                _write(table, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        sync(Path(self.path))


def _place(where: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or a URI, and the path in it."""
    if isinstance(where, str) and "://" in where:
        files, path = fs.FileSystem.from_uri(where)
        return files, path
    return fs.LocalFileSystem(), str(Path(where).expanduser().absolute())


def _write(table: pa.Table, file: Any) -> None:
    pq.write_table(
        table, file, row_group_size=_WRITTEN_AT_ONCE, compression="zstd", use_dictionary=False, write_page_checksum=True
    )


def find_files(where: str | os.PathLike[str], ending: str) -> list[tuple[fs.FileSystem, str]]:
    """Return the file at this path or URI, or the files with this ending in the folder there, sorted by name.

    Raises:
        FileNotFoundError: If there is no file or folder.
    """
    files, path = _place(where)
    found = files.get_file_info(path)
    if found.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"no file or folder {where}")
    return [(files, each) for each in ([path] if found.is_file else _listed(files, path, ending))]


def _listed(files: fs.FileSystem, folder: str, ending: str) -> list[str]:
    """Return a folder's files with this ending, sorted; the ending of a compression may follow. Skip hidden files."""
    found = files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    names = {info.path: info.path.rpartition("/")[2] for info in found if info.is_file}
    endings = tuple(ending + packed for packed in _PACKED)
    return sorted(path for path, name in names.items() if name.endswith(endings) and not name.startswith("."))
