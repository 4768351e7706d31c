"""The repr of every public object is short, names its model and its size, and holds no memory address."""

from pathlib import Path

from llama_index.core.schema import Document as LlamaIndexDocument

from m3_integrations import M3Encoder, Searcher, SearchOptions, langchain, langchain_qdrant, llama_index, open_store
from m3_integrations.bm25 import Bm25Index
from m3_integrations.evaluation import evaluate, read_dataset, tune_weights
from m3_integrations.indexing import Splitter, Splitting, index_files
from m3_integrations.training import TrainingConfig
from tests.evaluation.worlds import write_beir


def bm25(n: int) -> Bm25Index:
    index = Bm25Index()
    index.add({row: [f"t{row}", "shared"] for row in range(n)})
    return index


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
        "bm25": bm25(100),
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


def test_what_holds_a_whole_collection_is_shown_by_its_size(encoder: M3Encoder, tmp_path: Path) -> None:
    texts = {str(i): "The keys of the vault." for i in range(200)}
    write_beir(
        tmp_path / "data", texts, {str(i): f"keys {i}?" for i in range(100)}, {str(i): {"1": 1} for i in range(100)}
    )
    dataset = read_dataset(tmp_path / "data")
    assert repr(dataset) == "Dataset('data', 200 documents, 100 queries, qrels)"
    assert repr(dataset.corpus) == f"Corpus({str(tmp_path / 'data' / 'corpus.jsonl')!r}, 200 documents)"
    result = evaluate(encoder, dataset, modes=["dense"], metrics=["nDCG@10"])
    assert repr(result) == f"EvaluationResult({encoder.model!r} on {dataset!r}, dense)"
    tuned = tune_weights(encoder, dataset, metric="nDCG@10", steps=1)
    assert repr(tuned).endswith(", by nDCG@10 on 50 queries, reported on 50)")
    config = TrainingConfig(model="tiny", train_data=(Path("a"),), output_dir=Path("b"), steps=3)
    assert (
        repr(config)
        == f"TrainingConfig(model='tiny', train_data={config.train_data!r}, output_dir={Path('b')!r}, steps=3)"
    )
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text("text")
    report = index_files([*tmp_path.glob("*.txt")], encoder, open_store(), splitting=Splitting(64))
    assert repr(report) == "IndexReport(30 added, 30 parts encoded)"
    assert repr(Splitter(encoder, Splitting(64))) == f"Splitter({encoder!r}, Splitting(size=64, overlap=32))"


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
    assert repr(bm25(2)) == "Bm25Index(2 texts, 3 tokens)"
