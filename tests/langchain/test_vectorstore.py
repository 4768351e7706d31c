"""The vector store by itself: adding, deleting, every kind of search, and the retriever that it makes."""

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.load import dumpd, load
from langchain_core.vectorstores import VectorStoreRetriever
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import ValidationError

from m3_integrations import M3Encoder, ModeWeights, open_store
from m3_integrations.langchain import M3Document, M3Embeddings, M3HybridRetriever, M3Rerank, M3VectorStore
from tests.fakes import DIM, FakeEncoder
from tests.langchain.test_retriever_contract import Recorder


@pytest.fixture
def vectors(fake: FakeEncoder, documents: list[Document]) -> M3VectorStore:
    filled = M3VectorStore.from_documents(documents, encoder=fake)
    fake.encoded.clear()
    return filled


def ids_of(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


# How it is made


async def test_each_way_to_make_one_adds_what_it_is_given(fake: FakeEncoder) -> None:
    embeddings = M3Embeddings(encoder=fake)
    documents = [Document("a", id="1"), Document("b", metadata={"n": 2})]
    for made in (
        M3VectorStore.from_documents(documents, embeddings, ids=["1", "2"]),
        await M3VectorStore.afrom_documents(iter(documents), encoder=fake, ids=["1", "2"]),
        M3VectorStore.from_texts(["a", "b"], embeddings, [{}, {"n": 2}], ids=["1", "2"]),
        await M3VectorStore.afrom_texts(["a", "b"], embeddings, metadatas=[{}, {"n": 2}], ids=["1", "2"], k=1),
    ):
        assert made.get_by_ids(["2", "1"]) == [Document("b", id="2", metadata={"n": 2}), Document("a", id="1")]
        assert made.encoder is made.embeddings.encoder is fake


def test_a_model_can_be_named_and_settings_are_those_of_a_retriever(small: Path) -> None:
    vectors = M3VectorStore(model=str(small), model_kwargs={"device": "cpu"}, k=1, mode="dense")
    assert isinstance(vectors.encoder, M3Encoder)
    vectors.add_texts(["a", "b"])
    (found,) = vectors.similarity_search("a")
    assert (found.page_content, found.score) == ("a", pytest.approx(1, abs=1e-5))  # type: ignore[attr-defined]


def test_a_foreign_embedding_is_refused_and_nothing_is_stored(fake: FakeEncoder) -> None:
    store = open_store()
    with pytest.raises(TypeError, match="must be M3Embeddings, got DeterministicFakeEmbedding"):
        M3VectorStore.from_texts(["a"], DeterministicFakeEmbedding(size=DIM), store=store)
    assert store.count() == 0
    with pytest.raises(ValueError, match="leave out encoder="):
        M3VectorStore(M3Embeddings(encoder=fake), encoder=fake)
    with pytest.raises(ValueError, match="pass model="):
        M3VectorStore()
    with pytest.raises(ValidationError, match="top_k"):
        M3VectorStore(encoder=fake, top_k=3)
    with pytest.raises(ValidationError, match="k must be at least 1"):
        M3VectorStore.from_texts(["a"], encoder=fake, k=0)
    assert fake.encoded == []


# Adding and deleting


async def test_arguments_that_langchain_hands_to_any_store_are_taken_and_others_refused(fake: FakeEncoder) -> None:
    vectors = M3VectorStore(encoder=fake)
    assert vectors.add_documents([Document("a")], ids=["1"], batch_size=7) == ["1"]
    assert await vectors.aadd_texts(["b"], ids=["2"], current_time=None) == ["2"]
    wrong: list[dict[str, Any]] = [{"id": ["3"]}, {"metadata": [{}]}]
    for arguments in wrong:
        with pytest.raises(TypeError, match="there is no argument"):
            vectors.add_texts(["c"], **arguments)
        with pytest.raises(TypeError, match="there is no argument"):
            await vectors.aadd_documents([Document("c")], **arguments)
    assert vectors.store.count() == 2


async def test_documents_are_deleted_by_ids_by_a_filter_or_all(vectors: M3VectorStore) -> None:
    assert vectors.delete(["d00", "nobody"])
    assert await vectors.adelete(filter={"row": {"$lt": 10}})
    assert vectors.store.count() == 30
    assert vectors.delete([])
    everything: list[dict[str, Any]] = [{}, {"$and": [{}]}]
    for refused in everything:
        with pytest.raises(ValueError, match="matches everything"):
            vectors.delete(filter=refused)
    with pytest.raises(ValueError, match="either ids or a filter"):
        vectors.delete(["d20"], filter={"row": 20})
    assert vectors.store.count() == 30
    assert await vectors.adelete()
    assert vectors.store.count() == 0
    assert vectors.delete()


def test_documents_take_the_place_of_what_their_source_had(fake: FakeEncoder) -> None:
    vectors = M3VectorStore(encoder=fake)
    first = [Document("one", metadata={"source": "a"}), Document("two", metadata={"source": "a"})]
    ids = vectors.add_documents([*first, Document("other", metadata={"source": "b"})], source_key="source")
    assert vectors.add_documents(first, source_key="source") == ids[:2]
    assert len(fake.encoded) == 3
    vectors.add_documents([Document("two", metadata={"source": "a", "new": True})], source_key="source")
    assert len(fake.encoded) == 3
    assert vectors.get_by_ids(ids) == [
        Document("two", id=ids[1], metadata={"source": "a", "new": True}),
        Document("other", id=ids[2], metadata={"source": "b"}),
    ]


async def test_a_reranked_document_that_replaces_does_not_bring_its_scores(fake: FakeEncoder) -> None:
    vectors = M3VectorStore.from_documents([Document("one", metadata={"s": 1})], encoder=fake, source_key="s")
    reranked = M3Rerank(encoder=fake).compress_documents(vectors.similarity_search("one"), "one")
    await vectors.aadd_documents(reranked, source_key="s")
    (record,) = vectors.store.records()
    assert record.metadata == {"s": 1}


# Searching


async def test_a_search_finds_what_the_retriever_finds(vectors: M3VectorStore, documents: list[Document]) -> None:
    retriever = M3HybridRetriever(encoder=vectors.encoder, store=vectors.store)
    asked: list[dict[str, Any]] = [
        {},
        {"k": 7},
        {"k": 3, "filter": {"row": {"$gte": 20}}},
        {"mode": "dense+lexical", "weights": ModeWeights(1, 3, 0)},
        {"fusion": "rrf", "bm25": "extra"},
        {"score_threshold": 0.1, "k": 40},
    ]
    own = {document.id: document for document in documents}
    for options in asked:
        expected = retriever.invoke("keys tea", **options)
        scored = vectors.similarity_search_with_score("keys tea", **options)
        assert scored == await vectors.asimilarity_search_with_score("keys tea", **options)
        assert vectors.similarity_search("keys tea", **options) == expected
        assert await vectors.asimilarity_search("keys tea", **options) == expected
        assert [document for document, _ in scored] == expected == [own[document.id] for document in expected]
        assert [score for _, score in scored] == [d.score for d in expected if isinstance(d, M3Document)]
    with pytest.raises(TypeError, match="a search has no option kk"):
        vectors.similarity_search("keys", kk=3)  # type: ignore[call-arg]


async def test_relevance_scores_are_the_scores_on_a_scale_from_0_to_1(vectors: M3VectorStore) -> None:
    asked: list[dict[str, Any]] = [{"mode": "dense"}, {"mode": "dense", "k": 9, "filter": {"row": {"$gte": 20}}}]
    for options in asked:
        scored = vectors.similarity_search_with_score("keys", **options)
        found = vectors.similarity_search_with_relevance_scores("keys", **options)
        assert found == await vectors.asimilarity_search_with_relevance_scores("keys", **options)
        assert ids_of([d for d, _ in found]) == ids_of([d for d, _ in scored])
        assert [each for _, each in found] == pytest.approx([(1 + score) / 2 for _, score in scored])
    every = vectors.similarity_search_with_relevance_scores("keys", k=40)
    threshold = every[4][1]
    assert vectors.similarity_search_with_relevance_scores("keys", k=40, score_threshold=threshold) == every[:5]
    store = M3VectorStore(encoder=vectors.encoder, store=vectors.store, mode="dense", k=40)
    assert len(store.similarity_search_with_relevance_scores("keys")) == 40
    assert len(await store.asimilarity_search_with_relevance_scores("keys", 7, score_threshold=0)) == 7
    (best, score), *_ = store.similarity_search_with_relevance_scores(vectors.get_by_ids(["d03"])[0].page_content)
    assert best.id == "d03"
    assert score == pytest.approx(1, abs=1e-6)


async def test_a_vector_finds_what_its_text_finds_by_the_dense_mode_alone(
    vectors: M3VectorStore, fake: FakeEncoder
) -> None:
    embedded = vectors.embeddings.embed_query("keys tea")
    for k in (None, 7):
        expected = vectors.similarity_search("keys tea", k, mode="dense", filter={"row": {"$lt": 30}})
        fake.encoded.clear()
        for vector in (embedded, np.array(embedded) * 5):
            found = vectors.similarity_search_by_vector(vector, k, filter={"row": {"$lt": 30}})
            assert found == await vectors.asimilarity_search_by_vector(vector, k, filter={"row": {"$lt": 30}})
            assert found == expected
            assert [list(d.m3_scores) for d in found if isinstance(d, M3Document)] == [["dense"]] * len(expected)
        assert fake.encoded == []
    scores = [d.score for d in expected if isinstance(d, M3Document)]
    assert len(vectors.similarity_search_by_vector(embedded, 40, score_threshold=scores[2] - 1e-6)) >= 3


def test_a_vector_ranks_by_the_dense_mode_whatever_the_stores_own_options_are(vectors: M3VectorStore) -> None:
    embedded = vectors.embeddings.embed_query("keys tea")
    expected = vectors.similarity_search_by_vector(embedded)
    for settings in ({"mode": "lexical"}, {"weights": ModeWeights(0, 1, 0)}, {"bm25": "extra", "fusion": "rrf"}):
        own = M3VectorStore(encoder=vectors.encoder, store=vectors.store, **settings)
        found = own.similarity_search_by_vector(embedded)
        assert found == expected
        assert [d.score for d in found if isinstance(d, M3Document)] == [
            d.score for d in expected if isinstance(d, M3Document)
        ]
        assert len(own.max_marginal_relevance_search_by_vector(embedded, 3)) == 3


async def test_a_vector_of_another_model_is_refused(vectors: M3VectorStore) -> None:
    for bad in ([1.0] * (DIM + 1), [], [float("nan")] * DIM, [[1.0] * DIM]):
        with pytest.raises(ValueError, match="must be 8 finite numbers"):
            vectors.similarity_search_by_vector(bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be 8 finite numbers"):
            await vectors.amax_marginal_relevance_search_by_vector(bad)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"of fake must be .* finite numbers, got shape \(768,\): \[0.5 0.5 0.5 ... 0.5 0.5 0.5\]$"
    ):
        vectors.similarity_search_by_vector([0.5] * 768)


async def test_diverse_results_are_chosen_from_the_best_of_all_modes(vectors: M3VectorStore, fake: FakeEncoder) -> None:
    candidates = vectors.similarity_search("keys tea", 9)
    dense = fake.encode([document.page_content for document in candidates]).dense.tolist()
    query = fake.encode(["keys tea"], kind="query").dense[0]
    expected = [candidates[row] for row in maximal_marginal_relevance(query, dense, 0.3, 5)]
    assert expected != candidates[:5]
    fake.encoded.clear()
    assert vectors.max_marginal_relevance_search("keys tea", 5, 9, 0.3) == expected
    assert await vectors.amax_marginal_relevance_search("keys tea", 5, 9, 0.3) == expected
    assert fake.encoded == [("query", "keys tea")] * 2
    assert len(vectors.max_marginal_relevance_search("keys tea", 12, fetch_k=3)) == 12
    assert len(vectors.max_marginal_relevance_search("keys tea")) == 4
    found = vectors.max_marginal_relevance_search("keys tea", filter={"row": {"$lt": 3}})
    assert sorted(d.metadata["row"] for d in found) == [0, 1, 2]
    with pytest.raises(ValueError, match="ranked by dense vectors"):
        vectors.max_marginal_relevance_search("keys tea", mode="lexical")
    with pytest.raises(ValueError, match="from 0 to 1"):
        vectors.max_marginal_relevance_search("keys tea", lambda_mult=2)
    for wrong, message in (
        ({"lambda_mult": "0.5"}, "must be a number, got '0.5'"),
        ({"fetch_k": 2.5}, "fetch_k must be"),
    ):
        with pytest.raises(TypeError, match=message):
            vectors.max_marginal_relevance_search("keys tea", **wrong)
        with pytest.raises(TypeError, match=message):
            await vectors.amax_marginal_relevance_search("keys tea", **wrong)


async def test_a_threshold_of_relevance_that_is_no_number_is_refused(vectors: M3VectorStore) -> None:
    for wrong in ("0.5", float("nan"), True):
        asked: Any = {"score_threshold": wrong}
        for search in (vectors.similarity_search_with_relevance_scores, vectors.similarity_search_with_score):
            with pytest.raises((TypeError, ValueError), match=r"score_threshold must be (a number|finite), got"):
                search("keys tea", **asked)
        with pytest.raises((TypeError, ValueError), match=r"score_threshold must be (a number|finite), got"):
            await vectors.asimilarity_search_with_relevance_scores("keys tea", **asked)


async def test_diverse_results_by_a_vector_are_chosen_from_the_best_by_the_dense_mode(
    vectors: M3VectorStore, fake: FakeEncoder
) -> None:
    query = fake.encode(["keys tea"], kind="query").dense[0]
    expected = vectors.max_marginal_relevance_search("keys tea", 5, 9, 0.3, mode="dense", filter={"row": {"$lt": 30}})
    fake.encoded.clear()
    asked: dict[str, Any] = {"fetch_k": 9, "lambda_mult": 0.3, "filter": {"row": {"$lt": 30}}}
    assert vectors.max_marginal_relevance_search_by_vector(query.tolist(), 5, **asked) == expected
    assert await vectors.amax_marginal_relevance_search_by_vector(query, 5, **asked) == expected
    assert fake.encoded == []


async def test_async_never_blocks_the_event_loop(documents: list[Document]) -> None:
    """A thread sleeps in the encoder; a task that wakes every 10 ms must not notice."""
    vectors = M3VectorStore(encoder=FakeEncoder(delay_s=0.2), mode="dense")
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - before)

    watcher = asyncio.create_task(watch())
    await vectors.aadd_documents(documents[:1])
    await vectors.aadd_documents([Document("x", metadata={"s": 1})], source_key="s")
    await vectors.asimilarity_search("keys")
    await vectors.asimilarity_search_with_relevance_scores("keys")
    await vectors.amax_marginal_relevance_search("keys")
    await M3VectorStore.afrom_documents(documents[:1], encoder=vectors.encoder)
    watcher.cancel()
    assert longest < 0.15


