"""The columns of a Parquet file of encoded records.

| column | content |
|---|---|
| `id`, `text` | strings |
| `metadata` | JSON, with dates as strings of ISO 8601 |
| `exact` | null; or the metadata as a text that keeps dates and numbers which `metadata` would change |
| `key` | 16 bytes: a digest of the four columns above; a resumed encoding skips the keys that it finds |
| `dense` | list of float32, unit length |
| `lexical_indices`, `lexical_values` | lists of int32, rising, and of float32 |
| `multi_vector`, `tokens` | list of float16, one token's vector after another; the number of tokens |

A mode that was not encoded has no columns. The schema's metadata hold, under `m3_integrations` as JSON, the model and
the settings of the vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m3_integrations.store.values import as_json_values, read_exact
from m3_integrations.vectors import IntArray, LexicalRows, M3Vectors, Mode, MultiVectorRows, check_modes, offsets_of

_FORMAT_NAME: Final = "m3_integrations vectors"
_FORMAT_VERSION: Final = 1
_SAID: Final = b"m3_integrations"
"""The key of the schema's metadata."""

_RECORD: Final = {"id": pa.string(), "text": pa.string(), "metadata": pa.string(), "exact": pa.string(),
                  "key": pa.binary(16)}  # fmt: skip
_VECTORS: Final[Mapping[Mode, Mapping[str, Any]]] = {
    "dense": {"dense": pa.list_(pa.float32())},
    "lexical": {"lexical_indices": pa.list_(pa.int32()), "lexical_values": pa.list_(pa.float32())},
    # A large list: 256 texts of 8,192 tokens have more numbers than a 32-bit offset can count.
    "multi_vector": {"multi_vector": pa.large_list(pa.float16()), "tokens": pa.int32()},
}


@dataclass(frozen=True, slots=True)
class EncodedBy:
    """The model and settings that vectors were made with; vectors of two that differ cannot be compared.

    Attributes:
        fingerprint: The model's fingerprint.
        modes: The modes of the vectors.
        pooling: How a text's tokens became its dense vector: "cls", "mcls" or "mean".
        max_length: The most tokens of a text; longer texts were cut.
        model: The model's name, for people; not compared.
    """

    fingerprint: str
    modes: tuple[Mode, ...]
    pooling: str
    max_length: int
    model: str = field(default="", compare=False)

    def schema(self) -> pa.Schema:
        """Return the schema of files with these vectors."""
        columns = {**_RECORD, **{name: kind for mode in self.modes for name, kind in _VECTORS[mode].items()}}
        said = {"format": _FORMAT_NAME, "version": _FORMAT_VERSION, **asdict(self)}
        return pa.schema(list(columns.items()), metadata={_SAID: json.dumps(said)})

    @classmethod
    def of(cls, schema: pa.Schema, where: str) -> Self:
        """Read the model and settings from a file's schema.

        Raises:
            ValueError: If this package did not write the file, a later version wrote it, or it has other columns than
                its modes need.
        """
        written = (schema.metadata or {}).get(_SAID)
        try:
            said = {} if written is None else json.loads(written)
        except ValueError as error:
            raise ValueError(f"{where} is damaged: {error}") from error
        if not isinstance(said, dict) or said.get("format") != _FORMAT_NAME:
            raise ValueError(f"{where} was not written by this package: name the files of an encoding")
        if (version := said.get("version")) != _FORMAT_VERSION:
            raise ValueError(
                f"{where} has format version {version}, and this m3-integrations reads {_FORMAT_VERSION}: "
                "upgrade m3-integrations to load it"
            )
        try:
            found = cls(said["fingerprint"], tuple(said["modes"]), said["pooling"], said["max_length"], said["model"])
            check_modes(found.modes)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{where} is damaged: {error!r}") from error
        if not found.schema().equals(schema.remove_metadata()):
            raise ValueError(f"{where} must have the columns of its modes {', '.join(found.modes)}, got {schema.names}")
        return found


def check_same(where: str, said: EncodedBy, expected: EncodedBy | None) -> None:
    """Raise ValueError if vectors are of another model or other settings than expected; None accepts all."""
    if expected is not None and said != expected:
        raise ValueError(
            f"{where} holds vectors of {_named(said)}, not of {_named(expected)}. They cannot be compared: use a "
            "folder for each"
        )


def _named(encoded_by: EncodedBy) -> str:
    modes = "+".join(encoded_by.modes)
    return (
        f"the model {encoded_by.fingerprint} ({modes}, pooling {encoded_by.pooling}, max_length "
        f"{encoded_by.max_length})"
    )


def _as_texts(metadata: Mapping[str, Any]) -> tuple[str, str | None]:
    native, exact = as_json_values(metadata)
    return json.dumps(native, ensure_ascii=False, sort_keys=True), exact


def record_key(id_: str, text: str, metadata: Mapping[str, Any]) -> bytes:
    """Return a digest of a record's id, text and checked metadata, 16 bytes; the order of the keys does not matter."""
    said = json.dumps([id_, text, *_as_texts(metadata)], ensure_ascii=False)
    return hashlib.blake2b(said.encode(), digest_size=16).digest()


