"""The retriever's LangChain documents: how they come back, are added and replaced. The rest is in tests/adapters."""

import copy

import pytest
from langchain_core.documents import Document

from m3_integrations import open_store
from m3_integrations.langchain import M3HybridRetriever, M3Rerank
from tests.fakes import FakeEncoder


def ids_of(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


def test_a_result_is_the_document_with_its_id_text_and_metadata(documents: list[Document]) -> None:
    retriever = M3HybridRetriever.from_documents(documents, encoder=FakeEncoder(), k=40)
    own = {document.id: document for document in documents}
    found = retriever.invoke("keys")
    assert sorted(document.id or "" for document in found) == sorted(document.id or "" for document in documents)
    for document in found:
        assert document == own[document.id]
        assert own[document.id] == document


def test_a_retriever_is_made_of_any_iterable_and_of_an_empty_one(fake: FakeEncoder, documents: list[Document]) -> None:
    texts = M3HybridRetriever.from_texts((t for t in ["a", "b"]), ({"n": i} for i in range(2)), encoder=fake)
    assert sorted((d.page_content, d.metadata["n"]) for d in texts.invoke("a")) == [("a", 0), ("b", 1)]
    assert len(M3HybridRetriever.from_documents(iter(documents), encoder=fake, k=50).invoke("a")) == 40
    assert M3HybridRetriever.from_texts([], encoder=fake).invoke("a") == []
    assert M3HybridRetriever.from_documents([], encoder=fake).invoke("a") == []


async def test_documents_are_not_changed_and_those_returned_are_copies(
    fake: FakeEncoder, documents: list[Document]
) -> None:
    untouched = copy.deepcopy(documents)
    retriever = M3HybridRetriever(encoder=fake)
    assert retriever.add_documents(documents) == await retriever.aadd_documents(documents) == ids_of(untouched)
    assert documents == untouched
    for changed in (*documents, *retriever.get_by_ids(["d00", "d01"])):
        changed.page_content = "changed"
        changed.metadata["nested"]["list"].append("changed")
        changed.metadata.clear()
    assert retriever.get_by_ids(["d00", "d01"]) == untouched[:2]


async def test_documents_come_by_their_ids_in_the_given_order(
    retriever: M3HybridRetriever, documents: list[Document]
) -> None:
    expected = [documents[7], documents[5]]
    assert retriever.get_by_ids(["d07", "nobody", "d05"]) == expected
    assert await retriever.aget_by_ids(["d07", "nobody", "d05"]) == expected


def test_a_result_added_again_does_not_carry_its_scores_into_the_index(retriever: M3HybridRetriever) -> None:
    found = retriever.invoke("keys", k=3)
    assert retriever.add_documents(found) == ids_of(found)
    best = M3Rerank(encoder=retriever.encoder).compress_documents(found, "keys")
    assert all({"m3_scores", "relevance_score"} <= document.metadata.keys() for document in best)
    assert retriever.add_documents(best) == ids_of(best)
    assert sorted(retriever.get_by_ids([str(d.id) for d in found]), key=str) == sorted(found, key=str)
    own = Document(id="new", page_content="new", metadata={"relevance_score": 2, "kept": 3})
    retriever.add_documents([own])
    assert retriever.get_by_ids(["new"]) == [own]


def test_what_the_llama_index_adapter_keeps_for_itself_is_left_out(fake: FakeEncoder) -> None:
    store = open_store()
    store.bind(fake.fingerprint)
    metadata = {"_node_content": "{}", "_node_type": "TextNode", "_other": 1, "node": 2, "m3_scores": "stale"}
    store.upsert(["n"], ["a text"], [metadata], fake.encode(["a text"]))
    retriever = M3HybridRetriever(encoder=fake, store=store)
    (found,) = retriever.invoke("text")
    assert found.metadata == {"_other": 1, "node": 2, "m3_scores": "stale"}
    assert retriever.get_by_ids(["n"])[0].metadata == {"_other": 1, "node": 2, "m3_scores": "stale"}


def test_ids_beside_the_documents_take_precedence(fake: FakeEncoder) -> None:
    retriever = M3HybridRetriever(encoder=fake)
    ids = retriever.add_documents([Document("a"), Document("b", id="mine")])
    assert (len(ids[0]), ids[1]) == (36, "mine")
    assert retriever.add_documents([Document("c", id="x")], ids=["y"]) == ["y"]
    assert [document.page_content for document in retriever.get_by_ids([*ids, "x", "y"])] == ["a", "b", "c"]


def test_additions_that_do_not_fit_together_are_refused(retriever: M3HybridRetriever) -> None:
    with pytest.raises(ValueError, match="2 texts and 1 ids"):
        retriever.add_documents([Document("a"), Document("b")], ids=["1"])
    with pytest.raises(TypeError, match="one string"):
        retriever.add_texts("text")
    assert retriever.store.count() == 40
