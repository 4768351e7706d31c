"""What a user writes, checked by mypy strict and pyright and never run: every public name, with the types it gives."""

from __future__ import annotations

import asyncio
from typing import assert_type

import numpy as np
from langchain_core.documents import Document
from langchain_core.structured_query import StructuredQuery
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from numpy.typing import NDArray

from m3_integrations import (
    PRESETS,
    Encoder,
    EncoderStats,
    Hit,
    LexicalWeights,
    M3Encoder,
    M3Scores,
    M3Vectors,
    ModeWeights,
    Record,
    RemoteEncoder,
    Searcher,
    SearchOptions,
    Store,
    open_store,
)
from m3_integrations.langchain import (
    M3CrossEncoder,
    M3Embeddings,
    M3HybridRetriever,
    M3Rerank,
    M3Translator,
    M3VectorStore,
)
from m3_integrations.langchain_qdrant import M3SparseEmbeddings
from m3_integrations.llama_index import M3Embedding, M3SparseEmbedding
from m3_integrations.llama_index import M3HybridRetriever as NodeRetriever
from m3_integrations.llama_index import M3Rerank as NodeRerank


def encode(texts: list[str]) -> None:
    with M3Encoder("BAAI/bge-m3", device="cpu", pooling="mcls", query_max_length=64) as encoder:
        vectors = encoder.encode(texts, kind="query", modes=("dense", "lexical"))
        assert_type(vectors, M3Vectors)
        assert_type(vectors.dense, NDArray[np.float32])
        assert_type(vectors.lexical[0], LexicalWeights)
        assert_type(vectors.lexical[0].tokens(), list[tuple[str, float]])
        assert_type(vectors.multi_vector[0], NDArray[np.float32])
        assert_type(vectors[0:2], M3Vectors)
        scores = encoder.score("query", texts, weights=PRESETS["miracl"])
        encoder.score("query", texts, weights=[1, 0.3, 1])
        assert_type(scores, M3Scores)
        assert_type(scores.combined, NDArray[np.float32])
        assert_type(encoder.stats, EncoderStats)
        for part in encoder.encode_batches(iter(texts), show_progress=True):
            assert_type(part, M3Vectors)


def encode_elsewhere(texts: list[str]) -> list[Hit]:
    with RemoteEncoder("http://127.0.0.1:8000", api_key="key", timeout_s=5) as encoder:
        assert_type(encoder.encode(texts, kind="query", max_length=64), M3Vectors)
        assert_type(encoder.score("query", texts, weights="miracl"), M3Scores)
        return search(encoder)


def search(encoder: Encoder) -> list[Hit]:
    store = open_store()
    assert_type(store, Store)
    searcher = Searcher(encoder, store)
    ids = searcher.add(["a", "b"], ids=["1", None], metadatas=[{"year": 2024}, {}])
    assert_type(ids, list[str])
    assert_type(store.get(ids), list[Record])
    weights = ModeWeights(1, 2, 0)
    hits = asyncio.run(searcher.asearch("query", k=3, mode="dense+lexical", weights=weights, filter={"year": 2020}))
    assert_type(hits[0].scores, dict[str, float])
    assert_type(searcher.search("query", weights="miracl", filter={}, score_threshold=None), list[Hit])
    assert_type(searcher.search_batch(["query"], fusion="rrf", bm25="extra"), list[list[Hit]])
    settled = Searcher(encoder, store, SearchOptions(k=3, filter={"year": {"$gte": 2020}}, weights="mldr"))
    assert_type(settled.options.weights, ModeWeights)
    assert_type(searcher.explain("query", ids[0]).lexical[0].token, str)
    return hits


def accepts_an_encoder(encoder: M3Encoder) -> list[Hit]:
    return search(encoder)


def use_langchain(documents: list[Document]) -> None:
    encoder = M3Encoder("tiny")
    assert_type(M3Embeddings(model="tiny").embed_query("query"), list[float])
    assert_type(M3SparseEmbeddings(encoder=encoder).embed_query("query").indices, list[int])
    retriever = M3HybridRetriever.from_documents(documents, encoder=encoder, k=5, weights=(1, 0.3, 1), mode="all")
    assert_type(retriever.add_documents(documents), list[str])
    assert_type(retriever.invoke("query", k=2, filter={"year": 2024}), list[Document])
    assert_type(asyncio.run(retriever.ainvoke("query", score_threshold=0.2)), list[Document])
    rerank = M3Rerank(encoder=encoder, store=retriever.store, top_n=3)
    rerank.compress_documents(documents, "query")
    assert_type(M3CrossEncoder(encoder=encoder).score([("query", "text")]), list[float])
    vectors = M3VectorStore.from_documents(documents, M3Embeddings(encoder=encoder), store=retriever.store, k=5)
    assert_type(vectors.add_documents(documents, source_key="source"), list[str])
    assert_type(vectors.similarity_search("query", 3, mode="dense"), list[Document])
    assert_type(vectors.similarity_search_with_relevance_scores("query"), list[tuple[Document, float]])
    assert_type(vectors.embeddings, M3Embeddings)
    assert_type(M3Translator().visit_structured_query(StructuredQuery("query", None))[0], str)


def use_llama_index(nodes: list[TextNode]) -> None:
    encoder = M3Encoder("tiny")
    assert_type(M3Embedding(encoder=encoder).get_query_embedding("query"), list[float])
    assert_type(M3SparseEmbedding(encoder=encoder).get_query_embedding("query"), dict[int, float])
    retriever = NodeRetriever.from_nodes(nodes, encoder=encoder, similarity_top_k=20)
    assert_type(retriever.retrieve("query"), list[NodeWithScore])
    two = {"dense": 0.4, "lexical": 0.6, "multi_vector": 0.0}
    narrowed = retriever.with_options(similarity_top_k=3, filters={"year": 2024}, mode="dense", weights=two)
    assert_type(narrowed, NodeRetriever)
    rerank = NodeRerank(encoder=encoder, top_n=3, keep_retrieval_score=True)
    RetrieverQueryEngine.from_args(retriever, node_postprocessors=[rerank])
