"""Routes for all methods of a `Store`, vectors included; a store from `open_store("http://…")` calls them.

/v1/search and /v1/records are easier for other programs. These routes carry vectors, so bodies are safetensors with
JSON in them; `m3_integrations.store.wire` describes the format. Store calls run in separate threads, so that a slow
call does not occupy the encoder's threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import count
from typing import Any, Final, TypeVar

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from m3_integrations.serve.gate import CHANGE_THREADS, STORE_THREADS
from m3_integrations.serve.limits import Limits
from m3_integrations.serve.shapes import (
    BindQuestion,
    CountAnswer,
    CountQuestion,
    DeleteAnswer,
    DoneAnswer,
    Expected,
    FetchQuestion,
    OptimizeAnswer,
    OptimizeQuestion,
    PageQuestion,
    RemoveQuestion,
    StoreAnswer,
    StoredAnswer,
    StoreDetail,
    StoreLimits,
)
from m3_integrations.store import Record, Store
from m3_integrations.store.points import HASHED_IDS, StoreFormat
from m3_integrations.store.qdrant import QdrantStore
from m3_integrations.store.served import ServedStore
from m3_integrations.store.served_answers import another_model, expected_of
from m3_integrations.store.wire import (
    API,
    check_empty,
    filter_from_json,
    pack,
    pack_records,
    unpack,
    unpack_records,
)
from m3_integrations.vectors import M3Vectors, Mode, check_modes, modes_of, take_vectors

_T = TypeVar("_T")

_READ_AT_ONCE: Final = 8
"""Records with vectors that are read between two checks of the answer's size; a record may take some MB."""

_ANSWER_BYTES: Final = 32 << 20
"""An answer with records ends once it has this size; the client asks again for the rest."""

_OPTIMIZE_S: Final = 1.0
"""Seconds that one request waits for `optimize`, which may take longer than a request's time limit."""

_BINARY: Final = "application/octet-stream"
_FILE: Final[dict[str, Any]] = {"content": {_BINARY: {"schema": {"type": "string", "format": "binary"}}}}
_ANSWERS_FILE: Final[dict[str, Any]] = {"response_class": Response, "responses": {200: _FILE}}
_TAKES_FILE: Final[dict[str, Any]] = {"openapi_extra": {"requestBody": _FILE | {"required": True}}}


def store_routes(store: Store | None, limits: Limits) -> APIRouter:
    """Return the routes; without a store only GET /v1/store, which answers that there is none.

    Args:
        store: Holds the records.
        limits: Limits on each request.
    """
    router = APIRouter(tags=["store"])
    calls = None if store is None else _Calls(store, limits)

    @router.get("/v1/store")
    async def describe(response: Response) -> StoreAnswer:
        """Return the store's description, or null without a store, and the limits on a request."""
        detail = None if calls is None else await calls.run(response, calls.describe)
        return StoreAnswer(
            api=API,
            version=version("m3-integrations"),
            store=detail,
            limits=StoreLimits(records=limits.max_texts, body_bytes=limits.max_body_bytes),
        )

    if calls is not None:
        _add_reading(router, calls)
        _add_changing(router, calls)
    return router


def _add_reading(router: APIRouter, calls: _Calls) -> None:
    @router.post("/v1/store/get", **_ANSWERS_FILE)
    async def get(question: FetchQuestion) -> Response:
        """Return records by their ids as safetensors, with their vectors if asked.

        Its JSON has `records`, and `n_read`: how many of the ids were read before the answer was full.
        """
        return await calls.answer(calls.get, question.ids, question.with_vectors)

    @router.post("/v1/store/records", **_ANSWERS_FILE)
    async def page(question: PageQuestion) -> Response:
        """Return a page of records without vectors as safetensors.

        Its JSON has `records`, and `after`, which a request for the next page must send.
        """
        return await calls.answer(calls.page, question.after)

    @router.post("/v1/store/count")
    async def count_records(question: CountQuestion, response: Response) -> CountAnswer:
        """Return how many records match a parsed filter, or how many there are without a filter."""
        filter_ = filter_from_json(question.filter)
        return CountAnswer(count=await calls.run(response, calls.store.count, filter_))

    @router.post("/v1/store/candidates", **_TAKES_FILE, **_ANSWERS_FILE)
    async def candidates(request: Request) -> Response:
        """Return the best records by dense scores and by lexical scores, and the scores of all of these in every mode.

        The body is safetensors: one text's vectors as /v1/encode returns them, and JSON with `limits`, such as
        {"dense": 100}, and a parsed `filter` or null. The answer's JSON has `found`, the ids by mode, and `ids`, the
        ids of all found records. Its arrays are `found.MODE` and `scores.MODE`.
        """
        return await calls.answer(calls.candidates, await request.body())

    @router.post("/v1/store/scores", **_TAKES_FILE, **_ANSWERS_FILE)
    async def scores(request: Request) -> Response:
        """Return the exact scores of chosen records.

        The body is safetensors: one text's vectors, and JSON with `ids` and `modes`. The answer's JSON has `ids`, those
        of them that are in the store; its arrays are `scores.MODE`.
        """
        return await calls.answer(calls.scores, await request.body())


