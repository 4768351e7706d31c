"""What the retriever finds, returns and stores."""

import copy
from typing import Any, get_args

import numpy as np
import pytest
from langchain_core.documents import Document

from m3_integrations import M3Encoder, ModeWeights, Searcher, SearchOptions, open_store
from m3_integrations.langchain import M3HybridRetriever
from m3_integrations.search import SearchMode
from m3_integrations.store import matches, parse_filter
from tests.fakes import FakeEncoder
from tests.langchain.conftest import SENTENCES
from tests.test_filters import random_filter
from tests.test_search import expected_ranking, make_texts

QUERY = "rotate the keys"


def ids_of(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


def expected(retriever: M3HybridRetriever, query: str, **asked: Any) -> list[tuple[str, float]]:
    if isinstance(asked.get("weights"), str):
        asked["weights"] = ModeWeights.preset(asked["weights"])
    ranked, _ = expected_ranking(Searcher(retriever.encoder, retriever.store), query, SearchOptions(**asked))
    return ranked


async def test_every_setting_of_a_call_or_of_the_constructor_is_honoured(retriever: M3HybridRetriever) -> None:
    """Against the definition in float64, sync and async."""
    random = np.random.default_rng(11)
    for trial in range(60):
        asked = {
            "k": int(random.integers(1, 9)),
            "mode": get_args(SearchMode)[trial % 5],
            "weights": ModeWeights(*random.uniform(0.05, 1, 3)),
            "filter": random_filter(random) if trial % 2 else {},
            "score_threshold": 0.1 if trial % 3 == 0 else -9.0,
        }
        query = make_texts(random, 1)[0]
        ranked = expected(retriever, query, **asked)
        settled = M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, **asked)
        for found in (
            retriever.invoke(query, **asked),
            await retriever.ainvoke(query, **asked),
            settled.invoke(query),
            await settled.ainvoke(query),
        ):
            assert ids_of(found) == [id_ for id_, _ in ranked]
            scores = [document.metadata["relevance_score"] for document in found]
            assert scores == pytest.approx([score for _, score in ranked], abs=1e-5)


def test_settings_of_a_call_take_the_place_of_the_constructors(retriever: M3HybridRetriever) -> None:
    first = {"k": 2, "mode": "all", "weights": "miracl", "filter": {"row": {"$lt": 20}}, "score_threshold": 0.3}
    settled = M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, **first)  # type: ignore[arg-type]
    other = {"k": 5, "mode": "dense", "weights": "mldr", "filter": {"row": {"$gte": 20}}, "score_threshold": 0.9}
    for name, value in other.items():
        found = settled.invoke("keys vault", None, **{name: value})
        assert ids_of(found) == [id_ for id_, _ in expected(retriever, "keys vault", **{**first, name: value})]
        assert found != settled.invoke("keys vault")
    assert len(settled.invoke("keys vault", filter={}, k=40, score_threshold=-1.0)) == 40


def test_pool_size_fusion_and_bm25_reach_the_search(retriever: M3HybridRetriever) -> None:
    searcher = Searcher(retriever.encoder, retriever.store)
    for asked in ({"pool_size": 1, "k": 1}, {"fusion": "rrf", "rrf_k": 2}, {"bm25": "replace", "mode": "lexical"}):
        hits = searcher.search("tea rain", SearchOptions(**asked))
        settled = M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, **asked)
        found = settled.invoke("tea rain")
        assert [(d.id, d.metadata["relevance_score"]) for d in found] == [(hit.id, hit.score) for hit in hits]
        assert [d.metadata["m3_scores"] for d in found] == [hit.scores for hit in hits]


