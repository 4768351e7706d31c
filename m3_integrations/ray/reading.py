"""JSONL files as a dataset of Ray."""

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
"""Lines."""


def read_jsonl(paths: Iterable[str | os.PathLike[str]]) -> Dataset:
    """Return the dataset of JSONL files: columns id, text and metadata, the last as JSON.

    A line is what `m3 index` takes: an object with a string `text`, `_id` or `id`, and if you like `title` and an
    object `metadata`; all further keys count as metadata. Here an id is needed. A machine reads a file at a time, line
    by line, so that many files are read faster than one.

    Args:
        paths: Files, and folders of `.jsonl` files (also `.jsonl.gz` and the like), that every machine can read: paths,
            or URIs such as `s3://bucket/folder`.

    Raises:
        TypeError: If paths is one string.
        FileNotFoundError: If a path is not there.
        ValueError: If there is no file. Once the dataset is read, if a line is not as it must be.
    """
    if isinstance(paths, str | os.PathLike):
        raise TypeError(f"paths must be several, got {paths!r}: pass [{paths!r}]")
    found = [file for path in paths for file in find_files(path, ".jsonl")]
    if not found:
        raise ValueError("there is no JSONL file to read")
    numbers = ray.data.range(len(found), override_num_blocks=len(found))
    return numbers.map_batches(parsed, fn_args=(found,), batch_size=1, batch_format="pyarrow")


def parsed(numbers: pa.Table, found: list[tuple[fs.FileSystem, str]]) -> Iterator[pa.Table]:
    """Yield the records of files by columns, some at a time.

    Args:
        numbers: Which of the files, in the column `id`.
        found: All of them.

    Raises:
        ValueError: If a line is not as it must be.
    """
    schema = pa.schema([(name, pa.string()) for name in ("id", "text", "metadata")])
    for number in numbers.column("id").to_pylist():
        rows = _rows(*found[number])
        while some := list(islice(rows, _READ_AT_ONCE)):
            yield pa.Table.from_pylist(some, schema=schema)


def _rows(files: fs.FileSystem, path: str) -> Iterator[dict[str, str]]:
    with files.open_input_stream(path) as stream:
        # Lines end with a line feed alone: JSON's strings may hold other line separators as they are.
        lines = io.TextIOWrapper(stream, "utf-8-sig", newline="\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            entry = read_line(f"{path}:{number}", line, number)
            if not entry.metadata.keys() & {"_id", "id"}:
                raise ValueError(f"{path}:{number}: has no 'id', by which a run that goes on knows what is done")
            yield {
                "id": entry.key,
                "text": entry.text,
                "metadata": json.dumps(entry.metadata, ensure_ascii=False),
            }
