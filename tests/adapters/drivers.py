"""The retrievers and rerankers of both frameworks behind one face: what both do is written and tested once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from m3_integrations import langchain, llama_index
from m3_integrations.search import Explanation, Missing

WORDS = ("keys", "vault", "museum", "rain", "train", "tea", "code", "blue")

SENTENCES = (
    "The vault keeps the keys.",
    "Rain is expected in Bergen tomorrow.",
    "The night train to Vienna leaves at nine.",
    "Green tea is brewed below boiling.",
    "Rotate the signing keys every month.",
    "The museum opens on Tuesdays.",
)


@dataclass(frozen=True)
class Found:
    """A result without its framework; scores are not part of its metadata."""

    id: str | None
    text: str
    metadata: dict[str, Any]
    score: float
    scores: dict[str, float]


def _of_documents(documents: Sequence[Document]) -> list[Found]:
    found = []
    for document in documents:
        assert isinstance(document, langchain.M3Document)
        metadata = dict(document.metadata)
        if "m3_scores" in metadata:  # a reranker's
            assert metadata.pop("relevance_score") == document.score
            assert metadata.pop("m3_scores") == document.m3_scores
        found.append(Found(document.id, document.page_content, metadata, document.score, document.m3_scores))
    return found


def _of_nodes(nodes: Sequence[NodeWithScore]) -> list[Found]:
    found = []
    for each in nodes:
        assert isinstance(each, llama_index.M3NodeWithScore)
        assert each.score is not None
        metadata = {key: value for key, value in each.node.metadata.items() if key != "m3_scores"}
        assert each.node.metadata.get("m3_scores", each.m3_scores) == each.m3_scores
        found.append(Found(each.node.node_id, each.node.get_content(), metadata, each.score, each.m3_scores))
    return found


def make_nodes(
    texts: Iterable[str], ids: Iterable[str | None] | None, metadatas: Iterable[dict[str, Any]] | None = None
) -> list[TextNode]:
    """Nodes of which the text alone is encoded."""
    texts = list(texts)
    given = list(metadatas) if metadatas is not None else [{}] * len(texts)
    nodes = []
    for text, metadata, id_ in zip(texts, given, ids if ids is not None else [None] * len(texts), strict=True):
        node = TextNode(text=text, metadata=metadata, excluded_embed_metadata_keys=list(metadata))
        nodes.append(node if id_ is None else node.model_copy(update={"id_": id_}))
    return nodes


class LangChainRetriever:
    def __init__(self, **settings: Any) -> None:
        self.made = langchain.M3HybridRetriever(**settings)

    def search(self, query: str, **asked: Any) -> list[Found]:
        return _of_documents(self.made.invoke(query, None, **asked))

    async def asearch(self, query: str, **asked: Any) -> list[Found]:
        return _of_documents(await self.made.ainvoke(query, None, **asked))

    def add(self, texts: Iterable[str], *, ids: Any = None, metadatas: Any = None) -> list[str]:
        return self.made.add_texts(texts, metadatas, ids=ids)

    async def aadd(self, texts: Iterable[str], *, ids: Any = None, metadatas: Any = None) -> list[str]:
        return await self.made.aadd_texts(texts, metadatas, ids=ids)

    def delete(self, ids: Any = None, **where: Any) -> int:
        return self.made.delete(ids, **where)

    async def adelete(self, ids: Any = None, **where: Any) -> int:
        return await self.made.adelete(ids, **where)

    def explain(self, query: str, id_: str) -> Explanation:
        return self.made.explain(query, id_)

    def explain_missing(self, query: str, id_: str, **asked: Any) -> Missing:
        return self.made.explain_missing(query, id_, **asked)


class LlamaIndexRetriever:
    def __init__(self, *, show_progress: bool = False, **settings: Any) -> None:
        self.show_progress = show_progress
        self.made = llama_index.M3HybridRetriever(**self._named(settings))

    @staticmethod
    def _named(asked: dict[str, Any]) -> dict[str, Any]:
        return {{"k": "similarity_top_k", "filter": "filters"}.get(name, name): value for name, value in asked.items()}

    def search(self, query: str, **asked: Any) -> list[Found]:
        asking = self.made.with_options(**self._named(asked)) if asked else self.made
        return _of_nodes(asking.retrieve(query))

    async def asearch(self, query: str, **asked: Any) -> list[Found]:
        asking = self.made.with_options(**self._named(asked)) if asked else self.made
        return _of_nodes(await asking.aretrieve(query))

    def add(self, texts: Iterable[str], *, ids: Any = None, metadatas: Any = None) -> list[str]:
        return self.made.add_nodes(make_nodes(texts, ids, metadatas), show_progress=self.show_progress)

    async def aadd(self, texts: Iterable[str], *, ids: Any = None, metadatas: Any = None) -> list[str]:
        return await self.made.aadd_nodes(make_nodes(texts, ids, metadatas), show_progress=self.show_progress)

    def delete(self, ids: Any = None, **where: Any) -> int:
        return self.made.delete_nodes(ids, **self._named(where))

    async def adelete(self, ids: Any = None, **where: Any) -> int:
        return await self.made.adelete_nodes(ids, **self._named(where))

    def explain(self, query: str, id_: str) -> Explanation:
        return self.made.explain(query, id_)

    def explain_missing(self, query: str, id_: str, **asked: Any) -> Missing:
        return self.made.with_options(**self._named(asked)).explain_missing(query, id_)


class LangChainReranker:
    def __init__(self, **settings: Any) -> None:
        self.made = langchain.M3Rerank(**settings)

    @staticmethod
    def inputs(texts: Sequence[str], ids: Sequence[str | None]) -> list[Document]:
        """Documents with the score of a first stage."""
        return [
            Document(id=id_, page_content=text, metadata={"row": row, "relevance_score": row / 10})
            for row, (text, id_) in enumerate(zip(texts, ids, strict=True))
        ]

    def rank(self, query: str, inputs: Any) -> list[Found]:
        return _of_documents(self.made.compress_documents(inputs, query))

    async def arank(self, query: str, inputs: Any) -> list[Found]:
        return _of_documents(await self.made.acompress_documents(inputs, query))


class LlamaIndexReranker:
    def __init__(self, **settings: Any) -> None:
        self.made = llama_index.M3Rerank(**settings)

    @staticmethod
    def inputs(texts: Sequence[str], ids: Sequence[str | None]) -> list[NodeWithScore]:
        """Nodes with the score of a first stage."""
        nodes = make_nodes(texts, ids, [{"row": row} for row in range(len(texts))])
        return [NodeWithScore(node=node, score=row / 10) for row, node in enumerate(nodes)]

    def rank(self, query: str, inputs: Any) -> list[Found]:
        return _of_nodes(self.made.postprocess_nodes(inputs, query_str=query))

    async def arank(self, query: str, inputs: Any) -> list[Found]:
        return _of_nodes(await self.made.apostprocess_nodes(inputs, query_str=query))


Retriever = LangChainRetriever | LlamaIndexRetriever
Reranker = LangChainReranker | LlamaIndexReranker


async def longest_pause_s(work: Callable[[], Awaitable[object]]) -> float:
    """The longest time that the event loop was kept from an idle task while the work was done.

    Where that is over 50 ms, the best of three attempts: the machine may have had something else to do.
    """
    best, attempts = float("inf"), 0
    while best >= 0.05 and attempts < 3:
        attempts += 1
        ticks = [time.perf_counter()]

        async def tick(ticks: list[float] = ticks) -> None:
            while True:
                ticks.append(time.perf_counter())
                await asyncio.sleep(0.002)

        ticker = asyncio.create_task(tick())
        await asyncio.sleep(0)
        await work()
        ticker.cancel()
        best = min(best, float(np.diff([*ticks, time.perf_counter()]).max()))
    return best