# As a retriever


async def test_it_makes_a_hybrid_retriever_with_its_own_options(vectors: M3VectorStore) -> None:
    store = M3VectorStore(vectors.embeddings, store=vectors.store, k=6, mode="dense", filter={"row": {"$lt": 20}})
    retriever = store.as_retriever(search_kwargs={"k": 2}, weights="miracl", tags=["mine"], name="ours")
    assert isinstance(retriever, M3HybridRetriever)
    assert (retriever.encoder, retriever.store) == (store.encoder, store.store)
    assert (retriever.k, retriever.mode, retriever.weights) == (2, "dense", "miracl")
    assert retriever.filter == {"row": {"$lt": 20}}
    assert (retriever.tags, retriever.name) == (["mine"], "ours")
    assert retriever.invoke("keys") == store.similarity_search("keys", 2)
    assert await retriever.ainvoke("keys", k=5) == await store.asimilarity_search("keys", 5)
    assert store.as_retriever().tags == ["M3VectorStore", "M3Embeddings"]
    assert len(store.as_retriever().invoke("keys")) == 6


def test_its_retrievers_have_its_own_tags_and_a_subclasss_search(vectors: M3VectorStore) -> None:
    tagged = M3VectorStore(vectors.embeddings, store=vectors.store, tags=["ours"])
    assert tagged.as_retriever().tags == ["ours", "M3VectorStore", "M3Embeddings"]
    assert tagged.as_retriever(tags=[]).tags == ["ours", "M3VectorStore", "M3Embeddings"]

    class Own(M3VectorStore):
        def similarity_search(self, query: str, k: int | None = None, **kwargs: Any) -> list[Document]:
            return [Document(page_content=f"{query} {k}")]

    own = Own(vectors.embeddings, store=vectors.store)
    assert own.as_retriever(search_kwargs={"k": 2}).invoke("keys") == [Document(page_content="keys 2")]