def test_results_carry_the_combined_score_and_the_raw_score_of_every_mode(
    sentences: M3HybridRetriever, encoder: M3Encoder
) -> None:
    found = sentences.invoke(QUERY, k=6, weights="miracl")
    scores = encoder.score(QUERY, [document.page_content for document in found], weights=ModeWeights.preset("miracl"))
    assert [d.metadata["relevance_score"] for d in found] == pytest.approx(scores.combined.tolist(), abs=1e-5)
    for mode in ("dense", "lexical", "multi_vector"):
        assert [d.metadata["m3_scores"][mode] for d in found] == pytest.approx(getattr(scores, mode).tolist(), abs=1e-5)
    ranked = [d.metadata["relevance_score"] for d in found]
    assert ranked == sorted(ranked, reverse=True)
    values = [v for d in found for v in (d.metadata["relevance_score"], *d.metadata["m3_scores"].values())]
    assert {type(value) for value in values} == {float}


def test_a_result_is_the_document_with_its_id_text_and_metadata(documents: list[Document]) -> None:
    retriever = M3HybridRetriever.from_documents(documents, encoder=FakeEncoder(), k=40)
    own = {document.id: document for document in documents}
    found = retriever.invoke("keys")
    assert sorted(document.id or "" for document in found) == sorted(document.id or "" for document in documents)
    for document in found:
        original = own[document.id]
        results = {key: document.metadata[key] for key in ("relevance_score", "m3_scores")}
        assert document == Document(
            id=original.id, page_content=original.page_content, metadata={**original.metadata, **results}
        )


def test_only_the_modes_that_rank_are_scored(retriever: M3HybridRetriever) -> None:
    for mode, names in (("dense", ["dense"]), ("dense+lexical", ["dense", "lexical"])):
        (found,) = retriever.invoke("keys", mode=mode, k=1)
        assert list(found.metadata["m3_scores"]) == names


async def test_filters_never_leak(retriever: M3HybridRetriever, documents: list[Document]) -> None:
    """Random filters give exactly what the plain evaluator gives, through every mode, sync and async."""
    random = np.random.default_rng(3)
    sizes = set()
    for trial in range(120):
        filter_ = random_filter(random)
        parsed = parse_filter(filter_)
        allowed = {document.id for document in documents if matches(parsed, document.metadata)}
        mode = get_args(SearchMode)[trial % 5]
        settled = M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, k=40, mode=mode, filter=filter_)
        for found in (
            retriever.invoke("keys rain", filter=filter_, k=40, mode=mode),
            await retriever.ainvoke("keys rain", filter=filter_, k=40, mode=mode),
            settled.invoke("keys rain"),
        ):
            assert set(ids_of(found)) == allowed if mode != "lexical" else set(ids_of(found)) <= allowed
            sizes.add(len(found))
    assert {0, 40} < sizes


def test_a_filter_that_cannot_be_honoured_is_refused(retriever: M3HybridRetriever) -> None:
    with pytest.raises(ValueError, match=r"unknown \$regex on 'color'"):
        retriever.invoke("keys", filter={"color": {"$regex": "r"}})


def test_changing_a_filter_after_it_was_given_changes_nothing(retriever: M3HybridRetriever) -> None:
    filter_: dict[str, Any] = {"row": {"$in": [1, 2]}}
    settled = M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, filter=filter_)
    filter_["row"]["$in"].append(3)
    assert sorted(d.metadata["row"] for d in settled.invoke("keys")) == [1, 2]


def test_a_text_that_shares_no_token_is_no_lexical_hit(sentences: M3HybridRetriever) -> None:
    for settings in ({"bm25": "off"}, {"bm25": "replace"}):
        lexical = M3HybridRetriever(encoder=sentences.encoder, store=sentences.store, mode="lexical", **settings)  # type: ignore[arg-type]
        assert lexical.invoke("水") == []
    (scored,) = sentences.invoke("museum", mode="lexical", k=1)
    assert scored.page_content == "The museum opens on Tuesdays."


