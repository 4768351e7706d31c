"""What a prompt or a log shows of every public object: short, its model and its size, and no address."""

from pathlib import Path

from llama_index.core.schema import Document as LlamaIndexDocument

from m3_integrations import M3Encoder, Searcher, SearchOptions, langchain, langchain_qdrant, llama_index, open_store
from m3_integrations.bm25 import Bm25Index


def test_every_object_is_shown_short_and_without_an_address(encoder: M3Encoder, tmp_path: Path) -> None:
    searcher = Searcher(encoder, open_store(), SearchOptions(k=2))
    searcher.add(["the keys of the vault " * 3] * 30)
    vectors = encoder.encode(["a text", "another"])
    (hit, _) = searcher.search("keys")
    nodes = llama_index.M3HybridRetriever(encoder=encoder)
    nodes.add_nodes([LlamaIndexDocument(text="a")])
    shown = {
        "encoder": encoder,
        "stats": encoder.stats,
        "vocabulary": encoder.vocabulary,
        "vectors": vectors,
        "lexical": vectors.lexical,
        "weights of a text": vectors.lexical[0],
        "multi_vector": vectors.multi_vector,
        "scores": encoder.score("a", ["b"]),
        "searcher": searcher,
        "options": searcher.options,
        "hit": hit,
        "bm25": Bm25Index(["1"] * 100, [["a"]] * 100),
        "langchain embeddings": langchain.M3Embeddings(encoder=encoder),
        "langchain retriever": langchain.M3HybridRetriever(encoder=encoder),
        "langchain rerank": langchain.M3Rerank(encoder=encoder),
        "langchain cross-encoder": langchain.M3CrossEncoder(encoder=encoder),
        "langchain sparse": langchain_qdrant.M3SparseEmbeddings(encoder=encoder),
        "llama_index embedding": llama_index.M3Embedding(encoder=encoder),
        "llama_index sparse": llama_index.M3SparseEmbedding(encoder=encoder),
        "llama_index retriever": nodes,
        "llama_index rerank": llama_index.M3Rerank(encoder=encoder),
    }
    for name, each in shown.items():
        text = repr(each).replace(encoder.model, "MODEL")
        assert len(text) <= 400, (name, text)
        assert "0x" not in text, (name, text)


def test_the_representation_says_what_matters(encoder: M3Encoder) -> None:
    of_encoder = f"M3Encoder({encoder.model!r}, 64 dimensions, dense+lexical+multi_vector, cpu, float32)"
    searcher = Searcher(encoder, open_store(), SearchOptions(k=2, filter={"year": 2024}))
    assert repr(searcher).startswith(f"Searcher({of_encoder}, MemoryStore(0 records")
    assert repr(searcher.options).startswith("SearchOptions(k=2, filter=")
    assert repr(SearchOptions()) == "SearchOptions()"
    assert repr(langchain_qdrant.M3SparseEmbeddings(encoder=encoder)) == f"M3SparseEmbeddings({of_encoder})"
    assert repr(llama_index.M3HybridRetriever(encoder=encoder)).startswith(
        f"M3HybridRetriever({of_encoder}, MemoryStore("
    )
    vectors = encoder.encode(["a b", "c"])
    assert (
        repr(vectors.multi_vector)
        == f"MultiVectorRows(2 texts, {len(vectors.multi_vector.flat)} tokens, 64 dimensions)"
    )
    assert repr(Bm25Index(["1", "2"], [["a"], ["b"]])) == "Bm25Index(2 texts, 2 tokens)"
