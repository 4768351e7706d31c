"""What both frameworks' `M3HybridRetriever` adds, replaces and deletes."""

import copy
from typing import Any

import pytest

from m3_integrations import open_store
from tests.adapters.drivers import LangChainRetriever, LlamaIndexRetriever, Retriever
from tests.fakes import FakeEncoder


async def test_results_are_independent_of_the_index_and_of_what_was_added(make: type[Retriever]) -> None:
    retriever, own = make(encoder=FakeEncoder(), k=9), [{"nested": {"list": [row]}} for row in range(5)]
    untouched, texts, ids = copy.deepcopy(own), [f"keys {row}" for row in range(5)], list("abcde")
    assert retriever.add(texts, ids=ids, metadatas=own) == ids
    assert await retriever.aadd(texts, ids=ids, metadatas=own) == ids
    assert own == untouched
    results = retriever.search("keys")
    for metadata in (*own, *(each.metadata for each in retriever.search("keys"))):
        metadata["nested"]["list"].append("changed")
        metadata.clear()
    assert retriever.search("keys") == await retriever.asearch("keys") == results
    assert sorted(each.metadata["nested"]["list"] for each in results) == [[row] for row in range(5)]


def test_any_iterable_is_indexed_and_an_empty_one_too(make: type[Retriever], fake: FakeEncoder) -> None:
    retriever = make(encoder=fake, k=9)
    assert retriever.add([]) == []
    assert retriever.search("a") == []
    retriever.add((text for text in ["a", "b"]), metadatas=({"n": i} for i in range(2)), ids=iter("xy"))
    assert sorted((each.id, each.text, each.metadata["n"]) for each in retriever.search("a")) == [
        ("x", "a", 0), ("y", "b", 1)
    ]  # fmt: skip


def test_documents_without_an_id_get_one(make: type[Retriever], fake: FakeEncoder) -> None:
    retriever = make(encoder=fake, k=9)
    ids = retriever.add(["a", "b", "a"], ids=[None, "mine", None])
    assert ids[1] == "mine"
    assert [len(ids[0]), len(ids[2]), len(set(ids))] == [36, 36, 3]
    assert sorted((str(each.id), each.text) for each in retriever.search("a")) == sorted(zip(ids, "aba", strict=True))


def test_documents_of_the_same_text_stay_apart(make: type[Retriever], fake: FakeEncoder) -> None:
    retriever = make(encoder=fake, k=4)
    retriever.add(["same", "same"], ids=["b", "a"], metadatas=[{"n": 1}, {"n": 2}])
    assert [(each.id, each.metadata["n"]) for each in retriever.search("same")] == [("a", 2), ("b", 1)]


async def test_adding_an_id_again_replaces_its_document(make: type[Retriever], fake: FakeEncoder) -> None:
    retriever = make(encoder=fake, k=9)
    retriever.add(["old one", "other"], ids=["1", "2"])
    assert retriever.add(["new one"], ids=["1"], metadatas=[{"v": 2}]) == ["1"]
    assert await retriever.aadd(["newest one", "the very newest"], ids=["2", "2"]) == ["2", "2"]
    found = retriever.search("one")
    assert sorted((each.id, each.text, tuple(each.metadata.items())) for each in found) == [
        ("1", "new one", (("v", 2),)), ("2", "the very newest", ())
    ]  # fmt: skip
    assert retriever.made.store.count() == 2


async def test_documents_are_deleted_by_id_or_by_filter(filled: Retriever) -> None:
    assert filled.delete(["d00", "not there", "d01"]) == 2
    assert filled.delete(["d00"]) == filled.delete([]) == 0
    assert await filled.adelete(["d02"]) == 1
    assert filled.delete(filter={"row": {"$lt": 5}}) == 2
    assert await filled.adelete(filter={"row": 5}) == 1
    assert sorted(each.metadata["row"] for each in filled.search("keys", k=40)) == list(range(6, 40))
    assert sorted(each.metadata["row"] for each in await filled.asearch("keys", k=40)) == list(range(6, 40))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "either ids or a filter"),
        ({"ids": ["d00"], "filter": {"row": 0}}, ValueError, "either ids or a filter"),
        ({"filter": {}}, ValueError, "empty filter matches everything"),
        ({"ids": "d00"}, TypeError, r"pass \['d00'\]"),
        ({"filter": {"row": {"$near": 1}}}, ValueError, r"unknown \$near"),
    ],
)
async def test_a_deletion_that_might_be_a_mistake_is_refused(
    filled: Retriever, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        filled.delete(**arguments)
    with pytest.raises(error, match=message):
        await filled.adelete(**arguments)
    assert filled.made.store.count() == 40


def test_no_store_is_a_new_one_in_memory_and_an_empty_one_is_used(make: type[Retriever], fake: FakeEncoder) -> None:
    store = open_store()
    one, two, three = make(encoder=fake), make(encoder=fake, store=None), make(encoder=fake, store=store)
    one.add(["a"])
    three.add(["a"])
    assert [each.text for each in one.search("a")] == ["a"]
    assert two.search("a") == []
    assert store.count() == 1


def test_a_progress_bar_is_drawn_only_on_request(
    on_network: Retriever, make: type[Retriever], capsys: pytest.CaptureFixture[str]
) -> None:
    on_network.add(["one more"])
    assert capsys.readouterr().err == ""
    make(encoder=on_network.made.encoder, show_progress=True).add(["x", "y"])
    assert "2/2" in capsys.readouterr().err


def test_ids_of_a_wrong_type_are_refused_and_nothing_is_deleted(filled: Retriever) -> None:
    for wrong, message in (("d00", "got the string 'd00'"), (["d00", 1], "ids must be strings, got 1 at position 1")):
        with pytest.raises(TypeError, match=message):
            filled.delete(wrong)
        if isinstance(filled, LangChainRetriever):
            with pytest.raises(TypeError, match=message):
                filled.made.get_by_ids(wrong)  # type: ignore[arg-type]
    if isinstance(filled, LlamaIndexRetriever):
        with pytest.raises(TypeError, match="ref_doc_id must be a string, got 1"):
            filled.made.delete_ref_doc(1)  # type: ignore[arg-type]
    assert filled.made.store.count() == 40
