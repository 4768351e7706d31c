"""`M3VectorStore` inside LlamaIndex: indexes, pipelines, query transforms, automatic retrieval."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import SimpleDirectoryReader, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import TransformQueryEngine
from llama_index.core.retrievers import TransformRetriever, VectorIndexAutoRetriever, VectorIndexRetriever
from llama_index.core.schema import BaseNode, Document, IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import MetadataInfo, VectorStoreInfo
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from m3_integrations import M3Encoder, open_store
from m3_integrations.llama_index import M3Embedding, M3HybridRetriever, M3VectorStore
from m3_integrations.store import Store
from tests.adapters.drivers import SENTENCES
from tests.llama_index.conftest import CountingEncoder, ids_of

SPLITTER = SentenceSplitter(chunk_size=20, chunk_overlap=0)
QUERY = "how are the signing keys rotated"


class Says(CustomLLM):
    """A language model that always says the same."""

    answer: str

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.answer)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        raise NotImplementedError


@pytest.fixture(params=["in memory", "in a folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with open_store(None if request.param == "in memory" else tmp_path / "index") as opened:
        yield opened


@pytest.fixture
def encoder(small: Path) -> M3Encoder:
    """A network of its own, so that its counters are."""
    return M3Encoder(small, shared=False)


@pytest.fixture
def vectors(encoder: M3Encoder, store: Store) -> M3VectorStore:
    return M3VectorStore(encoder=encoder, store=store)


def index_of(vectors: M3VectorStore, nodes: Sequence[BaseNode] = (), **settings: Any) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=vectors)
    return VectorStoreIndex(list(nodes), storage_context=context, embed_model=vectors.embed_model, **settings)


def contents(vectors: M3VectorStore) -> list[str]:
    return sorted(node.get_content() for node in vectors.get_nodes())


def pieces_of(*documents: Document) -> list[str]:
    return sorted(node.get_content() for node in SPLITTER.get_nodes_from_documents(documents))


def document(name: str, *rows: int) -> Document:
    return Document(id_=name, text=" ".join(SENTENCES[row] for row in rows))


def found(nodes: Sequence[NodeWithScore]) -> list[tuple[str, float]]:
    return [(each.node.node_id, round(each.score or 0, 4)) for each in nodes]


@pytest.mark.parametrize("use_async", [False, True])
async def test_an_index_finds_what_the_hybrid_retriever_finds_at_one_pass_a_text(
    vectors: M3VectorStore, encoder: M3Encoder, sentences: list[TextNode], use_async: bool
) -> None:
    index = index_of(vectors, sentences, use_async=use_async)  # LlamaIndex closes its loop only if one runs already
    assert encoder.stats.encoded_texts == len(sentences)
    retriever = M3HybridRetriever(encoder=encoder, store=vectors.store, similarity_top_k=3)
    expected = found(retriever.retrieve(QUERY))
    assert encoder.stats.encoded_texts == len(sentences) + 1
    assert found(index.as_retriever(similarity_top_k=3).retrieve(QUERY)) == expected
    hybrid = index.as_retriever(similarity_top_k=3, vector_store_query_mode="hybrid", alpha=2 / 3)
    assert found(hybrid.retrieve(QUERY)) == expected
    for mode in ("dense", "lexical"):
        other = index.as_retriever(similarity_top_k=3, vector_store_kwargs={"mode": mode})
        assert found(other.retrieve(QUERY)) == found(retriever.with_options(mode=mode).retrieve(QUERY))
    assert encoder.stats.encoded_texts == len(sentences) + 1


async def test_an_index_is_asked_without_blocking(vectors: M3VectorStore, sentences: list[TextNode]) -> None:
    index = index_of(vectors)
    await index.ainsert_nodes(sentences)
    for mode in ("default", "hybrid", "sparse", "text_search", "mmr", "semantic_hybrid"):
        retriever = index.as_retriever(similarity_top_k=3, vector_store_query_mode=mode)
        assert found(await retriever.aretrieve(QUERY)) == found(retriever.retrieve(QUERY))
    response = await index.as_query_engine(llm=MockLLM()).aquery(QUERY)
    assert len(response.source_nodes) == 2
    assert response.source_nodes[0].node.get_content() in str(response)


def test_an_index_with_our_embedding_model_works_too(
    vectors: M3VectorStore, encoder: M3Encoder, sentences: list[TextNode]
) -> None:
    context = StorageContext.from_defaults(vector_store=vectors)
    index = VectorStoreIndex(sentences, storage_context=context, embed_model=M3Embedding(encoder=encoder))
    assert encoder.stats.encoded_texts == 2 * len(sentences)
    expected = M3HybridRetriever(encoder=encoder, store=vectors.store).retrieve(QUERY)
    assert found(index.as_retriever().retrieve(QUERY)) == found(expected)


def test_a_document_in_several_batches_keeps_all_its_nodes(vectors: M3VectorStore) -> None:
    whole = document("a", *range(6))
    for _ in range(2):
        index_of(vectors, SPLITTER.get_nodes_from_documents([whole]), insert_batch_size=2)
        assert contents(vectors) == pieces_of(whole)


async def test_documents_are_inserted_updated_refreshed_and_deleted(vectors: M3VectorStore, encoder: M3Encoder) -> None:
    index = index_of(vectors, transformations=[SPLITTER])
    first, second = document("a", 0, 1), document("b", 2)
    assert index.refresh_ref_docs([first, second]) == [True, True]
    assert contents(vectors) == pieces_of(first, second)
    before = encoder.stats.encoded_texts
    assert index.refresh_ref_docs([first, second]) == [False, False]
    assert await index.arefresh_ref_docs([first, second]) == [False, False]
    assert encoder.stats.encoded_texts == before

    changed, third = document("a", 3), document("c", 4)
    assert index.refresh_ref_docs([changed, second, third]) == [True, False, True]
    assert contents(vectors) == pieces_of(changed, second, third)
    assert await index.arefresh_ref_docs([document("b", 5), third]) == [True, False]
    assert contents(vectors) == pieces_of(changed, document("b", 5), third)

    index.update_ref_doc(document("c", 0))
    index.delete_ref_doc("b")
    assert contents(vectors) == pieces_of(changed, document("c", 0))
    # LlamaIndex itself still has the document's hash, and would take it for unchanged if it came back.
    index.docstore.delete_document("b", raise_error=False)
    assert index.refresh_ref_docs([document("b", 5)]) == [True]
    assert contents(vectors) == pieces_of(changed, document("b", 5), document("c", 0))
    index.delete_ref_doc("b")
    await index.adelete_ref_doc("a")
    index.delete_nodes([node.node_id for node in vectors.get_nodes()])
    assert contents(vectors) == []


STRATEGIES = list(DocstoreStrategy)


def pipeline_of(vectors: M3VectorStore, docstore: SimpleDocumentStore, strategy: DocstoreStrategy) -> IngestionPipeline:
    return IngestionPipeline(
        transformations=[SPLITTER, vectors.embed_model],
        vector_store=vectors,
        docstore=docstore,
        docstore_strategy=strategy,
        disable_cache=True,
    )


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_pipeline_keeps_the_store_in_step(
    vectors: M3VectorStore, encoder: M3Encoder, strategy: DocstoreStrategy, is_async: bool
) -> None:
    """In every strategy, old pieces of a changed document go: even "duplicates_only", which deletes nothing itself."""
    pipeline = pipeline_of(vectors, SimpleDocumentStore(), strategy)

    async def run(*documents: Document) -> int:
        before = encoder.stats.encoded_texts
        given = list(documents)
        await pipeline.arun(documents=given) if is_async else pipeline.run(documents=given)
        return encoder.stats.encoded_texts - before

    first, second, third = document("a", 0, 1), document("b", 2), document("c", 3, 4)
    pieces = pieces_of(first, second, third)
    assert await run(first, second, third) == len(pieces)
    assert contents(vectors) == pieces
    assert await run(first, second, third) == 0
    assert contents(vectors) == pieces

    changed = document("a", 5)
    assert await run(changed, second) == len(pieces_of(changed))
    gone = strategy == DocstoreStrategy.UPSERTS_AND_DELETE
    assert contents(vectors) == pieces_of(changed, second, *([] if gone else [third]))
    assert await run(changed, second) == 0


def test_a_pipeline_without_a_splitter_deletes_documents_too(vectors: M3VectorStore) -> None:
    pipeline = pipeline_of(vectors, SimpleDocumentStore(), DocstoreStrategy.UPSERTS_AND_DELETE)
    pipeline.transformations = [vectors.embed_model]
    pipeline.run(documents=[document("a", 0), document("b", 1)])
    pipeline.run(documents=[document("a", 2)])
    assert contents(vectors) == [SENTENCES[2]]


def test_a_pipeline_without_a_docstore_changes_nothing_when_it_is_run_again(
    vectors: M3VectorStore, encoder: M3Encoder
) -> None:
    documents = [document("a", 0, 1), document("b", 2)]
    for _ in range(3):
        pipeline = IngestionPipeline(transformations=[SPLITTER, vectors.embed_model], vector_store=vectors)
        pipeline.run(documents=documents)
        assert contents(vectors) == pieces_of(*documents)
    assert encoder.stats.encoded_texts == len(pieces_of(*documents))


def test_the_embeddings_of_a_pipelines_cache_are_accepted(vectors: M3VectorStore) -> None:
    """The cache gives nodes back with their ids and with the empty embedding of the first run."""
    documents = [document("a", 0, 1)]
    pipeline = IngestionPipeline(transformations=[SPLITTER, vectors.embed_model], vector_store=vectors)
    for _ in range(2):
        pipeline.run(documents=documents)
        assert contents(vectors) == pieces_of(*documents)


FILE_SPLITTER = SentenceSplitter(chunk_size=200, chunk_overlap=0)
"""The metadata of files, which hold the path, count too."""


def write(folder: Path, **files: Sequence[str]) -> None:
    """Files of paragraphs that are so long that each is a piece."""
    folder.mkdir(exist_ok=True)
    for name, sentences in files.items():
        paragraphs = (" ".join(f"{i} {sentence}" for i in range(12)) for sentence in sentences)
        (folder / f"{name}.txt").write_text("\n\n\n".join(paragraphs))


def gone_since_the_last_run(documents: list[Document], state: Path) -> set[str]:
    """Ids of documents that the run before had; only the script can know."""
    state.mkdir(exist_ok=True)
    known, present = state / "documents.json", {each.id_ for each in documents}
    before = set(json.loads(known.read_text())) if known.exists() else set()
    known.write_text(json.dumps(sorted(present)))
    return before - present


def add_by_retriever(documents: list[Document], encoder: M3Encoder, store: Store, state: Path) -> None:
    retriever = M3HybridRetriever(encoder=encoder, store=store)
    retriever.add_nodes(FILE_SPLITTER.get_nodes_from_documents(documents))
    for gone in gone_since_the_last_run(documents, state):
        retriever.delete_ref_doc(gone)


def add_by_index(documents: list[Document], encoder: M3Encoder, store: Store, state: Path) -> None:
    vectors = M3VectorStore(encoder=encoder, store=store)
    index_of(vectors, FILE_SPLITTER.get_nodes_from_documents(documents))
    for gone in gone_since_the_last_run(documents, state):
        vectors.delete(gone)


def add_by_refreshing(documents: list[Document], encoder: M3Encoder, store: Store, state: Path) -> None:
    """Into an index whose storage context is kept beside the store."""
    vectors, folder = M3VectorStore(encoder=encoder, store=store), str(state / "context")
    if not state.exists():
        index_of(vectors).storage_context.persist(folder)
    context = StorageContext.from_defaults(vector_store=vectors, persist_dir=folder)
    index = load_index_from_storage(context, embed_model=vectors.embed_model, transformations=[FILE_SPLITTER])
    index.refresh_ref_docs(documents)
    for gone in gone_since_the_last_run(documents, state):
        index.delete_ref_doc(gone)
    context.persist(folder)


def add_by_pipeline(documents: list[Document], encoder: M3Encoder, store: Store, state: Path) -> None:
    """With a pipeline whose docstore is kept beside the store."""
    path = state / "docstore.json"
    docstore = SimpleDocumentStore.from_persist_path(str(path)) if path.exists() else SimpleDocumentStore()
    vectors = M3VectorStore(encoder=encoder, store=store)
    pipeline = pipeline_of(vectors, docstore, DocstoreStrategy.UPSERTS_AND_DELETE)
    pipeline.transformations[0] = FILE_SPLITTER
    pipeline.run(documents=documents)
    docstore.persist(str(path))


@pytest.mark.parametrize(
    ("add", "of_changed_file"),
    # LlamaIndex deletes what changed before it adds it again, so all three pieces of the file are new to the store.
    [(add_by_retriever, 1), (add_by_index, 1), (add_by_refreshing, 3), (add_by_pipeline, 3)],
)
def test_a_script_over_a_folder_of_files_is_run_three_times(tmp_path: Path, add: Any, of_changed_file: int) -> None:
    files, passes = tmp_path / "files", list[int]()

    def run() -> list[str]:
        encoder = M3Encoder("tiny", shared=False)
        documents = SimpleDirectoryReader(str(files), filename_as_id=True).load_data()
        with open_store(tmp_path / "index") as store:
            add(documents, encoder, store, tmp_path / "state")
            passes.append(encoder.stats.encoded_texts)
            vectors = M3VectorStore(encoder=encoder, store=store)
            index = VectorStoreIndex.from_vector_store(vectors, embed_model=vectors.embed_model)
            everything = index.as_retriever(similarity_top_k=99).retrieve(QUERY)
            assert len(everything) == store.count()
            expected = sorted(node.get_content() for node in FILE_SPLITTER.get_nodes_from_documents(documents))
            assert sorted(each.node.get_content() for each in everything) == expected
            return expected

    write(files, a=SENTENCES[:3], b=SENTENCES[3:4], c=SENTENCES[4:5])
    pieces = run()
    assert len(pieces) == 5
    assert run() == pieces
    write(files, a=(SENTENCES[0], SENTENCES[5], SENTENCES[2]))
    (files / "b.txt").unlink()
    left = run()
    assert len(left) == 4
    assert not any(gone in piece for gone in (SENTENCES[1], SENTENCES[3]) for piece in left)
    assert run() == left
    assert passes == [5, 0, of_changed_file, 0]


def test_a_second_process_opens_what_the_first_has_stored(
    small: Path, tmp_path: Path, sentences: list[TextNode]
) -> None:
    encoder = M3Encoder(small)
    with open_store(tmp_path / "index") as store:
        index = index_of(M3VectorStore(encoder=encoder, store=store), sentences)
        expected = found(index.as_retriever(similarity_top_k=4).retrieve(QUERY))
    script = f"""
        import json
        from llama_index.core import VectorStoreIndex
        from m3_integrations import M3Encoder, open_store
        from m3_integrations.llama_index import M3VectorStore

        with open_store({str(tmp_path / "index")!r}) as store:
            encoder = M3Encoder({str(small)!r})
            vectors = M3VectorStore(encoder=encoder, store=store)
            index = VectorStoreIndex.from_vector_store(vectors, embed_model=vectors.embed_model)
            found = index.as_retriever(similarity_top_k=4).retrieve({QUERY!r})
            nodes = [(each.node.node_id, round(each.score, 4)) for each in found]
            print(json.dumps([nodes, encoder.stats.encoded_texts]))
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True
    ).stdout
    nodes, passes = json.loads(output.splitlines()[-1])
    assert [tuple(each) for each in nodes] == expected
    assert passes == 1


