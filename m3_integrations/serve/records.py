"""Routes over encoder and store: search, explain what is found or missing, and add, get and delete records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from fastapi import APIRouter

from m3_integrations.encoder import M3Encoder
from m3_integrations.search import Calibration, IncompleteAddError, Searcher, SearchOptions
from m3_integrations.search.adding import check_added, is_nothing_in
from m3_integrations.serve.gate import CHANGE_THREADS
from m3_integrations.serve.limits import Limits
from m3_integrations.serve.reasons import (
    ExplainAnswer,
    ExplainQuestion,
    MissingAnswer,
    MissingQuestion,
    RecordSpans,
    SpansAnswer,
    SpansQuestion,
)
from m3_integrations.serve.refusal import Refusal
from m3_integrations.serve.shapes import (
    DeleteAnswer,
    DeleteQuestion,
    FoundRecord,
    GetAnswer,
    GetQuestion,
    NewRecord,
    SearchAnswer,
    SearchQuestion,
    StoredRecord,
    UpsertAnswer,
    UpsertQuestion,
)
from m3_integrations.store import Store
from m3_integrations.vectors import windows

_WINDOW_TOKENS: Final = 16_384
"""Tokens, counted as characters, that are encoded and stored at a time. A cancelled request stops after these."""

_RECORDS_AT_ONCE: Final = 16
"""Records whose sentences are scored at a time; with 8,192 tokens each their vectors take 512 MB. A
cancelled request stops after these."""


def record_routes(
    encoder: M3Encoder, store: Store, limits: Limits, *, calibration: Calibration | None = None
) -> APIRouter:
    """Return the routes.

    Args:
        encoder: Encodes queries and records.
        store: Holds the records.
        limits: Limits on each request.
        calibration: Needed by searches with min_probability; None if there is none.

    Raises:
        ValueError: If the store holds another model's vectors, or the calibration is for another model.
    """
    if calibration is not None:
        calibration.check_model(encoder.fingerprint, encoder.model)
    router = APIRouter(tags=["records"])
    searcher = Searcher(encoder, store, SearchOptions(calibration=calibration))
    store.bind(encoder.fingerprint)
    changing = ThreadPoolExecutor(CHANGE_THREADS, thread_name_prefix="m3-records")  # changes may wait for minutes

    @router.post("/v1/search")
    async def search(question: SearchQuestion) -> SearchAnswer:
        """Return the records that answer a query best, best first, with their scores in every mode."""
        hits = await searcher.asearch(question.query, **_options(question, calibration))
        return SearchAnswer(hits=[FoundRecord(**asdict(hit)) for hit in hits])

    @router.post("/v1/explain")
    async def explain(question: ExplainQuestion) -> ExplainAnswer:
        """Return why a record matches a query: its scores, the shared tokens, and each query token's best match."""
        try:
            found = await asyncio.to_thread(searcher.explain, question.query, question.id)
        except KeyError as error:
            raise Refusal(404, f"there is no record {question.id!r}") from error
        lexical = [asdict(match) | {"score": match.score} for match in found.lexical]
        return ExplainAnswer.model_validate(asdict(found) | {"lexical": lexical})

    @router.post("/v1/explain_missing")
    async def explain_missing(question: MissingQuestion) -> MissingAnswer:
        """Return why a search does not find a record: its filter, legs, ranks, tokens, and what would change it."""
        options = _options(question, calibration)
        found = await asyncio.to_thread(searcher.explain_missing, question.query, question.id, **options)
        return MissingAnswer.of(found)

    @router.post("/v1/spans")
    async def spans(question: SpansQuestion) -> SpansAnswer:
        """Return the sentences of records, each with how much of the match with a query it carries."""
        limits.check_number(len(question.ids), "ids")
        ids, found = list(dict.fromkeys(question.ids)), list[RecordSpans]()
        try:
            for start in range(0, len(ids), _RECORDS_AT_ONCE):
                part = ids[start : start + _RECORDS_AT_ONCE]
                found += await asyncio.to_thread(_spans, searcher, question.query, part)
        except KeyError as error:
            raise Refusal(404, f"there is {error.args[0]}") from error
        return SpansAnswer(records=found)

    @router.post("/v1/records")
    async def upsert(question: UpsertQuestion) -> UpsertAnswer:
        """Encode and store records; records with the same ids are replaced. Nothing is encoded before all are checked.

        A request that ends early may have stored its first records. Sent again with the same ids, it makes no
        duplicates.
        """
        limits.check_number(len(question.records), "records")
        return UpsertAnswer(ids=await _add(searcher, encoder, question.records, changing))

    @router.post("/v1/records/get")
    async def get(question: GetQuestion) -> GetAnswer:
        """Return records without their vectors, in the order of the ids; unknown ids are skipped."""
        limits.check_number(len(question.ids), "ids")
        records = await asyncio.to_thread(store.get, question.ids)
        return GetAnswer(records=[StoredRecord(id=r.id, text=r.text, metadata=dict(r.metadata)) for r in records])

    @router.post("/v1/records/delete")
    async def delete(question: DeleteQuestion) -> DeleteAnswer:
        """Delete records by ids or by a filter; a filter that matches everything is refused."""
        limits.check_number(len(question.ids or []), "ids")
        delete = partial(searcher.delete, question.ids, filter=question.filter)
        return DeleteAnswer(deleted=await asyncio.get_running_loop().run_in_executor(changing, delete))

    return router


def _options(question: SearchQuestion, calibration: Calibration | None) -> Any:
    """Return a question's options of `SearchOptions`, as keywords.

    Raises:
        Refusal: If it needs a calibration, and the server has none.
    """
    if question.min_probability and calibration is None:
        raise Refusal(
            422,
            f"min_probability={question.min_probability} needs a calibration, which this server lacks: fit one "
            "with m3 eval DATA --calibrate FILE, and start m3 serve with --calibration FILE",
        )
    return question.model_dump(exclude={"query", "id"}, exclude_none=True)


def _spans(searcher: Searcher, query: str, ids: Sequence[str]) -> list[RecordSpans]:
    return [RecordSpans.of(evidence) for evidence in searcher.spans(query, ids)]


async def _add(
    searcher: Searcher, encoder: M3Encoder, records: Sequence[NewRecord], changing: ThreadPoolExecutor
) -> list[str]:
    """Store records, some at a time, and return their ids. A cancelled task leaves the encoder's queue.

    Raises:
        IncompleteAddError: If it fails when some records may be stored already.
    """
    store = searcher.store
    ids, texts, metadatas = check_added(
        [record.text for record in records], [record.id for record in records], [record.metadata for record in records]
    )
    modes = tuple(mode for mode in encoder.modes if mode in store.kept_modes)
    start, is_writing = 0, False
    try:
        for window in windows(texts, max_texts=256, max_tokens=_WINDOW_TOKENS, max_length=encoder.max_length):
            end = start + len(window)
            vectors, _ = await encoder.aencode_marked(window, modes=modes)
            is_writing = True
            upsert = partial(store.upsert, ids[start:end], window, metadatas[start:end], vectors)
            await asyncio.get_running_loop().run_in_executor(changing, upsert)
            start, is_writing = end, False
    except Exception as error:
        if is_nothing_in(error, start, is_writing=is_writing):
            raise
        raise IncompleteAddError(ids, ids[:start]) from error
    return ids