def test_a_copy_of_it_or_of_its_retriever_uses_the_same_records(vectors: M3VectorStore) -> None:
    for copied in (copy.deepcopy(vectors), copy.copy(vectors)):
        assert copied.store is vectors.store
    retriever = copy.deepcopy(vectors.as_retriever())
    assert retriever.invoke("keys") == vectors.as_retriever().invoke("keys")


def test_its_retrievers_share_one_bm25_index(vectors: M3VectorStore) -> None:
    vectors.similarity_search("keys", bm25="extra")
    made = vectors._searcher._bm25
    retriever = vectors.as_retriever(bm25="extra")
    assert isinstance(retriever, M3HybridRetriever)
    assert retriever._searcher()._bm25 is made


async def test_the_other_search_types_are_langchains_own(vectors: M3VectorStore) -> None:
    diverse = vectors.as_retriever(search_type="mmr", search_kwargs={"k": 3, "fetch_k": 9, "lambda_mult": 0.2})
    expected = vectors.max_marginal_relevance_search("keys tea", 3, 9, 0.2)
    assert diverse.invoke("keys tea") == await diverse.ainvoke("keys tea") == expected
    every = vectors.similarity_search_with_relevance_scores("keys tea", k=40)
    above = vectors.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": every[6][1], "k": 40}
    )
    assert above.invoke("keys tea") == await above.ainvoke("keys tea") == [document for document, _ in every[:7]]
    plain = VectorStoreRetriever(vectorstore=vectors)
    assert plain.invoke("keys", k=2, filter={"row": 3}) == vectors.similarity_search("keys", 2, filter={"row": 3})