def test_an_index_is_loaded_again_from_its_storage_context(encoder: M3Encoder, tmp_path: Path) -> None:
    documents, folder = [document("a", 0, 1), document("b", 2)], str(tmp_path / "context")
    with open_store(tmp_path / "index") as store:
        vectors = M3VectorStore(encoder=encoder, store=store)
        index = index_of(vectors, transformations=[SPLITTER])
        index.refresh_ref_docs(documents)
        index.storage_context.persist(folder)
    with open_store(tmp_path / "index") as store:
        vectors = M3VectorStore(encoder=encoder, store=store)
        context = StorageContext.from_defaults(vector_store=vectors, persist_dir=folder)
        again = load_index_from_storage(context, embed_model=vectors.embed_model, transformations=[SPLITTER])
        assert again.refresh_ref_docs([*documents, document("c", 3)]) == [False, False, True]
        assert contents(vectors) == pieces_of(*documents, document("c", 3))


HYPOTHETICAL = "The night train to Lisbon leaves at ten."


def mean(encoder: M3Encoder, *texts: str) -> list[float]:
    average: list[float] = encoder.encode(texts, kind="query").dense.mean(axis=0).tolist()
    return average


@pytest.mark.parametrize("with_query", [True, False])
async def test_hydes_texts_decide_what_the_dense_mode_finds(
    vectors: M3VectorStore, encoder: M3Encoder, sentences: list[TextNode], with_query: bool
) -> None:
    """In the hybrid retriever and in an index alike; the lexical and the multi-vector mode have the question itself."""
    index = index_of(vectors, sentences)
    hybrid = M3HybridRetriever(encoder=encoder, store=vectors.store, similarity_top_k=6)
    hyde = HyDEQueryTransform(llm=Says(answer=HYPOTHETICAL), include_original=with_query)
    before = encoder.stats.encoded_texts
    results = []
    for inner in (hybrid, index.as_retriever(similarity_top_k=6)):
        retriever = TransformRetriever(inner, query_transform=hyde)
        results += [found(retriever.retrieve(QUERY)), found(await inner.aretrieve(hyde.run(QUERY)))]
    assert encoder.stats.encoded_texts - before == 2
    texts = encoder.encode([each.get_content(MetadataMode.EMBED) for each in sentences])
    dense = np.array(mean(encoder, HYPOTHETICAL, *([QUERY] if with_query else [])))
    dense /= np.linalg.norm(dense)
    for mode, weight in (("dense", 1.0), ("all", 1 / 3)):
        plain = {each.node.node_id: each for each in hybrid.with_options(mode=mode).retrieve(QUERY)}  # type: ignore[arg-type]
        asked = hybrid.with_options(mode=mode).retrieve(hyde.run(QUERY))  # type: ignore[arg-type]
        for each in asked:
            row = int(each.node.node_id[1:])
            other = plain[each.node.node_id]
            theirs = other.m3_scores["dense"]  # type: ignore[attr-defined]
            change = weight * (float(texts.dense[row] @ dense) - theirs)
            assert each.score == pytest.approx((other.score or 0) + change, abs=1e-3)
        if mode == "all":
            assert results == [found(asked)] * 4
    assert found(asked) != found(hybrid.retrieve(QUERY))


