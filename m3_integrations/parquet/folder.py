"""A folder of Parquet files of encoded records, here or in an object store."""

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
from m3_integrations.store.folder import sync

_PACKED: Final = ("", ".gz", ".bz2", ".zst")
"""What pyarrow unpacks by itself."""

_WRITTEN_AT_ONCE: Final = 64
"""Records of a row group, which a reader may have to hold as a whole."""


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A file that is there.

    What cannot be read in it is a ValueError, by any of these methods; FileNotFoundError and PermissionError stay.
    """

    files: fs.FileSystem
    path: str

    def said(self) -> tuple[EncodedBy, int]:
        """Return what the file says of its vectors, and how many records it has."""
        with self._opened() as file:
            return EncodedBy.of(file.schema_arrow, self.path), file.metadata.num_rows

    def keys(self) -> NDArray[np.bytes_]:
        """Return the keys of its records, (n,) S16."""
        with self._opened() as file:
            return np.frombuffer(b"".join(file.read(["key"]).column("key").to_pylist()), "S16")

    def batches(self, n: int) -> Iterator[pa.RecordBatch]:
        """Yield its records, at most n at a time."""
        with self._opened() as file:  # an error of whoever takes the batches does not come in here
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
                f"{self.path} is damaged, or no Parquet file ({error}): delete it and run the encoding again, which "
                "makes what is missing"
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """What was encoded into a folder.

    Attributes:
        run: The number of the last run; 0 if there was none.
        encoded_by: What the vectors are of; None without files.
        keys: (n,) S16, the keys of all records, sorted.
    """

    run: int
    encoded_by: EncodedBy | None
    keys: NDArray[np.bytes_]


class ParquetFolder:
    """A folder of Parquet files of encoded records, here or in an object store.

    A file is whole or not there. Files are named after the run that wrote them and what is in them, so that of a record
    that was encoded again, as its text is another now, the later is read last.

    Args:
        where: A path, or a URI such as `s3://bucket/folder`. It need not be there.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self._files, self.path = _place(where)

    def prepare(self) -> None:
        """Make the folder if it is not there."""
        self._files.create_dir(self.path, recursive=True)

    def files(self) -> list[ParquetFile]:
        """Return its Parquet files in the order of their names; none if the folder is not there."""
        return [ParquetFile(self._files, path) for path in _listed(self._files, self.path, ".parquet")]

    def read_done(self) -> Done:
        """Return what is in the folder.

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
        """Write a file; when this returns it is whole and, in a folder of this machine, durable."""
        path = f"{self.path}/{name}"
        if not isinstance(self._files, fs.LocalFileSystem):  # an object appears when it is whole
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
    """Return the file at a place, or those of a folder whose names have this ending, sorted.

    Raises:
        FileNotFoundError: If there is neither.
    """
    files, path = _place(where)
    found = files.get_file_info(path)
    if found.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"no file or folder {where}")
    return [(files, each) for each in ([path] if found.is_file else _listed(files, path, ending))]


def _listed(files: fs.FileSystem, folder: str, ending: str) -> list[str]:
    """Return the files of a folder with this ending, also where that of a compression follows; not hidden ones."""
    found = files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    names = {info.path: info.path.rpartition("/")[2] for info in found if info.is_file}
    endings = tuple(ending + packed for packed in _PACKED)
    return sorted(path for path, name in names.items() if name.endswith(endings) and not name.startswith("."))
