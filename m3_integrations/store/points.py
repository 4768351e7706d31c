"""The format of a durable store, and its records as points of a Qdrant engine."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self, get_args
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from m3_integrations.store.point_ids import hashed_point_id, point_id, record_id
from m3_integrations.store.protocol import Record, check_model
from m3_integrations.store.terms import filter_payload
from m3_integrations.store.values import as_json_values, check_metadata, read_exact
from m3_integrations.vectors import MODES, FloatArray, IntArray, LexicalRows, M3Vectors, Mode, MultiVectorRows
from m3_integrations.vectors.pooling import pool_tokens, pooled_lengths

MultiVectorStorage = Literal["none", "float16", "turbo8", "turbo4"]
"""The ways to keep token vectors: not at all, with 2 bytes a number, or compressed to about 1 or half a byte."""

_DEFAULT_STORAGE: Final[MultiVectorStorage] = "float16"
"""The default is float16, although turbo8 takes 1.9 times less disk without a measurable loss of nDCG@10 on XQuAD in
five languages.

With float16 every score equals brute force within 1e-4 (7e-6 on random vectors of 1,024 numbers), as in all stores.
With turbo8 a multi-vector score is off by up to 6e-4 (`tiny`; 3e-4 on those random vectors), so very similar texts
change places. Rounding cannot be undone: `copy_store` makes a smaller store of a larger one without encoding, not the
reverse. `m3 index` shows the bytes of smaller ways, `m3 fit` their cost. Numbers: python -m
tests.benchmarks.bench_bytes, 2026-11-27.
"""

_FORMAT_NAME: Final = "m3_integrations store"
HASHED_IDS: Final = 2
IDS_IN_POINTS: Final = 3
"""The versions of the format: 2 of collections on a server, 3 of folders that are made now; they differ in `point_id`.
Version 1 had metadata as one text: its payloads are rewritten when the store is opened, and it has version 2 then."""
_MAX_NUMBERS: Final = 2**20 - 1
"""The most numbers in a multi-vector: a Qdrant server refuses more."""
_MAX_RECORDS_PER_BATCH: Final = 50
"""The engine's log is replayed when a store is opened: small batches keep that short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFormat:
    """The format of a durable store, which is written into its folder or collection.

    Attributes:
        fingerprint: The model of the vectors; None before a model was bound.
        modes: The modes of the records; empty before the first record.
        dense_dim: The length of a dense vector; 0 without dense vectors.
        token_dim: The length of a token vector; 0 without token vectors.
        multi_vector: The way to keep token vectors.
        token_pooling: The number of tokens that share a token vector.
        version: The version of the format of its records.
    """

    fingerprint: str | None = None
    modes: tuple[Mode, ...] = ()
    dense_dim: int = 0
    token_dim: int = 0
    multi_vector: MultiVectorStorage = _DEFAULT_STORAGE
    token_pooling: int = 1
    version: int = HASHED_IDS

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """The modes of added records that are kept."""
        return tuple(mode for mode in MODES if mode != "multi_vector" or self.multi_vector != "none")

    @property
    def max_tokens(self) -> int:
        """The most token vectors of a record."""
        return _MAX_NUMBERS // max(self.token_dim, 1)

    @property
    def sizes(self) -> dict[Mode, int]:
        """The length of the records' vectors in every mode, 0 for lexical; empty before the first record."""
        lengths: dict[Mode, int] = {"dense": self.dense_dim, "lexical": 0, "multi_vector": self.token_dim}
        return {mode: lengths[mode] for mode in self.modes}

    def point_id(self, id_: str) -> str:
        """Return the UUID of a record's point."""
        return point_id(id_) if self.version == IDS_IN_POINTS else hashed_point_id(id_)

    def record_id(self, point: UUID) -> str | None:
        """Return the id of the record with this point; None if the UUID does not contain it."""
        return record_id(point) if self.version == IDS_IN_POINTS else None

    def of_sizes(self, sizes: Mapping[Mode, int]) -> Self:
        """Return this format with the modes and sizes of the first records."""
        return replace(
            self, modes=tuple(sizes), dense_dim=sizes.get("dense", 0), token_dim=sizes.get("multi_vector", 0)
        )

    def bound_to(self, fingerprint: str) -> Self:
        """Return this format bound to a model.

        Raises:
            ValueError: If it is bound to another model.
        """
        check_model(self.fingerprint, fingerprint)
        return replace(self, fingerprint=fingerprint)

    def adopt(self, found: Self) -> Self:
        """Return the format of a store that another process has made meanwhile, bound to a model if either is.

        Raises:
            ValueError: If it was made with other settings or is bound to another model.
        """
        if (found.multi_vector, found.token_pooling) != (self.multi_vector, self.token_pooling):
            raise ValueError(
                f"another process has made this store with multi_vector={found.multi_vector!r} and "
                f"token_pooling={found.token_pooling}: open it again"
            )
        return found if self.fingerprint is None else found.bound_to(self.fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """Return the format as a dict for JSON."""
        return {"format": _FORMAT_NAME} | asdict(self) | {"modes": list(self.modes)}

    @classmethod
    def from_dict(cls, where: str, found: Mapping[str, Any] | None) -> Self:
        """Read a format that `to_dict` wrote.

        Args:
            where: The folder or the collection, for error messages.
            found: The dict that is written there.

        Raises:
            ValueError: If this package did not write it, or a later version did.
        """
        if not found or found.get("format") != _FORMAT_NAME:
            raise ValueError(f"{where} is not a store of this package and was not changed: choose another place")
        if found.get("version") not in {1, HASHED_IDS, IDS_IN_POINTS}:
            raise ValueError(
                f"{where} has format version {found.get('version')}, and this m3-integrations reads versions up to "
                f"{IDS_IN_POINTS}: upgrade m3-integrations to open it"
            )
        return cls(
            fingerprint=found.get("fingerprint"),  # a server drops what is None
            modes=tuple(found["modes"]),
            dense_dim=int(found["dense_dim"]),
            token_dim=int(found["token_dim"]),
            multi_vector=found["multi_vector"],
            token_pooling=int(found["token_pooling"]),
            version=int(found["version"]),
        )


def choose_format(
    where: str,
    found: StoreFormat | None,
    multi_vector: MultiVectorStorage | None,
    token_pooling: int | None,
    version: int = HASHED_IDS,
) -> StoreFormat:
    """Return the format of an existing store, or of a new one with these settings and this version.

    Raises:
        ValueError: For invalid settings, or settings that differ from those of an existing store.
    """
    if multi_vector is not None and multi_vector not in get_args(MultiVectorStorage):
        raise ValueError(f"multi_vector must be one of {', '.join(get_args(MultiVectorStorage))}, got {multi_vector!r}")
    is_count = isinstance(token_pooling, int) and not isinstance(token_pooling, bool) and token_pooling >= 1
    if token_pooling is not None and not is_count:
        raise ValueError(f"token_pooling must be a whole number of 1 or more, got {token_pooling!r}")
    if found is None:
        return StoreFormat(
            multi_vector=multi_vector or _DEFAULT_STORAGE, token_pooling=token_pooling or 1, version=version
        )
    for name, asked in (("multi_vector", multi_vector), ("token_pooling", token_pooling)):
        if asked is not None and asked != getattr(found, name):
            raise ValueError(
                f"{where} was made with {name}={getattr(found, name)!r}, not {asked!r}: leave {name} out, or copy the "
                "records into a new store with copy_store"
            )
    return found


def as_payload(id_: str, text: str, metadata: Mapping[str, Any], *, is_pooled: bool) -> dict[str, Any]:
    """Return the payload of a record: all of it except its vectors.

    `metadata` are JSON that other users of the engine can read and filter. If JSON or the engine would change a value,
    `exact` has the metadata as a text, from which they are read. `filter_payload` adds the keys for our filters.

    Raises:
        ValueError: If the metadata have a value that cannot be kept, or a text is not valid Unicode.
    """
    return _payload(id_, text, check_metadata(metadata, f"record {id_!r}"), is_pooled=is_pooled)


def _payload(id_: str, text: str, kept: dict[str, Any], *, is_pooled: bool) -> dict[str, Any]:
    native, exact = as_json_values(kept)
    payload = {"id": id_, "text": text, "metadata": native, **filter_payload(kept)}
    if exact is not None:
        payload["exact"] = exact
    if is_pooled:
        payload["is_pooled"] = True
    return payload


def as_record(point: Any, format_: StoreFormat | None = None) -> Record:
    """Return the record of an engine's point; with its vectors, which the point must have, if a format is given."""
    payload = point.payload
    vectors = None if format_ is None else _read_vectors(format_, point.vector or {})
    is_pooled = bool(payload.get("is_pooled", False))
    return Record(payload["id"], payload["text"], _read_metadata(payload), vectors, is_pooled=is_pooled)


def _read_metadata(payload: Mapping[str, Any]) -> dict[str, Any]:
    if "exact" in payload:
        return read_exact(payload["exact"])
    metadata = payload["metadata"]
    read: dict[str, Any] = json.loads(metadata) if isinstance(metadata, str) else metadata  # a text in version 1
    return read


def renewed_payload(payload: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a payload of version 1 as version 2 has it; None if it is so already."""
    if not isinstance(payload["metadata"], str):
        return None
    is_pooled = bool(payload.get("is_pooled", False))
    # Not checked: version 1 kept metadata that are nested too deep today, and such a store must still open.
    return _payload(payload["id"], payload["text"], _read_metadata(payload), is_pooled=is_pooled)


def pool_vectors(
    vectors: M3Vectors, is_pooled: NDArray[np.bool_], format_: StoreFormat
) -> tuple[M3Vectors, NDArray[np.bool_]]:
    """Return vectors with their token vectors pooled as the format says, and which texts have pooled ones.

    Args:
        vectors: The vectors of n texts.
        is_pooled: (n,) bool, whether the text was pooled before, in another store; it is not pooled again.
        format_: The format of the store.
    """
    if "multi_vector" not in vectors.modes:
        return vectors, is_pooled
    tokens = vectors.multi_vector
    factors = np.where(is_pooled, 1, format_.token_pooling)
    lengths = pooled_lengths(tokens.lengths, factors, format_.max_tokens)
    is_shorter = lengths < tokens.lengths
    if not is_shorter.any():
        return vectors, is_pooled
    dense = vectors.dense if "dense" in vectors.modes else None
    lexical = vectors.lexical if "lexical" in vectors.modes else None
    return M3Vectors(dense=dense, lexical=lexical, multi_vector=pool_tokens(tokens, lengths)), is_pooled | is_shorter


def vector_bytes(vectors: M3Vectors, rows: IntArray) -> IntArray:
    """Return (n,) int64, the bytes of the vectors in each of these rows: 4 for a float32, 8 for a lexical weight.

    Args:
        vectors: The vectors of any number of texts.
        rows: (n,) int64, the row of each record in vectors.
    """
    sizes = np.zeros(len(rows), dtype=np.int64)
    if "dense" in vectors.modes:
        sizes += 4 * vectors.dense.shape[1]
    if "lexical" in vectors.modes:
        sizes += 8 * vectors.lexical.lengths[rows]
    if "multi_vector" in vectors.modes:
        sizes += 4 * vectors.multi_vector.flat.shape[1] * vectors.multi_vector.lengths[rows]
    return sizes


def batches(
    payloads: Sequence[Mapping[str, Any]], rows: IntArray, vectors: M3Vectors, max_bytes: int
) -> Iterator[tuple[slice, int]]:
    """Yield batches of n records, each at most 50 records and about max_bytes, with their sizes in bytes.

    A record's size is estimated from its vectors, text and metadata. A larger record is a batch alone.

    Args:
        payloads: The payloads of n records.
        rows: (n,) int64, the row of each record in vectors.
        vectors: The vectors of any number of texts.
        max_bytes: The largest size of a batch.
    """
    sizes = np.array([len(payload["text"]) + 4 * len(json.dumps(payload["metadata"])) for payload in payloads])
    sizes += vector_bytes(vectors, rows)
    start = total = 0
    for i, size_bytes in enumerate(sizes.tolist()):
        if i > start and (i - start == _MAX_RECORDS_PER_BATCH or total + size_bytes > max_bytes):
            yield slice(start, i), total
            start, total = i, 0
        total += size_bytes
    yield slice(start, len(payloads)), total


def name_vectors(
    vectors: M3Vectors, modes: Sequence[Mode], rows: Sequence[int], sparse: Callable[..., Any]
) -> Iterator[dict[Mode, Any]]:
    """Yield the vectors of chosen texts by mode, which is the engine's name for them.

    They are lists, because engines read lists faster than arrays. They are made for one text at a time, because lists
    take eight times the memory. A vector without values is left out: engines refuse it.

    Args:
        vectors: The vectors of any number of texts.
        modes: The modes to yield.
        rows: The chosen texts.
        sparse: A function that makes the engine's sparse vector of indices and values.
    """
    dense = vectors.dense if "dense" in modes else None
    lexical = vectors.lexical if "lexical" in modes else None
    tokens = vectors.multi_vector if "multi_vector" in modes else None
    for row in rows:
        named: dict[Mode, Any] = {}
        if dense is not None:
            named["dense"] = dense[row].tolist()
        if lexical is not None and (start := lexical.offsets[row]) < (end := lexical.offsets[row + 1]):
            named["lexical"] = sparse(
                indices=lexical.indices[start:end].tolist(), values=lexical.values[start:end].tolist()
            )
        if tokens is not None and (start := tokens.offsets[row]) < (end := tokens.offsets[row + 1]):
            named["multi_vector"] = tokens.flat[start:end].tolist()
        yield named


def _read_vectors(format_: StoreFormat, named: Mapping[str, Any]) -> M3Vectors:
    """Return the vectors of one text, from an engine's vectors by name."""
    dense = lexical = multi_vector = None
    if "dense" in format_.modes:
        dense = np.asarray(named["dense"], np.float32).reshape(1, -1)
    if "lexical" in format_.modes:
        sparse = named.get("lexical")
        indices = np.asarray(sparse.indices if sparse else [], np.int32)
        order = np.argsort(indices)
        values = np.asarray(sparse.values if sparse else [], np.float32)
        lexical = LexicalRows(np.array([0, len(indices)]), indices[order], values[order])
    if "multi_vector" in format_.modes:
        flat = _as_rows(named.get("multi_vector", []), format_.token_dim)
        if format_.multi_vector.startswith("turbo"):  # read up to 1.5 % longer; copied again and again they would grow
            flat = flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(min=1e-12)
        multi_vector = MultiVectorRows(np.array([0, len(flat)]), flat)
    return M3Vectors(dense=dense, lexical=lexical, multi_vector=multi_vector)


def _as_rows(vectors: Any, dim: int) -> FloatArray:
    """Return token vectors, an array or lists of Python numbers, as (tokens, dim) float32."""
    if isinstance(vectors, np.ndarray):
        return vectors
    pack = struct.Struct(f"{dim}f").pack  # takes half the time of numpy for nested lists
    return np.frombuffer(bytearray().join([pack(*row) for row in vectors]), np.float32).reshape(-1, dim)