async def test_a_querys_own_embedding_is_honoured(on_network: M3HybridRetriever) -> None:
    encoder = on_network.encoder
    assert isinstance(encoder, M3Encoder)
    embedding = mean(encoder, HYPOTHETICAL)
    by_texts = on_network.retrieve(QueryBundle(QUERY, custom_embedding_strs=[HYPOTHETICAL]))
    for asked in (
        QueryBundle(QUERY, embedding=embedding),
        QueryBundle(QUERY, custom_embedding_strs=["other"], embedding=embedding),
    ):
        assert found(on_network.retrieve(asked)) == found(await on_network.aretrieve(asked)) == found(by_texts)
    alone = QueryBundle("", embedding=embedding)
    dense = on_network.with_options(mode="dense").retrieve(HYPOTHETICAL)
    assert found(on_network.retrieve(alone)) == found(await on_network.aretrieve(alone)) == found(dense)
    lexical = on_network.with_options(mode="lexical")
    assert found(lexical.retrieve(QueryBundle(QUERY, embedding=embedding))) == found(lexical.retrieve(QUERY))
    assert found(on_network.retrieve(QueryBundle(QUERY, custom_embedding_strs=[]))) == found(on_network.retrieve(QUERY))
    with pytest.raises(ValueError, match="a dense vector of"):
        on_network.retrieve(QueryBundle(QUERY, embedding=[0.1, 0.2]))


