"""`ServedStore`: the store of an `m3 serve`, for every process that can reach it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from m3_integrations.remote.connection import Answer, Connection, UnknownPathError, check_url
from m3_integrations.store.columns import check_columns, check_ids
from m3_integrations.store.filters import FilterLike, parse_filter
from m3_integrations.store.points import StoreFormat, pool_vectors
from m3_integrations.store.protocol import (
    Hits,
    Record,
    Store,
    check_model,
    check_query,
    check_vectors,
    deletion_filter,
)
from m3_integrations.store.served_answers import (
    AboutStore,
    Candidates,
    another_model,
    read_about,
    read_candidates,
    read_member,
    read_records,
    read_scores,
    refuse,
)
from m3_integrations.store.values import check_metadata
from m3_integrations.store.wire import filter_to_json, pack, pack_records
from m3_integrations.vectors import FloatArray, M3Vectors, Mode, to_tensors

_PATH: Final = "/v1/store"

_CHANGES: Final = frozenset({"/delete", "/optimize", "/flush"})
"""Calls that name the expected model in a header, so that the store of another one stays as it is; /upsert and /bind
name it in their bodies."""

_CLOSED: Final = "this store was closed: open another with open_store(...)"

_ANSWER_BYTES: Final = 1 << 30
"""The most bytes of an answer: far more than the server puts into one answer with records."""

_PROBE_S: Final = 5.0
_PROBE_BYTES: Final = 1 << 20


class ServedStore(Store):
    """The store behind an `m3 serve`; many processes may have it open, and share one embedded folder through it.

    Records, filters and scores equal those of the store behind the server, to the bit. A search takes two requests: one
    for the candidates with all their scores, one for the texts of the best. All methods may be called from any number
    of threads, and after a fork. If the server is busy (429, 503) or the connection breaks, a request is sent again
    within `timeout_s`. A write that is sent twice has the same result, with two exceptions: a count of deleted records
    lacks those that the first try deleted, and records that another process wrote in between are overwritten. A pickle
    has the URL, the settings with the API key, and the description of the store.

    Args:
        url: The URL of the server, such as "http://127.0.0.1:8000".
        api_key: One of the server's keys, if it has any.
        timeout_s: The time limit of one request with its repetitions. Many records are sent in many requests.

    Raises:
        ConnectionError: If nothing answers; later calls too.
        PermissionError: If the server does not accept the key; later calls too, also if its folder is read-only.
        TimeoutError: If an answer takes longer than `timeout_s`; later calls too. A write may be done nevertheless.
        OSError: If the server cannot write; later calls too.
        ValueError: If the URL is invalid, or the server is not an m3 serve with a store, or has another version of
            these calls; later calls too, if the server has another model by then.
        RuntimeError: If the server fails; later calls too.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        self.url = check_url(url)
        self._settings: Mapping[str, Any] = {"api_key": api_key, "timeout_s": timeout_s}
        self._is_closed = False
        self._open()
        try:
            self._about = self._describe()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._connection = Connection(self.url, closed=_CLOSED, **self._settings)

    def close(self) -> None:
        """Close the connections; the server keeps its store open. Using this store then raises RuntimeError."""
        self._is_closed = True
        self._connection.close()

    def __getstate__(self) -> dict[str, Any]:
        self._check_open()
        return {name: value for name, value in self.__dict__.items() if name != "_connection"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the records have vectors of; empty before the first record."""
        if not self._about.modes:  # another process may have added records
            self._about = self._describe(self._about.fingerprint)
        return self._about.modes

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """The modes that the store keeps."""
        return self._about.kept_modes

    @property
    def fingerprint(self) -> str | None:
        """The model that the store is bound to; None before `bind`."""
        if self._about.fingerprint is None:
            self._about = self._describe()
        return self._about.fingerprint

    @property
    def format(self) -> StoreFormat | None:
        """The format of the store; None for a store in memory."""
        if self._about.format is not None and not self._about.format.modes:  # as for `modes`
            self._about = self._describe(self._about.fingerprint)
        return self._about.format

    def bind(self, fingerprint: str) -> None:
        """Record which model the vectors are from, as `Store.bind`; the server binds its store to its own model."""
        self._check_open()
        check_model(self._about.fingerprint, fingerprint)
        if self._about.fingerprint is None:
            self._ask("/bind", {"fingerprint": fingerprint})
            self._about = replace(self._about, fingerprint=fingerprint)

    def upsert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]],
        vectors: M3Vectors,
        *,
        is_pooled: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add records, or replace those with the same ids, as `Store.upsert`.

        All are checked before the first is sent. They are sent in their order, in requests of bounded size; the records
        of a request are stored when it is answered. If a request fails, those of earlier requests are stored and its
        own may be; the same call again makes no duplicates.

        Raises:
            ValueError: Also if a record is larger than a request may be. Then nothing is stored.
            RuntimeError: If the server fails, or refuses a request after others were stored.
        """
        ids, texts, metadatas, flags, rows = check_columns(ids, texts, metadatas, vectors, is_pooled)
        self._check_open()
        if not rows:
            return
        about = self._about
        kept = [mode for mode in about.kept_modes if mode in vectors.modes]
        if not kept:
            raise ValueError(
                f"the store keeps {', '.join(self.kept_modes)} vectors, but the records have only "
                f"{', '.join(vectors.modes)}"
            )
        vectors = vectors.select(kept)
        sizes = check_vectors("what is added", vectors, {})  # the server compares them with its records
        if about.format is not None:  # pooled here as the server would do it, so that less is sent
            vectors, flags = pool_vectors(vectors, flags, about.format.of_sizes(sizes))
        records = [
            Record(ids[i], texts[i], check_metadata(metadatas[i], f"record {ids[i]!r}"), None, bool(flags[i]))
            for i in rows
        ]
        for n_before, part in enumerate(about.record_parts(self.url, records, np.array(rows), vectors)):
            where = np.array(rows)[part]
            body = pack_records(records[part], vectors.take(where), **about.expected())
            try:
                answer = self._ask("/upsert", body)
            except (TypeError, ValueError) as error:
                if n_before == 0:
                    raise
                raise RuntimeError(f"{self.url} refused records after it had stored others of the same call") from error
            try:
                read_member(self.url, answer.body, "upserted", int)
            except ValueError as error:  # the records may be stored
                raise RuntimeError(str(error)) from error
        self._about = replace(about, modes=vectors.modes)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the records with these ids, and return how many there were; unknown ids are skipped."""
        ids = check_ids(ids)
        self._check_open()
        parts = self._about.id_parts(list(dict.fromkeys(ids)))
        return sum(read_member(self.url, self._ask("/delete", {"ids": part}).body, "deleted", int) for part in parts)

    def delete_where(self, filter: FilterLike) -> int:  # noqa: A002
        """Delete the records that match, and return how many there were, as `Store.delete_where`."""
        said = filter_to_json(deletion_filter(filter))
        return int(read_member(self.url, self._ask("/delete", {"filter": said}).body, "deleted", int))

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Return copies of the records with these ids, in the given order; unknown ids are skipped."""
        ids = check_ids(ids)
        self._check_open()
        found: list[Record] = []
        for part in self._about.id_parts(ids):
            start = 0
            while start < len(part):  # the server limits its answers, so one may end before the last id
                answer = self._ask("/get", {"ids": part[start:], "with_vectors": with_vectors})
                records, said = read_records(self.url, answer.body, with_vectors=with_vectors)
                n_read = said.get("n_read")
                if not isinstance(n_read, int) or not 0 < n_read <= len(part) - start:
                    refuse(self.url, "no number of the ids it has read")
                found += records
                start += n_read
        return found

    def page(self, after: str | None = None) -> tuple[list[Record], str | None]:
        """Return the next records, as `Store.page`."""
        answer = self._ask("/records", {"after": after})
        records, said = read_records(self.url, answer.body, with_vectors=False)
        place = said.get("after")
        if place is not None and not isinstance(place, str):
            refuse(self.url, "no place to go on from")
        return records, place

    def count(self, filter: FilterLike = None) -> int:  # noqa: A002
        """Return the number of records, or of those that match."""
        said = filter_to_json(parse_filter(filter))
        return int(read_member(self.url, self._ask("/count", {"filter": said}).body, "count", int))

    def candidates(
        self, query: M3Vectors, limits: Mapping[Mode, int], filter: FilterLike = None  # noqa: A002
    ) -> dict[Mode, Hits]:  # fmt: skip
        """Return the best records by each mode, as `Store.candidates`, in the order of the store behind.

        They have their scores in every mode of the query: `scores` with these candidates as known sends no request.
        """
        check_query(query, {}, ())  # checks that it is one text; the server checks that it fits its records
        said = {"limits": dict(limits), "filter": filter_to_json(parse_filter(filter))}
        answer = self._ask("/candidates", pack(said, to_tensors(query)))
        return read_candidates(self.url, answer.body, query, list(limits))

    def scores(
        self, query: M3Vectors, ids: Sequence[str], modes: Sequence[Mode], known: Mapping[Mode, Hits] | None = None
    ) -> tuple[list[str], dict[Mode, FloatArray]]:
        """Return the exact raw scores of chosen records, as `Store.scores`."""
        self._check_open()
        check_query(query, {}, ())
        if isinstance(known, Candidates) and (carried := known.scores(query, ids, modes)) is not None:
            return carried
        there: list[str] = []
        columns: dict[Mode, list[FloatArray]] = {mode: [np.empty(0, np.float32)] for mode in modes}
        sent = to_tensors(query)
        room = sum(array.nbytes for array in sent.values())
        # Without ids one request too: the server checks the query.
        for part in self._about.id_parts(list(ids), room) or [[]]:
            answer = self._ask("/scores", pack({"ids": part, "modes": list(modes)}, sent))
            found, values = read_scores(self.url, answer.body, modes)
            there += found
            for mode in modes:
                columns[mode].append(values[mode])
        return there, {mode: np.concatenate(each) for mode, each in columns.items()}

    def optimize(self) -> None:
        """Build the server's indexes now. Blocks until they are built, even if that takes longer than `timeout_s`."""
        run: int | None = None
        is_done = False
        while not is_done:
            body = self._ask("/optimize", {"run": run}).body
            run, is_done = read_member(self.url, body, "run", int), read_member(self.url, body, "is_done", bool)

    def flush(self) -> None:
        """Return when everything is durable at the server."""
        self._ask("/flush", {})

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(_CLOSED)

    def _ask(self, path: str, sent: dict[str, Any] | bytes | None) -> Answer:
        """Return the answer to one request; raise ValueError if the server has another model by now."""
        self._check_open()
        headers = {"X-M3-Fingerprint": self._about.fingerprint or ""} if path in _CHANGES else {}
        future = self._connection.start(_PATH + path, sent, max_bytes=_ANSWER_BYTES, headers=headers)
        try:
            answer = self._connection.result(future)
        except UnknownPathError:
            if path:
                self._describe()  # raises if the server was started again without a store
            raise
        known = None if path == "" else self._about.fingerprint
        if known is not None and answer.fingerprint not in {None, known}:
            raise another_model(self.url, answer.fingerprint, known)
        return answer

    def _describe(self, known: str | None = None) -> AboutStore:
        """Return the store's description; raise ValueError if a model is known and the store is of another one."""
        about = read_about(self.url, self._ask("", None).body)
        if known not in {None, about.fingerprint}:
            raise another_model(self.url, about.fingerprint, known)
        return about


def is_m3_serve(url: str) -> bool:
    """Return whether an `m3 serve` answers at a URL within 5 seconds, with or without a store; no key is sent."""
    try:
        with closing(_probing(url)) as connection:
            connection.request("GET", urlsplit(url.rstrip("/")).path + _PATH)
            answer = connection.getresponse()
            status, said = answer.status, json.loads(answer.read(_PROBE_BYTES))
        if status == 200:
            return isinstance(said, dict) and "api" in said and "store" in said
        return bool(said["error"]["code"] == status and isinstance(said["error"]["message"], str))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False


def is_silent(url: str) -> bool:
    """Return whether a server accepts a connection, but does not answer within 5 seconds."""
    is_connected = False
    try:
        with closing(_probing(url)) as connection:
            connection.connect()
            is_connected = True
            connection.request("GET", "/")
            connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return is_connected and isinstance(error, TimeoutError)
    return False


def _probing(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(check_url(url))
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=_PROBE_S)