def as_table(rows: Rows, vectors: M3Vectors, encoded_by: EncodedBy) -> pa.Table:
    """Return n records and their vectors as a table.

    Args:
        rows: The n records; their metadata were checked by `values.check_metadata`.
        vectors: The vectors of the n texts, in the modes of encoded_by.
        encoded_by: The model and settings that made the vectors.
    """
    written = [_as_texts(each) for each in rows.metadatas]
    columns: dict[str, Any] = {
        "id": rows.ids,
        "text": rows.texts,
        "metadata": [native for native, _ in written],
        "exact": [exact for _, exact in written],
        "key": [record_key(*row) for row in zip(rows.ids, rows.texts, rows.metadatas, strict=True)],
    }
    if "dense" in encoded_by.modes:
        n, dim = vectors.dense.shape
        columns["dense"] = pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * dim, vectors.dense.ravel())
    if "lexical" in encoded_by.modes:
        offsets = vectors.lexical.offsets.astype(np.int32)
        columns["lexical_indices"] = pa.ListArray.from_arrays(offsets, vectors.lexical.indices)
        columns["lexical_values"] = pa.ListArray.from_arrays(offsets, vectors.lexical.values)
    if "multi_vector" in encoded_by.modes:
        tokens = vectors.multi_vector
        flat = pa.array(tokens.flat.astype(np.float16).ravel())
        columns["multi_vector"] = pa.LargeListArray.from_arrays(tokens.offsets * tokens.flat.shape[1], flat)
        columns["tokens"] = tokens.lengths.astype(np.int32)
    return pa.table(columns, schema=encoded_by.schema())


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """n records without their vectors, by columns.

    Attributes:
        ids: n strings.
        texts: n strings.
        metadatas: n mappings, as a store keeps them.
    """

    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Rows:
        """Return the chosen records, in the order given."""
        return Rows(
            [self.ids[row] for row in rows], [self.texts[row] for row in rows], [self.metadatas[row] for row in rows]
        )


def read_rows(batch: pa.RecordBatch, where: str) -> Rows:
    """Return the records of a batch.

    Raises:
        ValueError: If a record has no id, text or metadata, or its metadata cannot be read.
    """
    columns = {name: batch.column(name).to_pylist() for name in ("id", "text", "metadata", "exact")}
    if any(None in columns[name] for name in ("id", "text", "metadata")):
        raise ValueError(f"{where} has a record without id, text or metadata")
    pairs = zip(columns["metadata"], columns["exact"], strict=True)
    try:
        metadatas = [json.loads(native) if exact is None else read_exact(exact) for native, exact in pairs]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} has metadata that cannot be read: {error}") from error
    return Rows(columns["id"], columns["text"], metadatas)


def read_vectors(batch: pa.RecordBatch, where: str, modes: Sequence[Mode]) -> M3Vectors:
    """Return the vectors of a batch. The store checks that numbers are finite and sizes fit; this function does not.

    Raises:
        ValueError: If the columns do not fit each other.
    """
    dense = lexical = multi_vector = None
    if "dense" in modes:
        offsets, values = _lists(batch, "dense", where)
        lengths = set(np.diff(offsets).tolist())
        if len(lengths) > 1 or not max(lengths):
            raise ValueError(f"{where} has dense vectors of lengths {sorted(lengths)}")
        dense = values.reshape(batch.num_rows, -1)
    if "lexical" in modes:
        offsets, indices = _lists(batch, "lexical_indices", where)
        ends, weights = _lists(batch, "lexical_values", where)
        steps = np.diff(indices.astype(np.int64), prepend=-1)
        steps[offsets[:-1][np.diff(offsets) > 0]] = 1  # a text's first token may have any id
        if not np.array_equal(offsets, ends) or (steps < 1).any() or (indices < 0).any() or not (weights > 0).all():
            raise ValueError(f"{where} must have lexical weights with rising token ids and a weight above 0 for each")
        lexical = LexicalRows(offsets, indices, weights)
    if "multi_vector" in modes:
        offsets, numbers = _lists(batch, "multi_vector", where)
        lengths_of = batch.column("tokens").to_numpy(zero_copy_only=False).astype(np.int64)
        dim = len(numbers) // max(int(lengths_of.sum()), 1)
        if (lengths_of < 0).any() or not np.array_equal(np.diff(offsets), lengths_of * dim):
            raise ValueError(f"{where} has token vectors that do not fit the numbers of tokens")
        multi_vector = MultiVectorRows(offsets_of(lengths_of), numbers.astype(np.float32).reshape(-1, max(dim, 1)))
    return M3Vectors(dense=dense, lexical=lexical, multi_vector=multi_vector)


def _lists(batch: pa.RecordBatch, name: str, where: str) -> tuple[IntArray, NDArray[Any]]:
    """Return the offsets of a column's lists and their values."""
    column = batch.column(name)
    values = column.flatten()
    if column.null_count or values.null_count:
        raise ValueError(f"{where} has a record without {name}")
    return offsets_of(pc.list_value_length(column).to_numpy().astype(np.int64)), values.to_numpy()
