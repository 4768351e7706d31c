"""The retriever's LangChain documents: how they come back, are added and replaced. The rest is in tests/adapters."""

import copy
import json
import pickle
from datetime import date, datetime

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps, loads

from m3_integrations import open_store
from m3_integrations.langchain import M3Document, M3HybridRetriever, M3Rerank
from m3_integrations.llama_index import M3HybridRetriever as NodeRetriever
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
    metadata = {"_node_content": '{"id_": "n"}', "_node_type": "TextNode", "_other": 1, "node": 2, "m3_scores": "stale"}
    store.upsert(["n"], ["a text"], [metadata], fake.encode(["a text"]))
    retriever = M3HybridRetriever(encoder=fake, store=store)
    (found,) = retriever.invoke("text")
    assert found.metadata == {"_other": 1, "node": 2, "m3_scores": "stale"}
    assert retriever.get_by_ids(["n"])[0].metadata == {"_other": 1, "node": 2, "m3_scores": "stale"}


def test_a_users_own_keys_that_look_like_a_nodes_come_back(fake: FakeEncoder) -> None:
    store = open_store()
    own = {"_node_content": "mine", "_node_count": 3, "_nodes": ["a"], "document_id": "d", "relevance_score": 0.5}
    document = Document(id="n", page_content="a text", metadata=own)
    retriever = M3HybridRetriever.from_documents([document], encoder=fake, store=store)
    assert retriever.invoke("text") == retriever.get_by_ids(["n"]) == [document]
    nodes = NodeRetriever(encoder=fake, store=store).retrieve("text")
    assert [(each.node.node_id, each.node.metadata) for each in nodes] == [("n", own)]


@pytest.mark.parametrize("content", ["not JSON", "5", "{}", "[]"])
def test_what_only_looks_like_a_node_is_a_plain_record_to_llama_index(content: str, fake: FakeEncoder) -> None:
    store = open_store()
    own = {"_node_content": content, "_node_type": "Mine", "n": 1}
    retriever = M3HybridRetriever.from_texts(["a text"], [own], ids=["n"], encoder=fake, store=store)
    assert retriever.get_by_ids(["n"])[0].metadata == own
    (found,) = NodeRetriever(encoder=fake, store=store).retrieve("text")
    assert (found.node.get_content(), found.score is not None) == ("a text", True)


def test_scores_are_attributes_and_no_part_of_what_a_document_is(documents: list[Document]) -> None:
    retriever = M3HybridRetriever.from_documents(documents, encoder=FakeEncoder(), k=3)
    first, second = retriever.invoke("keys")[0], retriever.invoke("rotate the keys", k=40)
    again = next(document for document in second if document.id == first.id)
    assert isinstance(first, M3Document)
    assert isinstance(again, M3Document)
    assert first.score != again.score
    assert set(first.m3_scores) == {"dense", "lexical", "multi_vector"}
    stored = next(document for document in documents if document.id == first.id)
    assert first == again == stored
    assert stored == first
    assert not first != stored  # noqa: SIM202 - the operator is what is tried
    assert first in documents
    assert dumps(first) == dumps(again) == dumps(stored)
    assert json.loads(dumps(first))["id"] == Document.lc_id()
    for twin in (first.model_copy(deep=True), pickle.loads(pickle.dumps(first))):
        assert (twin, twin.score, twin.m3_scores) == (first, first.score, first.m3_scores)
    assert first != Document(id=first.id, page_content="other", metadata=first.metadata)
    assert first != "text"


@pytest.mark.filterwarnings("ignore")  # `loads` is beta, and its default argument will change
def test_what_langchain_writes_of_a_result_with_dates_can_be_read(fake: FakeEncoder) -> None:
    metadata = {"day": date(2024, 5, 1), "loc": [{"at": datetime(2024, 5, 1, 12)}], "n": 1}
    (found,) = M3HybridRetriever.from_texts(["keys"], [metadata], ids=["a"], encoder=fake).invoke("keys")
    assert found.metadata == metadata
    written = {"day": "2024-05-01", "loc": [{"at": "2024-05-01T12:00:00"}], "n": 1}
    assert loads(dumps(found)) == Document(id="a", page_content="keys", metadata=written)


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


def test_what_are_no_documents_is_refused_with_what_to_pass(retriever: M3HybridRetriever) -> None:
    for wrong, message in (
        (Document("a"), r"got one Document: pass \[document\]"),
        ("abc", "got one str"),
        (None, "got one NoneType"),
        ([Document("a"), "abc"], "got str at position 1: pass Document"),
        ([{"page_content": "a"}], "got dict at position 0"),
    ):
        for add in (
            retriever.add_documents,
            lambda each: M3HybridRetriever.from_documents(each, encoder=FakeEncoder()),
        ):
            with pytest.raises(TypeError, match=message):
                add(wrong)  # type: ignore[arg-type]
    assert retriever.store.count() == 40
