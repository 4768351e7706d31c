"""The peers of a search: LlamaIndex's BGEM3Index and LangChain's EnsembleRetriever, over vectors that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from FlagEmbedding import BGEM3FlagModel
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.schema import TextNode
from llama_index.indices.managed.bge_m3 import BGEM3Index
from rank_bm25 import BM25Okapi

from m3_integrations import M3Vectors

Search = Callable[[int], Sequence[str]]
"""Gives the ids that answer query i."""


class _KnownModel(BGEM3FlagModel):  # type: ignore[misc]
    """FlagEmbedding's own scoring over known vectors; a text is its number, a query's number follows a "q"."""

    documents: M3Vectors
    queries: M3Vectors

    def __init__(self, *_: Any, **__: Any) -> None:
        self.pool: Any = None  # what its own destructor looks at

    def encode(self, sentences: Any, **_: Any) -> dict[str, Any]:
        if isinstance(sentences, str):
            return {name: value[0] for name, value in _as_flag(self.queries[[int(sentences)]]).items()}
        return _as_flag(self.documents)

    def stop_self_pool(self) -> None:
        pass


def _as_flag(vectors: M3Vectors) -> dict[str, Any]:
    weights = [dict(zip(map(str, row.indices.tolist()), row.values, strict=True)) for row in vectors.lexical]
    return {"dense_vecs": vectors.dense, "lexical_weights": weights, "colbert_vecs": list(vectors.multi_vector)}


def bge_m3_index(documents: M3Vectors, queries: M3Vectors, k: int) -> Search:
    """Give BGEM3Index's search: the same three modes at equal weights, over every document."""
    _KnownModel.documents, _KnownModel.queries = documents, queries
    with patch("FlagEmbedding.BGEM3FlagModel", _KnownModel):
        index = BGEM3Index(nodes=[TextNode(id_=f"r{i}", text=f"text {i}") for i in range(len(documents))])
    retriever = index.as_retriever(similarity_top_k=k)
    return lambda i: [hit.node.node_id for hit in retriever.retrieve(str(i))]


class _Bm25(BaseRetriever):
    """BM25 as langchain-community has it: rank-bm25 over whitespace."""

    index: Any
    documents: list[Document]
    words: list[str]
    k: int

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return list(self.index.get_top_n(self.words[int(query)].split(), self.documents, n=self.k))


class _Known(Embeddings):
    def __init__(self, documents: M3Vectors, queries: M3Vectors) -> None:
        self.documents, self.queries = documents, queries

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.documents.dense.tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.queries.dense[int(text)].tolist()  # type: ignore[no-any-return]


def ensemble(documents: M3Vectors, queries: M3Vectors, k: int) -> Search:
    """Give the search of an EnsembleRetriever of a dense store in memory and BM25: no multi-vectors, no raw scores."""
    store = InMemoryVectorStore(_Known(documents, queries))
    made = [Document(id=f"r{i}", page_content=f"text {i}") for i in range(len(documents))]
    store.add_documents(made)
    words = [" ".join(map(str, row.indices.tolist())) for row in documents.lexical]
    asked = [" ".join(map(str, row.indices.tolist())) for row in queries.lexical]
    bm25 = _Bm25(index=BM25Okapi([text.split() for text in words]), documents=made, words=asked, k=k)
    both = EnsembleRetriever(retrievers=[store.as_retriever(search_kwargs={"k": k}), bm25], weights=[0.5, 0.5])
    return lambda i: [str(document.id) for document in both.invoke(str(i))]


def top_exact(documents: M3Vectors, query: M3Vectors, k: int) -> list[str]:
    """Give the k best by the mean of the three scores, in float64."""
    from m3_integrations.scoring import score_vectors

    scores = score_vectors(query, documents).combined
    return [f"r{i}" for i in np.argsort(-scores, kind="stable")[:k]]
