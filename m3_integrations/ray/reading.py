"""`read_jsonl`: JSONL files as a Ray dataset."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import pyarrow as pa
import ray
from pyarrow import fs
from ray.data import Dataset

from m3_integrations.indexing.reading import read_line
from m3_integrations.parquet import find_files

_READ_AT_ONCE: Final = 1024
"""Lines that become one table."""


def read_jsonl(paths: Iterable[str | os.PathLike[str]]) -> Dataset:
    """Return a dataset of the lines of JSONL files: columns `id`, `text` and `metadata`, the last as a JSON string.

    A line has the format of `m3 index`: an object with a string `text`, an `_id` or `id`, and optionally `title` and an
    object `metadata`. All further keys count as metadata. Unlike in `m3 index`, an id is required. Each file is read by
    one machine, line by line, so many files are read faster than one large file.

    Args:
        paths: Files, and folders of `.jsonl` files (also `.jsonl.gz` and the like), that every machine can read: paths,
            or URIs such as `s3://bucket/folder`.

    Raises:
        TypeError: If paths is one string.
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no file. Later, while the dataset is read, if a line does not have this format.
    """
    if isinstance(paths, str | os.PathLike):
        raise TypeError(f"paths must be a list of paths, got {paths!r}: pass [{paths!r}]")
    found = [file for path in paths for file in find_files(path, ".jsonl")]
    if not found:
        raise ValueError("there is no JSONL file to read")
    numbers = ray.data.range(len(found), override_num_blocks=len(found))
    return numbers.map_batches(parsed, fn_args=(found,), batch_size=1, batch_format="pyarrow")


def parsed(numbers: pa.Table, found: list[tuple[fs.FileSystem, str]]) -> Iterator[pa.Table]:
    """Yield the records of files as tables of up to 1,024 rows.

    Args:
        numbers: Positions in `found` of the files to read, in the column `id`.
        found: All files.

    Raises:
        ValueError: If a line does not have the format that `read_jsonl` describes.
    """
    schema = pa.schema([(name, pa.string()) for name in ("id", "text", "metadata")])
    for number in numbers.column("id").to_pylist():
        rows = _rows(*found[number])
        while some := list(islice(rows, _READ_AT_ONCE)):
            yield pa.Table.from_pylist(some, schema=schema)


def _rows(files: fs.FileSystem, path: str) -> Iterator[dict[str, str]]:
    with files.open_input_stream(path) as stream:
        # Only "\n" ends a line: a JSON string may contain other line separators unescaped.
        lines = io.TextIOWrapper(stream, "utf-8-sig", newline="\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            entry = read_line(f"{path}:{number}", line, number)
            if not entry.metadata.keys() & {"_id", "id"}:
                raise ValueError(
                    f"{path}:{number}: has no 'id': a run that continues recognises finished records by it"
                )
            yield {
                "id": entry.key,
                "text": entry.text,
                "metadata": json.dumps(entry.metadata, ensure_ascii=False),
            }