def test_bm25_finds_words_of_languages_without_spaces(encoder: M3Encoder) -> None:
    texts = ["我们明天去博物馆看展览", "今天下雨", "火车晚上九点开往维也纳"]
    retriever = M3HybridRetriever.from_texts(texts, encoder=encoder, bm25="replace", fusion="rrf", mode="lexical", k=1)
    (found,) = retriever.invoke("火车几点开")
    assert found.page_content == texts[2]
    assert found.metadata["m3_scores"]["bm25"] > 0


def test_any_iterable_is_indexed_and_an_empty_one_too(fake: FakeEncoder, documents: list[Document]) -> None:
    texts = M3HybridRetriever.from_texts((t for t in ["a", "b"]), ({"n": i} for i in range(2)), encoder=fake)
    assert sorted((d.page_content, d.metadata["n"]) for d in texts.invoke("a")) == [("a", 0), ("b", 1)]
    assert len(M3HybridRetriever.from_documents(iter(documents), encoder=fake, k=50).invoke("a")) == 40
    assert M3HybridRetriever.from_texts([], encoder=fake).invoke("a") == []
    assert M3HybridRetriever.from_documents([], encoder=fake).invoke("a") == []


async def test_results_are_independent_of_the_index_and_of_what_was_added(
    fake: FakeEncoder, documents: list[Document]
) -> None:
    untouched = copy.deepcopy(documents)
    retriever = M3HybridRetriever(encoder=fake, k=40)
    assert retriever.add_documents(documents) == await retriever.aadd_documents(documents) == ids_of(untouched)
    assert documents == untouched
    expected_results = retriever.invoke("keys")
    for changed in (*documents, *retriever.invoke("keys"), *retriever.get_by_ids(["d00"])):
        changed.page_content = "changed"
        changed.metadata["nested"]["list"].append("changed")
        changed.metadata.clear()
    assert retriever.invoke("keys") == await retriever.ainvoke("keys") == expected_results
    assert [d.page_content for d in retriever.get_by_ids(["d00"])] == [untouched[0].page_content]


def test_a_result_added_again_does_not_carry_its_scores_into_the_index(retriever: M3HybridRetriever) -> None:
    found = retriever.invoke("keys", k=3)
    assert retriever.add_documents(found) == ids_of(found)
    for record, document in zip(retriever.store.get([str(d.id) for d in found]), found, strict=True):
        own = {k: v for k, v in document.metadata.items() if k not in {"relevance_score", "m3_scores"}}
        assert record.metadata == own
        assert "relevance_score" in document.metadata
    retriever.add_texts(["new"], [{"m3_scores": 1, "relevance_score": 2, "kept": 3}], ids=["new"])
    assert retriever.get_by_ids(["new"]) == [Document(id="new", page_content="new", metadata={"kept": 3})]


def test_what_the_llama_index_adapter_keeps_for_itself_is_left_out(fake: FakeEncoder) -> None:
    store = open_store()
    store.bind(fake.fingerprint)
    metadata = {"_node_content": "{}", "_node_type": "TextNode", "_other": 1, "node": 2, "m3_scores": "stale"}
    store.upsert(["n"], ["a text"], [metadata], fake.encode(["a text"]))
    retriever = M3HybridRetriever(encoder=fake, store=store)
    (found,) = retriever.invoke("text")
    assert set(found.metadata) == {"_other", "node", "relevance_score", "m3_scores"}
    assert list(found.metadata["m3_scores"]) == ["dense", "lexical", "multi_vector"]
    assert retriever.get_by_ids(["n"])[0].metadata == {"_other": 1, "node": 2, "m3_scores": "stale"}


def test_documents_without_an_id_get_one(fake: FakeEncoder) -> None:
    retriever = M3HybridRetriever(encoder=fake)
    ids = retriever.add_documents([Document("a"), Document("b", id="mine"), Document("a")])
    assert ids[1] == "mine"
    assert [len(ids[0]), len(ids[2]), len(set(ids))] == [36, 36, 3]
    assert [d.page_content for d in retriever.get_by_ids(ids)] == ["a", "b", "a"]
    assert retriever.add_documents([Document("c", id="x")], ids=["y"]) == ["y"]


