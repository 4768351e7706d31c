"""While the encoder works, other tasks go on."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from m3_integrations.langchain import M3Embeddings
from m3_integrations.langchain_qdrant import M3SparseEmbeddings
from m3_integrations.llama_index import M3Embedding, M3SparseEmbedding
from tests.adapters.drivers import (
    LangChainReranker,
    LangChainRetriever,
    LlamaIndexReranker,
    LlamaIndexRetriever,
    longest_pause_s,
    make_nodes,
)
from tests.fakes import FakeEncoder

_DELAY_S = 0.3

_CALLS: dict[str, Callable[[FakeEncoder], Awaitable[Any]]] = {
    "embeddings: documents": lambda e: M3Embeddings(encoder=e).aembed_documents(["a"]),
    "embeddings: with progress": lambda e: M3Embeddings(encoder=e, show_progress=True).aembed_documents(["a"]),
    "embeddings: query": lambda e: M3Embeddings(encoder=e).aembed_query("a"),
    "langchain: search": lambda e: LangChainRetriever(encoder=e).asearch("a"),
    "langchain: batch": lambda e: LangChainRetriever(encoder=e).made.abatch(["a", "b"]),
    "langchain: add": lambda e: LangChainRetriever(encoder=e).aadd(["a"]),
    "langchain: rerank": lambda e: LangChainReranker(encoder=e).arank("q", LangChainReranker.inputs(["a"], ["1"])),
    "sparse embeddings: documents": lambda e: M3SparseEmbeddings(encoder=e).aembed_documents(["a"]),
    "sparse embeddings: query": lambda e: M3SparseEmbeddings(encoder=e).aembed_query("a"),
    "embedding: query": lambda e: M3Embedding(encoder=e).aget_query_embedding("a"),
    "embedding: text": lambda e: M3Embedding(encoder=e).aget_text_embedding("a"),
    "embedding: batch": lambda e: M3Embedding(encoder=e).aget_text_embedding_batch(["a", "b"]),
    "embedding: nodes": lambda e: M3Embedding(encoder=e).acall(make_nodes(["a", "b"], None)),
    "sparse embedding: query": lambda e: M3SparseEmbedding(encoder=e).aget_query_embedding("a"),
    "sparse embedding: text": lambda e: M3SparseEmbedding(encoder=e).aget_text_embedding("a"),
    "sparse embedding: batch": lambda e: M3SparseEmbedding(encoder=e).aget_text_embedding_batch(["a", "b"]),
    "llama_index: search": lambda e: LlamaIndexRetriever(encoder=e).asearch("a"),
    "llama_index: add": lambda e: LlamaIndexRetriever(encoder=e).aadd(["a"]),
    "llama_index: rerank": lambda e: LlamaIndexReranker(encoder=e).arank("q", LlamaIndexReranker.inputs(["a"], ["1"])),
}


@pytest.mark.parametrize("call", _CALLS)
async def test_async_never_blocks_the_event_loop(call: str) -> None:
    encoder = FakeEncoder(delay_s=_DELAY_S)
    assert await longest_pause_s(lambda: _CALLS[call](encoder)) < 0.05
    assert encoder.encoded != []  # it did work


async def test_a_call_that_blocks_is_noticed() -> None:
    encoder = FakeEncoder(delay_s=_DELAY_S)

    async def block() -> None:
        encoder.encode(["keys"])

    assert await longest_pause_s(block) > 0.25