async def test_a_query_engine_with_hyde_costs_one_pass_a_text(
    vectors: M3VectorStore, encoder: M3Encoder, sentences: list[TextNode]
) -> None:
    engine = index_of(vectors, sentences).as_query_engine(llm=MockLLM())
    before = encoder.stats.encoded_texts
    hyde = TransformQueryEngine(engine, HyDEQueryTransform(llm=Says(answer=HYPOTHETICAL)))
    assert len(hyde.query(QUERY).source_nodes) == 2
    assert encoder.stats.encoded_texts - before == 2


def auto_retriever(index: VectorStoreIndex, answer: str, **settings: Any) -> VectorIndexAutoRetriever:
    info = VectorStoreInfo(
        content_info="sentences",
        metadata_info=[MetadataInfo(name="row", type="integer", description="the number of the sentence")],
    )
    return VectorIndexAutoRetriever(index, vector_store_info=info, llm=Says(answer=answer), **settings)


async def test_a_language_model_chooses_the_filters(vectors: M3VectorStore, sentences: list[TextNode]) -> None:
    index = index_of(vectors, sentences)
    answer = {"query": "keys", "filters": [{"key": "row", "value": 3, "operator": "<"}], "top_k": 2}
    auto = auto_retriever(index, f"```json\n{json.dumps(answer)}\n```", similarity_top_k=5)
    hybrid = M3HybridRetriever(encoder=vectors.encoder, store=vectors.store, filters={"row": {"$lt": 3}})
    expected = hybrid.retrieve("keys")
    assert found(auto.retrieve("which keys?")) == found(await auto.aretrieve("which keys?")) == found(expected)
    assert len(expected) == 2


