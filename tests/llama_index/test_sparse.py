"""`M3SparseEmbedding` and Qdrant's functions."""

import math
import pickle
from pathlib import Path
from typing import cast

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import VectorStoreQuery
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from m3_integrations import M3Encoder
from m3_integrations.llama_index import M3Embedding, M3SparseEmbedding, sparse_doc_fn, sparse_query_fn
from m3_integrations.scoring import score_vectors
from tests.adapters.drivers import SENTENCES
from tests.llama_index.conftest import CountingEncoder, EventRecorder


def as_dicts(indices: list[list[int]], values: list[list[float]]) -> list[dict[int, float]]:
    return [dict(zip(i, v, strict=True)) for i, v in zip(indices, values, strict=True)]


async def test_embeddings_are_the_encoders_lexical_weights_in_python_numbers(encoder: M3Encoder) -> None:
    sparse, texts = M3SparseEmbedding(encoder=encoder), list(SENTENCES)
    expected = [weights.to_dict() for weights in encoder.encode(texts).lexical]
    assert all(expected)
    for rows in (
        sparse.get_text_embedding_batch(texts),
        await sparse.aget_text_embedding_batch(texts),
        [sparse.get_text_embedding(text) for text in texts],
        [await sparse.aget_text_embedding(text) for text in texts],
        [sparse.get_query_embedding(text) for text in texts],
        [await sparse.aget_query_embedding(text) for text in texts],
    ):
        assert rows == expected
        assert {(type(key), type(value)) for row in rows for key, value in row.items()} == {(int, float)}
    assert sparse.get_text_embedding_batch([]) == await sparse.aget_text_embedding_batch([]) == []


async def test_whole_lists_reach_the_encoder_and_queries_are_queries(fake: CountingEncoder) -> None:
    sparse, texts = M3SparseEmbedding(encoder=fake), [f"text {i}" for i in range(64)]
    sparse.get_text_embedding_batch(texts)
    await sparse.aget_text_embedding_batch(texts)
    sparse.get_query_embedding("q")
    await sparse.aget_query_embedding("q")
    assert fake.calls == [("document", 64, ("lexical",))] * 2 + [("query", 1, ("lexical",))] * 2


def test_similarity_is_the_dot_product(encoder: M3Encoder) -> None:
    sparse = M3SparseEmbedding(encoder=encoder)
    assert sparse.similarity({7: 2.0, 1: 0.5, 3: 4.0}, {1: 0.25, 7: 3.0, 2: 9.0}) == 6.125
    assert sparse.similarity({1: 1.0}, {2: 1.0}) == sparse.similarity({}, {1: 1.0}) == sparse.similarity({}, {}) == 0.0
    query, text = encoder.encode([SENTENCES[4]]), encoder.encode([SENTENCES[0]])
    expected = float(score_vectors(query, text).lexical[0])
    found = sparse.similarity(sparse.get_query_embedding(SENTENCES[4]), sparse.get_text_embedding(SENTENCES[0]))
    assert found == pytest.approx(expected, abs=1e-6)
    norms = [math.sqrt(sum(value**2 for value in sparse.get_text_embedding(t).values())) for t in SENTENCES[:5:4]]
    assert found != pytest.approx(expected / (norms[0] * norms[1]), rel=0.01)


def test_pickling_keeps_the_encoder(fake: CountingEncoder, small: Path) -> None:
    fake.delay_s = 0.25
    assert pickle.loads(pickle.dumps(M3SparseEmbedding(encoder=fake))).encoder.delay_s == 0.25
    settled = M3SparseEmbedding(model_name=str(small), model_kwargs={"max_length": 8})
    assert pickle.loads(pickle.dumps(settled)).encoder.max_length == 8
    twin = pickle.loads(pickle.dumps(sparse_doc_fn(settled.encoder)))
    assert twin(["keys"]) == sparse_doc_fn(settled.encoder)(["keys"])


def test_events_are_the_frameworks_own(fake: CountingEncoder, instrumentation: EventRecorder) -> None:
    M3SparseEmbedding(encoder=fake).get_text_embedding_batch(["a", "b"])
    assert instrumentation.names("Sparse") == ["SparseEmbeddingStartEvent", "SparseEmbeddingEndEvent"]


def test_qdrants_functions_give_indices_and_values_of_every_text(encoder: M3Encoder, fake: CountingEncoder) -> None:
    expected = [weights.to_dict() for weights in encoder.encode(SENTENCES).lexical]
    for made in (sparse_doc_fn, sparse_query_fn):
        indices, values = made(encoder)(list(SENTENCES))
        assert as_dicts(indices, values) == expected
        assert {type(index) for row in indices for index in row} == {int}
        assert {type(value) for row in values for value in row} == {float}
        assert made(encoder)([]) == ([], [])
    sparse_doc_fn(fake)(["a", "b"])
    sparse_query_fn(fake)(["q"])
    assert fake.calls == [("document", 2, ("lexical",)), ("query", 1, ("lexical",))]


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
def test_a_hybrid_qdrant_store_costs_one_pass(encoder: M3Encoder) -> None:
    qdrant = pytest.importorskip("llama_index.vector_stores.qdrant", reason="llama-index's Qdrant store is not there")
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    store = qdrant.QdrantVectorStore(
        "notes",
        client=client,
        enable_hybrid=True,
        sparse_doc_fn=sparse_doc_fn(encoder),
        sparse_query_fn=sparse_query_fn(encoder),
    )
    embedding = M3Embedding(encoder=encoder)
    nodes = [TextNode(id_=f"00000000-0000-0000-0000-00000000000{i}", text=text) for i, text in enumerate(SENTENCES)]
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=embedding)
    assert (encoder.stats.forward_passes, encoder.stats.encoded_texts) == (1, 6)

    retriever = index.as_retriever(
        vector_store_query_mode=VectorStoreQueryMode.HYBRID, similarity_top_k=6, sparse_top_k=6, alpha=0.5
    )
    query = "rotate the keys"
    found = retriever.retrieve(query)
    assert (encoder.stats.forward_passes, encoder.stats.encoded_texts) == (2, 7)

    vectors = encoder.encode(SENTENCES, modes=("dense", "lexical"))
    scores = score_vectors(encoder.encode([query], kind="query", modes=("dense", "lexical")), vectors)
    for mode, expected in (("sparse", scores.lexical), ("default", scores.dense)):
        result = store.query(
            VectorStoreQuery(
                query_embedding=embedding.get_query_embedding(query),
                query_str=query,
                similarity_top_k=6,
                sparse_top_k=6,
                mode=VectorStoreQueryMode(mode),
            )
        )
        by_text = dict(zip([cast("TextNode", node).text for node in result.nodes], result.similarities, strict=True))
        positive = [text for text, score in zip(SENTENCES, expected, strict=True) if mode == "default" or score > 0]
        assert set(by_text) == set(positive)
        for text, score in zip(SENTENCES, expected.tolist(), strict=True):
            assert by_text.get(text, 0.0) == pytest.approx(score, abs=1e-5)
    assert {each.node.get_content() for each in found} == set(SENTENCES)
    assert encoder.stats.forward_passes == 2
    client.close()