def _add_changing(router: APIRouter, calls: _Calls) -> None:
    @router.post("/v1/store/upsert", **_TAKES_FILE)
    async def upsert(request: Request, response: Response) -> StoredAnswer:
        """Store records with their vectors; records with the same ids are replaced.

        The body is safetensors: vectors as /v1/encode returns them, and JSON. The JSON has `records`, each with `id`,
        `text`, `metadata`, `dates` (the keys and positions that lead to the dates in the metadata) and `is_pooled`; and
        the `fingerprint`, `kept_modes` and `token_pooling` of the store that the records were made for. A write that
        has begun is finished even if the client closes the connection.
        """
        return StoredAnswer(upserted=await calls.change(response, calls.upsert, await request.body()))

    @router.post("/v1/store/delete")
    async def delete(question: RemoveQuestion, response: Response, expected: Expected = None) -> DeleteAnswer:
        """Delete records by ids or by a parsed filter."""
        return DeleteAnswer(deleted=await calls.change(response, calls.delete, question, expected))

    @router.post("/v1/store/bind")
    async def bind(question: BindQuestion, response: Response) -> DoneAnswer:
        """Bind the store to a model, if it is not bound to another one."""
        await calls.run(response, calls.store.bind, question.fingerprint)
        return DoneAnswer()

    @router.post("/v1/store/optimize")
    async def optimize(
        question: OptimizeQuestion, response: Response, expected: Expected = None
    ) -> OptimizeAnswer:  # fmt: skip
        """Optimize the store for faster searches; return within a second whether that is done.

        If it is not, ask again with the answer's `run`. A request during another client's run waits for that run.
        """
        await calls.run(response, calls.check_model, expected)
        run, is_done = await calls.optimize(response, question.run)
        return OptimizeAnswer(run=run, is_done=is_done)

    @router.post("/v1/store/flush")
    async def flush(response: Response, expected: Expected = None) -> DoneAnswer:
        """Answer when everything is durable."""
        await calls.run(response, calls.check_model, expected)
        await calls.run(response, calls.store.flush)
        return DoneAnswer()


