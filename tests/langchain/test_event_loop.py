"""While the encoder works, other tasks go on."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langchain_core.documents import Document

from m3_integrations.langchain import M3Embeddings, M3HybridRetriever, M3Rerank
from m3_integrations.langchain_qdrant import M3SparseEmbeddings
from tests.fakes import FakeEncoder

_DELAY_S = 0.3
_LIMIT_S = 0.05


async def longest_pause_s(work: Callable[[], Awaitable[Any]]) -> float:
    """How long another task had to wait for its turn at most, while this was done."""
    pauses = [0.0]

    async def tick() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            pauses.append(time.perf_counter() - start)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    start = time.perf_counter()
    await work()
    assert time.perf_counter() - start >= _DELAY_S  # the encoder did work
    ticks = len(pauses)
    while len(pauses) == ticks:  # until the pause that is going on has been measured too
        await asyncio.sleep(0)
    ticker.cancel()
    return max(pauses)


_DOCUMENTS = [Document("a b", id="1")]

_CALLS: dict[str, Callable[[FakeEncoder], Awaitable[Any]]] = {
    "aembed_documents": lambda e: M3Embeddings(encoder=e).aembed_documents(["a"]),
    "aembed_documents with progress": lambda e: M3Embeddings(encoder=e, show_progress=True).aembed_documents(["a"]),
    "aembed_query": lambda e: M3Embeddings(encoder=e).aembed_query("a"),
    "ainvoke": lambda e: M3HybridRetriever(encoder=e).ainvoke("a"),
    "abatch": lambda e: M3HybridRetriever(encoder=e).abatch(["a", "b"]),
    "aadd_texts": lambda e: M3HybridRetriever(encoder=e).aadd_texts(["a"]),
    "aadd_documents": lambda e: M3HybridRetriever(encoder=e).aadd_documents(_DOCUMENTS),
    "acompress_documents": lambda e: M3Rerank(encoder=e).acompress_documents(_DOCUMENTS, "a"),
    "sparse aembed_documents": lambda e: M3SparseEmbeddings(encoder=e).aembed_documents(["a"]),
    "sparse aembed_query": lambda e: M3SparseEmbeddings(encoder=e).aembed_query("a"),
}


@pytest.mark.parametrize("call", _CALLS)
async def test_the_event_loop_is_not_blocked_while_the_encoder_works(call: str) -> None:
    pauses = []
    for _ in range(3):
        encoder = FakeEncoder(delay_s=_DELAY_S)
        pauses.append(await longest_pause_s(lambda: _CALLS[call](encoder)))  # noqa: B023 - called at once
        if pauses[-1] < _LIMIT_S:
            break
    assert min(pauses) < _LIMIT_S
