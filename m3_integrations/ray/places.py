"""The targets of `encode_corpus`: a store on a server, or a folder of Parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from m3_integrations.parquet import Done, EncodedBy, ParquetFolder, Rows, as_table, check_same, missing_rows, record_key
from m3_integrations.store import open_store
from m3_integrations.store.values import check_metadata, read_exact
from m3_integrations.vectors import M3Vectors, Mode, check_modes

if TYPE_CHECKING:
    from m3_integrations.encoder import M3Encoder


class StorePlace:
    """A server's store as the target.

    Attributes:
        modes: The modes to encode for it.
    """

    def __init__(self, url: str, settings: Mapping[str, Any], encoder: M3Encoder, modes: Sequence[Mode] | None) -> None:
        self._store = open_store(url, **settings)
        self._store.bind(encoder.fingerprint)
        kept = [mode for mode in encoder.modes if mode in self._store.kept_modes]
        self.modes = tuple(kept) if modes is None else check_modes(modes)

    def missing(self, rows: Rows) -> list[int]:
        """Return the positions of the records that the store lacks, or has with another text or other metadata."""
        return missing_rows(rows, self._store)

    def write(self, rows: Rows, vectors: M3Vectors) -> None:
        """Write records; they are durable when this returns."""
        self._store.upsert(rows.ids, rows.texts, rows.metadatas, vectors)


class FolderPlace:
    """A folder of Parquet files as the target: one file for each batch.

    A file is named after the batch's records. A batch that is done again after its worker died has the same name, so
    its file is found.

    Attributes:
        modes: The modes to encode for it.
    """

    def __init__(
        self,
        folder: ParquetFolder,
        done: ray.ObjectRef[Done],
        encoder: M3Encoder,
        modes: Sequence[Mode] | None,
    ) -> None:
        self.modes = encoder.modes if modes is None else check_modes(modes)
        self._encoded_by = EncodedBy(
            encoder.fingerprint, self.modes, encoder.pooling, encoder.max_length, model=encoder.model
        )
        found = ray.get(done)
        if found.encoded_by is not None:
            check_same(folder.path, found.encoded_by, self._encoded_by)
        self._folder, self._run, self._done = folder, found.run + 1, found.keys

    def missing(self, rows: Rows) -> list[int]:
        """Return the positions of the records that no file has with this text and metadata."""
        keys = _keys(rows)
        places = np.searchsorted(self._done, keys)
        is_done = np.zeros(len(rows), bool)
        within = places < len(self._done)
        is_done[within] = self._done[places[within]] == keys[within]
        missing = np.flatnonzero(~is_done)
        return [] if self._folder.has(self._name(keys[missing])) else missing.tolist()

    def write(self, rows: Rows, vectors: M3Vectors) -> None:
        """Write records; they are durable when this returns."""
        self._folder.write(self._name(_keys(rows)), as_table(rows, vectors, self._encoded_by))

    def _name(self, keys: NDArray[np.bytes_]) -> str:
        return f"{self._run:06d}-{hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()}.parquet"


OpenPlace = Callable[["M3Encoder", Sequence[Mode] | None], StorePlace | FolderPlace]
"""Opens the target in a worker, for the worker's encoder and the requested modes."""


def _keys(rows: Rows) -> NDArray[np.bytes_]:
    return np.array([record_key(*row) for row in zip(rows.ids, rows.texts, rows.metadatas, strict=True)], "S16")


def check_columns(schema: pa.Schema) -> None:
    """Raise ValueError if a corpus lacks the column `id` or `text`, or one does not hold strings."""
    for name in ("id", "text"):
        if name not in schema.names:
            raise ValueError(
                f"a corpus needs the columns id and text, got {', '.join(schema.names)}: rename its columns"
            )
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise ValueError(f"the column {name} must hold strings, got {kind}: convert it to strings")


def rows_of(batch: pa.Table) -> Rows:
    """Return the records of a corpus's batch, with metadata checked by `check_metadata`.

    Raises:
        TypeError: If metadata are not an object.
        ValueError: If `id` or `text` is missing or null, or metadata are not valid JSON or hold values that cannot be
            kept.
    """
    check_columns(batch.schema)
    columns = {name: batch.column(name).to_pylist() for name in batch.column_names}
    ids, texts = columns["id"], columns["text"]
    for id_, text in zip(ids, texts, strict=True):
        if id_ is None or text is None:
            raise ValueError(f"every record needs an id and a text, got {id_!r} and {text!r:.60}")
    given = columns.get("metadata", [None] * len(ids))
    exact = columns.get("exact", [None] * len(ids))  # a corpus may be made of our own Parquet files
    rows = zip(ids, given, exact, strict=True)
    return Rows(ids, texts, [check_metadata(_metadata(*row), f"record {row[0]!r}") for row in rows])


def _metadata(id_: str, given: Any, exact: str | None) -> Any:
    if exact is not None:
        return read_exact(exact)
    if not isinstance(given, str):
        return {} if given is None else given
    try:
        return json.loads(given)
    except ValueError as error:
        raise ValueError(f"the metadata of record {id_!r} must be JSON, got {given!r:.80}: {error}") from error