def test_documents_of_the_same_text_stay_apart(fake: FakeEncoder) -> None:
    retriever = M3HybridRetriever.from_texts(["same", "same"], [{"n": 1}, {"n": 2}], ids=["b", "a"], encoder=fake)
    assert sorted((str(d.id), d.metadata["n"]) for d in retriever.invoke("same")) == [("a", 2), ("b", 1)]


async def test_adding_an_id_again_replaces_its_document(fake: FakeEncoder) -> None:
    retriever = M3HybridRetriever.from_texts(["old one", "other"], ids=["1", "2"], encoder=fake)
    assert retriever.add_texts(["new one"], [{"v": 2}], ids=["1"]) == ["1"]
    assert await retriever.aadd_texts(["newest one"], ids=["2"]) == ["2"]
    found = retriever.invoke("one")
    assert sorted((str(d.id), d.page_content) for d in found) == [("1", "new one"), ("2", "newest one")]


async def test_documents_are_deleted_by_id_or_by_filter(retriever: M3HybridRetriever) -> None:
    assert retriever.delete(["d00", "not there", "d01"]) == 2
    assert retriever.delete(["d00"]) == 0
    assert await retriever.adelete(["d02"]) == 1
    assert retriever.delete(filter={"row": {"$lt": 5}}) == 2
    assert await retriever.adelete(filter={"row": 5}) == 1
    left = retriever.invoke("keys", k=40)
    assert sorted(d.metadata["row"] for d in left) == list(range(6, 40))
    assert retriever.get_by_ids(["d05", "d07", "d06"]) == await retriever.aget_by_ids(["d07", "d06"])


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
def test_a_deletion_that_might_be_a_mistake_is_refused(
    retriever: M3HybridRetriever, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        retriever.delete(**arguments)
    assert retriever.store.count() == 40


def test_additions_that_do_not_fit_together_are_refused(retriever: M3HybridRetriever) -> None:
    with pytest.raises(ValueError, match="2 texts, but 1 ids and 2 metadatas"):
        retriever.add_documents([Document("a"), Document("b")], ids=["1"])
    with pytest.raises(TypeError, match="one string"):
        retriever.add_texts("text")
    assert retriever.store.count() == 40


def test_a_progress_bar_is_drawn_only_on_request(sentences: M3HybridRetriever, capsys: Any) -> None:
    sentences.add_texts(["one more"])
    assert capsys.readouterr().err == ""
    M3HybridRetriever.from_texts(["x", "y"], encoder=sentences.encoder, show_progress=True)
    assert "2/2" in capsys.readouterr().err


def test_a_query_costs_one_pass_and_documents_none(sentences: M3HybridRetriever) -> None:
    encoder = sentences.encoder
    assert isinstance(encoder, M3Encoder)
    before = encoder.stats
    sentences.invoke("a query of its own", k=6)
    sentences.explain("a query of its own", "s0")
    assert encoder.stats.forward_passes - before.forward_passes == 1
    assert encoder.stats.encoded_texts - before.encoded_texts == 1


def test_an_explanation_adds_up_to_the_scores_of_the_result(sentences: M3HybridRetriever) -> None:
    (found,) = sentences.invoke("rotate keys", k=1)
    explanation = sentences.explain("rotate keys", str(found.id))
    assert explanation.scores == pytest.approx(found.metadata["m3_scores"], abs=1e-5)
    assert sum(match.score for match in explanation.lexical) == pytest.approx(explanation.scores["lexical"], abs=1e-5)
    with pytest.raises(KeyError, match="nobody"):
        sentences.explain("keys", "nobody")


def test_sentences_are_found_by_their_words(sentences: M3HybridRetriever) -> None:
    for row, text in enumerate(SENTENCES):
        assert sentences.invoke(text, k=1)[0].id == f"s{row}"