@pytest.mark.parametrize("mode", [VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.HYBRID])
@pytest.mark.parametrize("has_vector", [False, True])
def test_a_language_model_may_leave_the_filters_alone_to_decide(
    vectors: M3VectorStore, sentences: list[TextNode], mode: VectorStoreQueryMode, has_vector: bool
) -> None:
    index = index_of(vectors, sentences)
    answer = {"query": "", "filters": [{"key": "row", "value": [1, 4], "operator": "in"}]}
    zeros = [0.0] * vectors.encoder.dim if has_vector else None
    auto = auto_retriever(index, json.dumps(answer), default_empty_query_vector=zeros, vector_store_query_mode=mode)
    assert sorted(ids_of(auto.retrieve("sentences one and four"))) == ["s1", "s4"]


def test_the_object_of_an_index_node_is_followed(vectors: M3VectorStore, on_network: M3HybridRetriever) -> None:
    index = index_of(vectors, objects=[IndexNode(text="about keys", index_id="keys", obj=on_network)])
    expected = on_network.retrieve(QUERY)
    assert found(index.as_retriever().retrieve(QUERY)) == found(expected)


def test_an_index_of_texts_and_index_nodes_is_asked_for_all_of_them_without_its_own_ids(
    vectors: M3VectorStore, sentences: list[TextNode]
) -> None:
    """`as_retriever` passes the ids of the nodes that the index itself keeps, which are the index nodes alone."""
    index = index_of(vectors, [*sentences, IndexNode(id_="i", text="about keys", index_id="keys")])
    assert ids_of(index.as_retriever(similarity_top_k=99).retrieve(QUERY)) == ["i"]
    everything = VectorIndexRetriever(index, similarity_top_k=99).retrieve(QUERY)
    assert sorted(ids_of(everything)) == ["i", *sorted(node.node_id for node in sentences)]


def test_nodes_that_were_found_can_be_added_elsewhere(fake: CountingEncoder, retriever: M3HybridRetriever) -> None:
    other = M3VectorStore(encoder=fake)
    some = [each.node for each in retriever.retrieve("keys")]
    other.add(some)
    assert {node.node_id for node in other.get_nodes()} == {node.node_id for node in some}
