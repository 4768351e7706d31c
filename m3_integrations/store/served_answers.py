"""Read what an `m3 serve` answers about its store: its description with the limits on requests, records, scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from m3_integrations.store.points import StoreFormat, vector_bytes
from m3_integrations.store.protocol import Hits, Record
from m3_integrations.store.wire import API, check_empty, parts_of, record_to_json, unpack, unpack_records
from m3_integrations.vectors import MODES, FloatArray, M3Vectors, Mode, Tensors, check_modes, take_array

_REQUEST_BYTES: Final = 8 << 20
"""The most bytes of a request with records, even if the server accepts more: both sides hold it in memory."""

_FRAME_BYTES: Final = 4096
"""Bytes for the rest of a body, without its records or ids."""


@dataclass(frozen=True, slots=True)
class AboutStore:
    """A server's description of its store.

    Attributes:
        modes: The modes of its records; empty before the first record.
        kept_modes: The modes that it keeps.
        fingerprint: The fingerprint of the model that it is bound to; None before it is bound.
        format: The format of its records; None in memory.
        most_records: The most records, or ids, of a request.
        most_bytes: The most bytes of a request's body.
    """

    modes: tuple[Mode, ...]
    kept_modes: tuple[Mode, ...]
    fingerprint: str | None
    format: StoreFormat | None
    most_records: int
    most_bytes: int

    def expected(self) -> dict[str, Any]:
        """Return the values that the server compares with its store before it writes: the store may have changed."""
        return expected_of(self.fingerprint, self.kept_modes, self.format)

    def record_parts(
        self, url: str, records: Sequence[Record], rows: NDArray[np.int64], vectors: M3Vectors
    ) -> list[slice]:
        """Return the slices of the records that fit into one request each.

        Raises:
            ValueError: If a record is larger than a request may be.
        """
        sizes = np.array([len(json.dumps(record_to_json(each), ensure_ascii=False).encode()) + 2 for each in records])
        sizes += 16 + vector_bytes(vectors, rows)  # 16 for the offsets
        room = self.most_bytes - _FRAME_BYTES
        largest = int(sizes.argmax())
        if sizes[largest] > room:
            raise ValueError(
                f"record {records[largest].id!r} has {sizes[largest]:,} bytes with its vectors, and {url} accepts "
                f"requests of {self.most_bytes:,}: split its text, or start m3 serve with a higher --max-body-bytes"
            )
        return list(parts_of(sizes.tolist(), self.most_records, min(room, _REQUEST_BYTES)))

    def id_parts(self, ids: list[str], used_bytes: int = 0) -> list[list[str]]:
        """Return the ids in parts that fit into one request each."""
        sizes = [len(json.dumps(id_, ensure_ascii=False).encode()) + 2 for id_ in ids]
        room = self.most_bytes - _FRAME_BYTES - used_bytes
        return [ids[part] for part in parts_of(sizes, self.most_records, room)]


def expected_of(fingerprint: str | None, kept_modes: Sequence[Mode], format_: StoreFormat | None) -> dict[str, Any]:
    """Return the properties of a store on which the records that a client sends depend."""
    pooling = 1 if format_ is None else format_.token_pooling
    return {"fingerprint": fingerprint, "kept_modes": list(kept_modes), "token_pooling": pooling}


def another_model(server: str, now: str | None, before: str | None) -> ValueError:
    """Return the error for a server whose store is of another model than when a client opened it."""
    found, known = (f"the model {each}" if each else "no model" for each in (now, before))
    return ValueError(
        f"{server} now has a store of {found}; it had one of {known} when this store was opened. Vectors of two models "
        "cannot be compared: open the store again"
    )


class Candidates(dict[Mode, Hits]):
    """The candidates of a query, together with their scores in all modes that query and records have."""

    def __init__(
        self, hits: Mapping[Mode, Hits], query: M3Vectors, ids: Sequence[str], columns: Mapping[Mode, FloatArray]
    ) -> None:
        super().__init__(hits)
        self._query, self._columns = query, columns
        self._row_of = {id_: row for row, id_ in enumerate(ids)}
        self._found = {id_ for each in hits.values() for id_ in each.ids}

    def scores(
        self, query: M3Vectors, ids: Sequence[str], modes: Sequence[Mode]
    ) -> tuple[list[str], dict[Mode, FloatArray]] | None:
        """Return the result of `Store.scores`; None if the server must be asked."""
        if query is not self._query or not self._found.issuperset(ids) or not self._columns.keys() >= set(modes):
            return None
        there = [id_ for id_ in ids if id_ in self._row_of]  # the others were deleted meanwhile
        rows = np.array([self._row_of[id_] for id_ in there], np.int64)
        return there, {mode: self._columns[mode][rows] for mode in modes}


def read_about(url: str, body: bytes) -> AboutStore:
    """Read a server's description of its store.

    Raises:
        ValueError: If the server is not an m3 serve, has no store, or has another version of the calls.
    """
    try:
        said = json.loads(body)
        api, store = said["api"], said["store"]
    except (ValueError, KeyError, TypeError) as error:
        refuse(url, f"it does not describe a store ({body[:60].decode(errors='replace')!r})", error)
    if api != API:
        raise ValueError(
            f"{url} has version {api!r} of a store's calls (its package is {said.get('version')}), and this package "
            f"({version('m3-integrations')}) has version {API}: upgrade the older of the two"
        )
    if store is None:
        raise ValueError(f"{url} is an m3 serve without a store: start it with m3 serve MODEL --store FOLDER")
    try:
        return AboutStore(
            modes=check_modes(store["modes"]) if store["modes"] else (),
            kept_modes=check_modes(store["kept_modes"]),
            fingerprint=None if store["fingerprint"] is None else str(store["fingerprint"]),
            format=None if store["format"] is None else StoreFormat.from_dict(url, store["format"]),
            most_records=max(int(said["limits"]["records"]), 1),
            most_bytes=int(said["limits"]["body_bytes"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        refuse(url, f"its description of a store cannot be read ({error!r})", error)


def read_records(url: str, body: bytes, *, with_vectors: bool) -> tuple[list[Record], dict[str, Any]]:
    """Return the records of an answer, and its further values.

    Raises:
        ValueError: If the answer has another form, or vectors that were not requested.
    """
    try:
        records, vectors, said = unpack_records(body)
    except ValueError as error:
        refuse(url, f"it holds no records ({error})", error)
    if records and (vectors is None) == with_vectors:
        refuse(url, "it holds no vectors" if with_vectors else "it holds vectors, which were not requested")
    if vectors is not None:
        records = [replace(record, vectors=vectors[i]) for i, record in enumerate(records)]
    return records, said


def read_candidates(url: str, body: bytes, query: M3Vectors, legs: Sequence[Mode]) -> Candidates:
    """Return the candidates of these legs for a query.

    Raises:
        ValueError: If the answer has another form.
    """
    try:
        said, arrays = unpack(body)
        ids = {mode: _strings(said["found"][mode]) for mode in legs}
        hits = {
            mode: Hits(each, take_array(arrays, f"found.{mode}", np.float32, len(each))) for mode, each in ids.items()
        }
        there = _strings(said["ids"])
        carried = [mode for mode in MODES if f"scores.{mode}" in arrays]
        return Candidates(hits, query, there, _take_scores(arrays, carried, len(there)))
    except (ValueError, KeyError, TypeError) as error:
        refuse(url, f"it holds no candidates ({error})", error)


def read_scores(url: str, body: bytes, modes: Sequence[Mode]) -> tuple[list[str], dict[Mode, FloatArray]]:
    """Return the ids that exist, and their scores in these modes.

    Raises:
        ValueError: If the answer has another form.
    """
    try:
        said, arrays = unpack(body)
        ids = _strings(said["ids"])
        return ids, _take_scores(arrays, modes, len(ids))
    except (ValueError, KeyError, TypeError) as error:
        refuse(url, f"it holds no scores ({error})", error)


def read_member(url: str, body: bytes, name: str, kind: type) -> Any:
    """Return a value of a JSON object.

    Raises:
        ValueError: If it is missing, or of another type.
    """
    try:
        value = json.loads(body)[name]
    except (ValueError, KeyError, TypeError) as error:
        refuse(url, f"it has no {name}", error)
    if type(value) is not kind:
        refuse(url, f"its {name} must be of type {kind.__name__}, got {value!r:.40}")
    return value


def refuse(url: str, what: str, error: Exception | None = None) -> NoReturn:
    """Raise ValueError for an answer that an m3 serve does not send."""
    raise ValueError(f"{url} sent a wrong answer: {what}. Is a proxy between this process and m3 serve?") from error


def _take_scores(arrays: Tensors, modes: Sequence[Mode], n: int) -> dict[Mode, FloatArray]:
    """Remove the scores from an answer's arrays and return them; raise ValueError if other arrays are left."""
    columns = {mode: take_array(arrays, f"scores.{mode}", np.float32, n) for mode in modes}
    check_empty(arrays)
    return columns


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("a list of strings is missing")
    return value