def test_what_a_retriever_does_not_know_is_refused(vectors: M3VectorStore) -> None:
    for settings in (
        {"search_type": "bm25"},
        {"search_kwargs": {"fetch_k": 3}},
        {"kk": 3},
        {"search_kwargs": {"k": 0}},
    ):
        with pytest.raises(ValidationError):
            vectors.as_retriever(**settings)


# Written down


def test_what_langchain_writes_down_names_the_parts_and_holds_no_document(vectors: M3VectorStore) -> None:
    assert repr(vectors) == "M3VectorStore(model='fake', store=MemoryStore)"
    parts: list[Any] = [vectors, vectors.embeddings, vectors.as_retriever(), vectors.as_retriever(search_type="mmr")]
    for part in [*parts, M3Rerank(encoder=vectors.encoder)]:
        written = json.dumps(dumpd(part))
        assert type(part).__name__ in written
        assert '"not_implemented"' in written
        assert "vault" not in written
        assert len(written) < 1000


def test_a_callback_sees_which_store_was_asked(vectors: M3VectorStore) -> None:
    recorder = Recorder()
    vectors.as_retriever(search_type="mmr").invoke("keys", {"callbacks": [recorder]})
    (start,) = recorder.starts
    assert start["metadata"]["ls_vector_store_provider"] == "M3VectorStore"
    assert start["metadata"]["ls_embedding_provider"] == "M3Embeddings"


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_a_found_document_is_written_down_and_read_as_a_document(vectors: M3VectorStore) -> None:
    (found,) = vectors.similarity_search("keys", 1)
    assert load(dumpd(found), allowed_objects=[Document]) == vectors.get_by_ids([str(found.id)])[0]
