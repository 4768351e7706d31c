"""langchain-qdrant with our dense and sparse embeddings, in memory."""

import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseVector
from qdrant_client import QdrantClient, models

from m3_integrations import M3Encoder
from m3_integrations.langchain import M3Embeddings, M3HybridRetriever, M3Rerank
from m3_integrations.langchain_qdrant import M3SparseEmbeddings
from tests.adapters.drivers import SENTENCES

QUERY = "which keys are rotated?"


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


def open_vector_store(client: QdrantClient, encoder: M3Encoder, mode: RetrievalMode) -> QdrantVectorStore:
    client.create_collection(
        "sentences",
        vectors_config=models.VectorParams(size=encoder.dim, distance=models.Distance.COSINE),
        sparse_vectors_config={"langchain-sparse": models.SparseVectorParams()},
    )
    return QdrantVectorStore(
        client,
        "sentences",
        embedding=M3Embeddings(encoder=encoder),
        sparse_embedding=M3SparseEmbeddings(encoder=encoder),
        retrieval_mode=mode,
    )


async def test_sparse_vectors_are_the_lexical_weights(encoder: M3Encoder) -> None:
    sparse = M3SparseEmbeddings(encoder=encoder)
    expected = [
        SparseVector(indices=weights.indices.tolist(), values=weights.values.tolist())
        for weights in encoder.encode([*SENTENCES, ""]).lexical
    ]
    texts = [*SENTENCES, ""]
    assert sparse.embed_documents(texts) == await sparse.aembed_documents(texts) == expected
    assert [sparse.embed_query(text) for text in texts] == [await sparse.aembed_query(text) for text in texts]
    assert sparse.embed_query(SENTENCES[1]) == expected[1]
    assert expected[6] == SparseVector(indices=[], values=[])
    assert sparse.embed_documents([]) == await sparse.aembed_documents([]) == []


async def test_a_query_is_encoded_as_a_query(small: Path) -> None:
    instructed = M3SparseEmbeddings(str(small), model_kwargs={"query_instruction": "find: "})
    plain = M3SparseEmbeddings(str(small))
    expected = plain.embed_query("find: keys")
    assert instructed.embed_query("keys") == await instructed.aembed_query("keys") == expected
    assert instructed.embed_documents(["keys"]) == plain.embed_documents(["keys"])


def test_sparse_embeddings_pickle_and_refuse_what_they_do_not_know(encoder: M3Encoder) -> None:
    sparse = M3SparseEmbeddings(encoder=encoder)
    assert pickle.loads(pickle.dumps(sparse)).embed_query(QUERY) == sparse.embed_query(QUERY)
    with pytest.raises(TypeError, match="batch_size"):
        M3SparseEmbeddings(encoder=encoder, batch_size=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="pass model="):
        M3SparseEmbeddings()


def test_the_sparse_score_of_qdrant_is_the_lexical_score(client: QdrantClient, encoder: M3Encoder) -> None:
    store = open_vector_store(client, encoder, RetrievalMode.SPARSE)
    store.add_texts(list(SENTENCES))
    query = "the museum keeps the night train"
    found = store.similarity_search_with_score(query, k=6)
    assert len(found) > 2
    expected = encoder.score(query, [document.page_content for document, _ in found]).lexical
    assert [score for _, score in found] == pytest.approx(expected.tolist(), abs=1e-5)


async def test_hybrid_mode_finds_what_both_rankings_put_first(client: QdrantClient, encoder: M3Encoder) -> None:
    store = open_vector_store(client, encoder, RetrievalMode.HYBRID)
    store.add_texts(list(SENTENCES))
    for text in SENTENCES:
        assert store.similarity_search(text, k=1)[0].page_content == text
        assert (await store.asimilarity_search(text, k=1))[0].page_content == text


def test_every_text_costs_one_pass_in_hybrid_mode(client: QdrantClient, encoder: M3Encoder) -> None:
    """A query that is embedded, sparse-embedded, searched with ours and reranked, over documents that are stored."""
    ids = [str(uuid.uuid4()) for _ in SENTENCES]
    documents = [Document(text, id=id_) for text, id_ in zip(SENTENCES, ids, strict=True)]
    ours = M3HybridRetriever(encoder=encoder)
    store = open_vector_store(client, encoder, RetrievalMode.HYBRID)
    before = encoder.stats
    ours.add_documents(documents)
    assert encoder.stats.encoded_texts - before.encoded_texts == len(SENTENCES)
    store.add_documents(documents, ids=ids)
    assert encoder.stats.encoded_texts - before.encoded_texts == len(SENTENCES)

    before = encoder.stats
    reranker = M3Rerank(encoder=encoder, store=ours.store)
    found = store.similarity_search(QUERY, k=6)
    known = [Document(d.page_content, id=d.metadata["_id"]) for d in found]  # langchain-qdrant leaves Document.id empty
    best = reranker.compress_documents(known, QUERY)
    assert [d.id for d in best] == [d.id for d in ours.invoke(QUERY, k=3)]
    assert encoder.stats.forward_passes - before.forward_passes == 1
    assert encoder.stats.encoded_texts - before.encoded_texts == 1


def test_ingestion_alone_costs_one_pass_a_text(client: QdrantClient, encoder: M3Encoder) -> None:
    store = open_vector_store(client, encoder, RetrievalMode.HYBRID)
    before = encoder.stats
    store.add_texts([f"text number {i}" for i in range(160)])
    assert encoder.stats.encoded_texts - before.encoded_texts == 160
    assert encoder.stats.cache_hits - before.cache_hits == 160  # the sparse side