class _Calls:
    """Calls a store's methods with arguments read from bodies, and returns the bodies of answers."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self.store = store
        self._limits = limits
        self._threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="m3-store")
        self._changing = ThreadPoolExecutor(CHANGE_THREADS, thread_name_prefix="m3-store-changes")
        self._runs = count(1)
        self._optimizing: tuple[int, asyncio.Future[None]] | None = None

    async def run(self, response: Response, call: Callable[..., _T], *args: Any) -> _T:
        """Run a call in a thread and return its result; put the store's fingerprint into the response's headers.

        Raises:
            OSError: If the store cannot be read or written.
        """
        return await self._run(self._threads, response, call, *args)

    async def change(self, response: Response, call: Callable[..., _T], *args: Any) -> _T:
        """Run a call that changes records, as `run`, in one of the threads that may wait for the store's turn."""
        return await self._run(self._changing, response, call, *args)

    async def _run(self, threads: ThreadPoolExecutor, response: Response, call: Callable[..., _T], *args: Any) -> _T:
        result = await asyncio.get_running_loop().run_in_executor(threads, partial(call, *args))
        fingerprint = self.store.fingerprint
        if fingerprint is not None:
            response.headers["X-M3-Fingerprint"] = fingerprint
        return result

    async def answer(self, call: Callable[..., bytes], *args: Any) -> Response:
        """Return a response with the bytes that a call returns."""
        response = Response(media_type=_BINARY)
        response.body = await self.run(response, call, *args)
        response.headers["content-length"] = str(len(response.body))
        return response

    def describe(self) -> StoreDetail:
        store, format_ = self.store, self._format()
        return StoreDetail(
            modes=list(store.modes),
            kept_modes=list(store.kept_modes),
            fingerprint=store.fingerprint,
            # Clients know nothing of points, and those of before know no later version.
            format=None if format_ is None else format_.to_dict() | {"version": HASHED_IDS},
        )

    def _format(self) -> StoreFormat | None:
        return self.store.format if isinstance(self.store, QdrantStore | ServedStore) else None

    def get(self, ids: Sequence[str], with_vectors: bool) -> bytes:
        self._limits.check_number(len(ids), "ids")
        found: list[Record] = []
        step = _READ_AT_ONCE if with_vectors else len(ids)
        n_read = size_bytes = 0
        while n_read < len(ids) and size_bytes < _ANSWER_BYTES:
            part = self.store.get(ids[n_read : n_read + step], with_vectors=with_vectors)
            n_read = min(n_read + step, len(ids))
            size_bytes += sum(len(r.text) + (0 if r.vectors is None else r.vectors.nbytes) for r in part)
            found += part
        vectors = [record.vectors for record in found if record.vectors is not None]
        return pack_records(found, M3Vectors.concatenate(vectors) if vectors else None, n_read=n_read)

    def page(self, after: str | None) -> bytes:
        records, place = self.store.page(after)
        return pack_records(records, after=place)

    def candidates(self, body: bytes) -> bytes:
        said, query = _question(body)
        limits, filter_ = said.get("limits"), filter_from_json(said.get("filter"))
        if not isinstance(limits, dict) or not all(type(n) is int and 0 <= n < 2**63 for n in limits.values()):
            raise ValueError("limits must be numbers of records by mode, each less than 2**63")
        found = self.store.candidates(query, limits, filter_)
        ids = sorted({id_ for hits in found.values() for id_ in hits.ids})
        try:
            modes = [mode for mode in query.modes if mode in self.store.modes]
            there, columns = self.store.scores(query, ids, modes, found) if ids else ([], {})
        except ValueError:  # the query fits only in the modes of `limits`; /v1/store/scores raises for the others
            there, columns = ids, {}
        arrays: dict[str, NDArray[Any]] = {f"found.{mode}": hits.scores for mode, hits in found.items()}
        arrays |= {f"scores.{mode}": values for mode, values in columns.items()}
        return pack({"found": {mode: hits.ids for mode, hits in found.items()}, "ids": there}, arrays)

    def scores(self, body: bytes) -> bytes:
        said, query = _question(body)
        ids, modes = said.get("ids"), said.get("modes")
        if not isinstance(ids, list) or not isinstance(modes, list):
            raise ValueError("ids and modes must be lists of strings")  # noqa: TRY004 - answered with 422
        self._limits.check_number(len(ids), "ids")
        wanted: Sequence[Mode] = check_modes(modes) if modes else ()
        _check_strings(ids)
        there, columns = self.store.scores(query, ids, wanted)
        return pack({"ids": there}, {f"scores.{mode}": values for mode, values in columns.items()})

    def upsert(self, body: bytes) -> int:
        records, vectors, said = _read(unpack_records, body)
        self._limits.check_number(len(records), "records")
        expected = expected_of(self.store.fingerprint, self.store.kept_modes, self._format())
        if said != expected:
            raise ValueError(
                f"these records were made for a store of {said}, but this store has {expected}: open the store again"
            )
        if vectors is None:
            raise ValueError("there are no vectors")
        self.store.upsert(
            [record.id for record in records],
            [record.text for record in records],
            [record.metadata for record in records],
            vectors,
            is_pooled=np.array([record.is_pooled for record in records], bool),
        )
        return len(records)

    def check_model(self, expected: str | None) -> None:
        """Raise ValueError if a client expects another model of the store; "" expects none, None anything."""
        bound = self.store.fingerprint
        if expected not in {None, bound or ""}:
            raise another_model("the server", bound, expected)

    def delete(self, question: RemoveQuestion, expected: str | None) -> int:
        self.check_model(expected)
        ids, filter_ = question.ids, question.filter
        if (ids is None) == (filter_ is None):
            raise ValueError("a deletion needs either ids or a filter, got both or neither")
        if ids is None:
            return self.store.delete_where(filter_from_json(filter_))
        self._limits.check_number(len(ids), "ids")
        return self.store.delete(ids)

    async def optimize(self, response: Response, run: int | None) -> tuple[int, bool]:
        """Start a run of `Store.optimize`, or wait for the current one; return its number and whether it has ended."""
        if self._optimizing is None or (run != self._optimizing[0] and self._optimizing[1].done()):
            if run is not None and self._optimizing is not None and run < self._optimizing[0]:
                return run, True  # another client has started a later run since
            in_thread = asyncio.get_running_loop().run_in_executor(self._threads, self.store.optimize)
            self._optimizing = next(self._runs), in_thread
        number, ended = self._optimizing
        await asyncio.wait({ended}, timeout=_OPTIMIZE_S)
        if ended.done():
            await self.run(response, ended.result)
        return number, ended.done()


def _question(body: bytes) -> tuple[dict[str, Any], M3Vectors]:
    """Return a body's JSON object and its vectors of one text."""
    said, arrays = _read(unpack, body)
    if not isinstance(said, dict) or not (modes := modes_of(arrays)):
        raise ValueError("the body must have a JSON object and the vectors of one text")
    query = _read(lambda tensors: take_vectors(tensors, 1, modes), arrays)
    _read(check_empty, arrays)
    return said, query


def _read(read: Callable[[Any], _T], sent: Any) -> _T:
    try:
        return read(sent)
    except ValueError as error:
        raise ValueError(f"the body has {error}") from error


def _check_strings(values: Sequence[Any]) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("ids must be strings")
