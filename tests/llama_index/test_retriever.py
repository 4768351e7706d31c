"""`M3HybridRetriever` alone: results, adding and deleting, settings, async, events."""

import pickle
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode, QueryBundle, TextNode
from llama_index.core.settings import Settings
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from m3_integrations import M3Encoder, ModeWeights, Searcher, SearchOptions, open_store
from m3_integrations.llama_index import M3HybridRetriever, M3NodeWithScore
from m3_integrations.llama_index.settings import RetrieverSettings
from m3_integrations.scoring import score_vectors
from tests.fakes import FakeEncoder
from tests.llama_index.conftest import CallbackRecorder, CountingEncoder, EventRecorder, ids_of, longest_pause_s


async def test_results_are_the_exact_scores_of_the_embed_content(
    retriever: M3HybridRetriever, nodes: list[TextNode]
) -> None:
    encoder = FakeEncoder()
    texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
    weights = ModeWeights(1, 0.3, 1)
    expected = score_vectors(encoder.encode(["keys tea"], kind="query"), encoder.encode(texts), weights)
    order = np.argsort(-expected.combined, kind="stable")[:6]
    asked = retriever.with_options(similarity_top_k=6, weights="miracl")
    for found in (asked.retrieve("keys tea"), await asked.aretrieve(QueryBundle("keys tea"))):
        assert ids_of(found) == [nodes[row].node_id for row in order]
        for each, row in zip(found, order, strict=True):
            assert isinstance(each, M3NodeWithScore)
            assert each.node == nodes[row]
            assert each.score == pytest.approx(expected.combined[row], abs=1e-6)
            by_hand = {
                "dense": expected.dense[row],
                "lexical": expected.lexical[row],
                "multi_vector": expected.multi_vector[row],
            }
            assert each.m3_scores == pytest.approx(by_hand, abs=1e-6)
            assert {type(value) for value in (each.score, *each.m3_scores.values())} == {float}


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"k": 2}),
        ({"similarity_top_k": 7}, {"k": 7}),
        ({"mode": "dense"}, {"k": 2, "mode": "dense"}),
        (
            {"mode": "dense+lexical", "weights": ModeWeights(0, 1, 0)},
            {"k": 2, "mode": "dense+lexical", "weights": ModeWeights(0, 1, 0)},
        ),
        ({"score_threshold": 0.5, "similarity_top_k": 40}, {"score_threshold": 0.5, "k": 40}),
        ({"pool_size": 2, "similarity_top_k": 2}, {"pool_size": 2, "k": 2}),
        ({"fusion": "rrf", "rrf_k": 3, "similarity_top_k": 5}, {"fusion": "rrf", "rrf_k": 3, "k": 5}),
        ({"bm25": "replace", "similarity_top_k": 5}, {"bm25": "replace", "k": 5}),
        ({"bm25": "extra", "mode": "lexical"}, {"bm25": "extra", "mode": "lexical", "k": 2}),
        ({"filters": {"row": {"$lt": 9}}}, {"filter": {"row": {"$lt": 9}}, "k": 2}),
    ],
)
async def test_every_setting_reaches_the_search(
    retriever: M3HybridRetriever, fake: CountingEncoder, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    expected = Searcher(fake, retriever.store).search("keys rain", SearchOptions(**options))
    other = M3HybridRetriever(encoder=fake, store=retriever.store, **settings)
    for found in (other.retrieve("keys rain"), await other.aretrieve("keys rain")):
        assert [(each.node.node_id, each.score, each.m3_scores) for each in found] == [  # type: ignore[attr-defined]
            (hit.id, hit.score, hit.scores) for hit in expected
        ]


def test_bm25_and_the_learned_weights_are_both_reported(retriever: M3HybridRetriever, fake: CountingEncoder) -> None:
    (best,) = M3HybridRetriever(encoder=fake, store=retriever.store, bm25="extra", similarity_top_k=1).retrieve("keys")
    assert isinstance(best, M3NodeWithScore)
    assert set(best.m3_scores) >= {"dense", "lexical", "multi_vector"}


def test_the_settings_type_names_every_argument_of_the_constructor() -> None:
    assert get_type_hints(RetrieverSettings).keys() == get_type_hints(M3HybridRetriever.__init__).keys() - {"return"}


async def test_other_options_leave_the_retriever_and_its_store_alone(retriever: M3HybridRetriever) -> None:
    before = retriever.retrieve("keys")
    other = retriever.with_options(
        similarity_top_k=9, mode="dense", weights="mldr", filters={"color": "red"}, score_threshold=-1
    )
    assert (other.encoder, other.store) == (retriever.encoder, retriever.store)
    assert (other.similarity_top_k, retriever.similarity_top_k) == (9, 4)
    found = other.retrieve("keys")
    assert (len(found), {each.node.metadata["color"] for each in found}) == (9, {"red"})
    assert [set(each.m3_scores) for each in found] == [{"dense"}] * 9  # type: ignore[attr-defined]
    assert retriever.retrieve("keys") == before
    assert other.with_options(similarity_top_k=2).retrieve("keys") == found[:2]
    everything: dict[str, Any] | MetadataFilters
    for everything in ({}, MetadataFilters(filters=[])):
        assert len(other.with_options(filters=everything, similarity_top_k=99).retrieve("keys")) == 40
    with pytest.raises(AttributeError, match="similarity_top_k"):
        retriever.similarity_top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"top_k": 3}, TypeError, "top_k"),
        ({"similarity_top_k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"similarity_top_k": "3"}, TypeError, "k must be an integer"),
        ({"mode": "sparse"}, ValueError, "mode must be one of"),
        ({"weights": (1, 1)}, TypeError, "weights must be ModeWeights"),
        ({"weights": "best"}, ValueError, "unknown weights"),
        ({"filters": {"a": {"$near": 1}}}, ValueError, r"unknown \$near"),
        ({"filters": "a = 1"}, TypeError, "must be a mapping"),
        ({"score_threshold": float("nan")}, ValueError, "score_threshold must be finite"),
        ({"pool_size": 0}, ValueError, "pool_size"),
        ({"fusion": "mean"}, ValueError, "fusion must be one of"),
        ({"store": "./folder"}, TypeError, "open one with open_store"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    for make in (M3HybridRetriever, lambda **given: M3HybridRetriever.from_nodes([], **given)):
        with pytest.raises(error, match=message):
            make(model="/no/such/folder", **settings)


def test_an_encoder_is_needed_and_only_one(fake: CountingEncoder) -> None:
    with pytest.raises(ValueError, match=r"give model= .* or encoder="):
        M3HybridRetriever()
    with pytest.raises(ValueError, match="comes with a model"):
        M3HybridRetriever(model="other", encoder=fake)
    with pytest.raises(FileNotFoundError, match="/no/such/folder"):
        M3HybridRetriever(model="/no/such/folder")


def test_options_of_a_call_are_checked_too(retriever: M3HybridRetriever) -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        retriever.with_options(similarity_top_k=0)
    with pytest.raises(TypeError, match="top_k"):
        retriever.with_options(top_k=3)  # type: ignore[call-arg]


def test_no_store_is_a_new_one_in_memory_and_an_empty_one_is_used(fake: CountingEncoder) -> None:
    store = open_store()
    one, two = M3HybridRetriever(encoder=fake, store=store), M3HybridRetriever(encoder=fake)
    one.add_nodes([TextNode(id_="a", text="a")])
    assert (store.count(), two.store.count()) == (1, 0)
    assert two.retrieve("a") == []


async def test_nodes_are_added_replaced_and_deleted(fake: CountingEncoder) -> None:
    retriever = M3HybridRetriever(encoder=fake, similarity_top_k=9)
    assert retriever.add_nodes(TextNode(id_=name, text=f"text {name}") for name in "ab") == ["a", "b"]
    assert await retriever.aadd_nodes([TextNode(id_="c", text="text c")]) == ["c"]
    assert sorted(ids_of(retriever.retrieve("text"))) == ["a", "b", "c"]

    retriever.add_nodes([TextNode(id_="b", text="first"), TextNode(id_="b", text="another")])
    found = {each.node.node_id: each for each in retriever.retrieve("another")}
    assert (len(found), found["b"].node.get_content()) == (3, "another")
    expected = score_vectors(fake.encode(["another"], kind="query"), fake.encode(["another"]))
    assert found["b"].score == pytest.approx(expected.combined[0], abs=1e-6)

    assert retriever.delete_nodes(["a", "nobody"]) == 1
    assert await retriever.adelete_nodes(["c", "a"]) == 1
    assert ids_of(retriever.retrieve("text")) == ids_of(await retriever.aretrieve("text")) == ["b"]


async def test_nodes_are_deleted_by_filters_and_by_their_document(retriever: M3HybridRetriever) -> None:
    red = MetadataFilters(filters=[MetadataFilter(key="color", value="red", operator=FilterOperator.EQ)])
    assert retriever.delete_nodes(filters=red) == 14
    assert await retriever.adelete_nodes(filters={"row": {"$gte": 30}}) == 6
    left = [row for row in range(30) if row % 3]
    everything = retriever.with_options(similarity_top_k=99)
    assert sorted(ids_of(everything.retrieve("keys"))) == [f"n{row:02}" for row in left]
    assert retriever.delete_ref_doc("doc1") == len([row for row in left if row % 8 == 1])
    assert await retriever.adelete_ref_doc("doc2") == len([row for row in left if row % 8 == 2])
    assert retriever.delete_ref_doc("doc1") == retriever.delete_ref_doc("nobody") == 0
    assert sorted(ids_of(everything.retrieve("keys"))) == [f"n{row:02}" for row in left if row % 8 not in {1, 2}]


def test_deleting_needs_to_be_told_what(retriever: M3HybridRetriever) -> None:
    for arguments in ({}, {"node_ids": ["a"], "filters": {"row": 1}}):
        with pytest.raises(ValueError, match="either node_ids or filters"):
            retriever.delete_nodes(**arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got the string 'n01'"):
        retriever.delete_nodes("n01")
    everything: dict[str, Any] | MetadataFilters
    for everything in ({}, MetadataFilters(filters=[])):
        with pytest.raises(ValueError, match="match everything"):
            retriever.delete_nodes(filters=everything)
    assert retriever.store.count() == 40


def test_nodes_are_not_changed_by_adding_them(fake: CountingEncoder, nodes: list[TextNode]) -> None:
    before = [node.model_copy(deep=True) for node in nodes]
    M3HybridRetriever.from_nodes(nodes, encoder=fake)
    assert nodes == before


def test_documents_are_cut_by_the_settings_or_by_what_is_given(fake: CountingEncoder) -> None:
    documents = [Document(id_=f"d{i}", text=" ".join(f"Sentence {j}." for j in range(30))) for i in range(2)]
    before = [document.model_copy(deep=True) for document in documents]
    small = [SentenceSplitter(chunk_size=40, chunk_overlap=0)]
    by_default = M3HybridRetriever.from_documents(documents, encoder=fake)
    cut = M3HybridRetriever.from_documents(documents, transformations=small, encoder=fake, similarity_top_k=99)
    whole = M3HybridRetriever.from_documents(documents, transformations=[], encoder=fake)
    assert (by_default.store.count(), cut.store.count(), whole.store.count()) == (2, 8, 2)
    assert sorted(ids_of(whole.retrieve("x"))) == ["d0", "d1"]
    assert {each.node.ref_doc_id for each in cut.retrieve("x")} == {"d0", "d1"}
    assert cut.delete_ref_doc("d0") == 4
    assert documents == before


def test_settings_of_llama_index_cut_documents(fake: CountingEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_transformations", [SentenceSplitter(chunk_size=40, chunk_overlap=0)])
    document = Document(text=" ".join(f"Sentence {j}." for j in range(30)))
    assert M3HybridRetriever.from_documents([document], encoder=fake).store.count() == 4


def test_a_progress_bar_is_drawn_only_on_request(
    encoder: M3Encoder, sentences: list[TextNode], capsys: pytest.CaptureFixture[str]
) -> None:
    M3HybridRetriever.from_nodes([TextNode(text="another")], encoder=encoder)
    assert capsys.readouterr().err == ""
    M3HybridRetriever.from_nodes(sentences, encoder=encoder, show_progress=True)
    assert "6/6" in capsys.readouterr().err


async def test_async_never_blocks_the_event_loop(nodes: list[TextNode]) -> None:
    slow = FakeEncoder(delay_s=0.3)
    retriever = M3HybridRetriever(encoder=slow)
    assert await longest_pause_s(lambda: _blocking(slow)) > 0.25  # what the measure says of a call that blocks
    assert await longest_pause_s(lambda: retriever.aadd_nodes(nodes[:1])) < 0.05
    assert await longest_pause_s(lambda: retriever.aretrieve("keys")) < 0.05
    assert await longest_pause_s(lambda: retriever.adelete_ref_doc("nobody")) < 0.05


async def _blocking(encoder: FakeEncoder) -> None:
    encoder.encode(["keys"])


async def test_async_gives_what_sync_gives_to_many_at_once(on_network: M3HybridRetriever) -> None:
    import asyncio

    queries = [f"query {i} of keys" for i in range(12)]
    found = await asyncio.gather(*(on_network.aretrieve(query) for query in queries))
    for query, each in zip(queries, found, strict=True):
        expected = on_network.retrieve(query)
        assert ids_of(each) == ids_of(expected)
        assert [one.score for one in each] == pytest.approx([one.score for one in expected], abs=1e-5)


async def test_retrieval_events_come_once_and_in_pairs(
    retriever: M3HybridRetriever, fake: CountingEncoder, instrumentation: EventRecorder
) -> None:
    recorder = CallbackRecorder(CBEventType.RETRIEVE)
    watched = M3HybridRetriever(
        encoder=fake, store=retriever.store, callback_manager=CallbackManager([recorder]), similarity_top_k=3
    )
    found = [watched.retrieve("keys"), await watched.aretrieve("keys")]
    assert recorder.ends == [{EventPayload.NODES: each} for each in found]
    assert [name for name, _ in recorder.events] == ["start", "end"] * 2
    assert [start[EventPayload.QUERY_STR] for start in recorder.starts] == ["keys"] * 2
    assert instrumentation.names("Retrieval") == ["RetrievalStartEvent", "RetrievalEndEvent"] * 2


async def test_an_error_of_the_encoder_reaches_caller_and_callbacks(on_network: M3HybridRetriever) -> None:
    recorder = CallbackRecorder(CBEventType.RETRIEVE)
    on_network.callback_manager = CallbackManager([recorder])
    assert isinstance(on_network.encoder, M3Encoder)
    on_network.encoder.close()
    with pytest.raises(RuntimeError, match="was closed"):
        on_network.retrieve("keys")
    with pytest.raises(RuntimeError, match="was closed"):
        await on_network.aretrieve("keys")
    assert [name for name, _ in recorder.events] == ["start", "end"] * 2


def test_a_retriever_over_memory_refuses_to_be_pickled_and_names_the_way_out(retriever: M3HybridRetriever) -> None:
    with pytest.raises(TypeError, match="use a server store"):
        pickle.dumps(retriever)


def test_a_store_of_another_model_is_refused(small: Path, retriever: M3HybridRetriever) -> None:
    with pytest.raises(ValueError, match="vectors of the model fa4e"):
        M3HybridRetriever(model=str(small), store=retriever.store).retrieve("keys")


def test_a_match_can_be_explained(on_network: M3HybridRetriever) -> None:
    (best,) = on_network.with_options(similarity_top_k=1).retrieve("rotate the keys")
    explanation = on_network.explain("rotate the keys", best.node.node_id)
    assert explanation.scores == pytest.approx(best.m3_scores, abs=1e-5)  # type: ignore[attr-defined]
    assert sum(match.score for match in explanation.lexical) == pytest.approx(explanation.scores["lexical"], abs=1e-5)
    with pytest.raises(KeyError, match="nobody"):
        on_network.explain("rotate the keys", "nobody")
