"""`M3HybridRetriever` alone: results, adding and deleting, settings, async, events."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.settings import Settings
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from m3_integrations import M3Encoder, ModeWeights
from m3_integrations.llama_index import M3HybridRetriever, M3NodeWithScore, M3Rerank
from m3_integrations.llama_index.splitting import split_long_nodes
from m3_integrations.scoring import score_vectors
from tests.fakes import FakeEncoder
from tests.llama_index.conftest import CallbackRecorder, CountingEncoder, EventRecorder, ids_of


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


async def test_how_many_nodes_are_returned_can_be_set_as_on_llama_indexs_own_retrievers(
    retriever: M3HybridRetriever,
) -> None:
    other = retriever.with_options(similarity_top_k=3)
    retriever.similarity_top_k = 5
    assert (retriever.similarity_top_k, other.similarity_top_k) == (5, 3)
    assert [len(retriever.retrieve("keys")), len(await retriever.aretrieve("keys"))] == [5, 5]
    assert len(other.retrieve("keys")) == 3
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retriever.similarity_top_k = 0
    assert retriever.similarity_top_k == 5


def test_two_nodes_are_returned_by_default_as_in_llama_indexs_own_retrievers(
    retriever: M3HybridRetriever, fake: CountingEncoder
) -> None:
    by_default = M3HybridRetriever(encoder=fake, store=retriever.store)
    assert by_default.similarity_top_k == len(by_default.retrieve("keys")) == 2


@pytest.mark.parametrize("unknown", ["top_k", "k", "filter"])
def test_what_is_no_argument_of_the_constructor_is_refused(fake: CountingEncoder, unknown: str) -> None:
    """`k` and `filter` have names of their own in LlamaIndex."""
    makers: list[Any] = [
        M3HybridRetriever,
        partial(M3HybridRetriever.from_nodes, []),
        partial(M3HybridRetriever.from_documents, []),
        M3HybridRetriever(encoder=fake).with_options,
    ]
    for make in makers:
        arguments = {} if make is makers[-1] else {"model": "/no/such/folder"}
        with pytest.raises(TypeError, match=unknown):
            make(**arguments, **{unknown: 3})


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


def test_empty_filters_delete_nothing(retriever: M3HybridRetriever) -> None:
    with pytest.raises(ValueError, match="empty filter matches everything"):
        retriever.delete_nodes(filters=MetadataFilters(filters=[]))
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


def test_what_are_no_nodes_is_refused_with_what_to_pass() -> None:
    retriever = M3HybridRetriever(encoder=FakeEncoder())
    for wrong, message in (
        (TextNode(text="a"), r"got one TextNode: pass \[node\]"),
        ("abc", "got one str"),
        ([TextNode(text="a"), "abc"], "got str at position 1"),
        ([NodeWithScore(node=TextNode(text="a"))], "got NodeWithScore at position 0: pass its node"),
    ):
        with pytest.raises(TypeError, match=message):
            retriever.add_nodes(wrong)  # type: ignore[arg-type]
    assert retriever.store.count() == 0


def test_another_frameworks_name_of_an_option_is_answered_with_llama_indexs() -> None:
    for name, meant in (("k", "similarity_top_k"), ("filter", "filters"), ("top_k", "similarity_top_k")):
        asked: dict[str, Any] = {name: 3}
        with pytest.raises(
            TypeError, match=f"no option {name}: did you mean {meant}. It has similarity_top_k, filters"
        ):
            M3HybridRetriever(encoder=FakeEncoder(), **asked)


def test_documents_longer_than_the_model_reads_are_split_by_its_tokens(small: Path) -> None:
    """Warnings are errors: nothing is cut."""
    encoder = M3Encoder(small, device="cpu")
    words = [f"word{i}" for i in range(300)]
    text = " ".join(words)
    documents = [Document(text=text, id_="long", metadata={"year": 2024}), Document(text="Short.", id_="short")]
    retriever = M3HybridRetriever.from_documents(documents, encoder=encoder, similarity_top_k=99)
    found = [each.node for each in retriever.retrieve("word7")]
    parts = [node for node in found if node.ref_doc_id == "long"]
    assert len(parts) > 2
    assert {word for node in parts for word in node.get_content().split()} == set(words)
    contents = [node.get_content(MetadataMode.EMBED) for node in found]
    assert encoder.stats.truncated_texts == 0
    assert max(len(tokens) for tokens in encoder.tokenize(contents)) < encoder.max_length - 1
    assert all(node.metadata["year"] == 2024 for node in parts)
    assert retriever.delete_ref_doc("long") == len(parts)
    whole = [Document(text=text, id_="whole")]
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than 128 tokens"):
        kept = M3HybridRetriever.from_documents(whole, encoder=encoder, transformations=[])
    assert [each.node.get_content() for each in kept.retrieve("word7")] == [text]


@pytest.mark.parametrize("indent", ["", "  \n"])
def test_parts_of_long_nodes_know_their_offsets_and_form_one_chain(small: Path, indent: str) -> None:
    encoder = M3Encoder(small, device="cpu")
    text = indent + " ".join(f"Museumsöffnungszeiten rotieren {i}." for i in range(400)) + "\nShort end."
    documents = [Document(text=text, id_="a"), Document(text="Short.", id_="b")]
    cut = SentenceSplitter(chunk_size=700).get_nodes_from_documents(documents)
    before = [node.model_copy(deep=True) for node in cut]
    parts = [node for node in split_long_nodes(cut, encoder) if node.ref_doc_id == "a"]
    assert cut == before
    assert len(parts) > len(cut) > 2
    for node in parts:
        assert isinstance(node, TextNode)
        assert text[node.start_char_idx : node.end_char_idx] == node.text
    ids = [None, *(node.node_id for node in parts), None]
    assert [node.prev_node and node.prev_node.node_id for node in parts] == ids[:-2]
    assert [node.next_node and node.next_node.node_id for node in parts] == ids[2:]
    (unplaced,) = [node.model_copy(update={"start_char_idx": None}) for node in cut[:1]]
    assert {node.start_char_idx for node in split_long_nodes([unplaced], encoder)} == {None}  # type: ignore[attr-defined]


def test_nodes_that_fit_keep_their_ids_and_metadata_without_room_are_left(small: Path) -> None:
    encoder = M3Encoder(small, device="cpu")
    short = TextNode(text="Short.", id_="mine")
    crowded = TextNode(text="a b " * 200, metadata={"note": "word " * 150})
    assert split_long_nodes([short, crowded], encoder) == [short, crowded]
    for other in (FakeEncoder(), M3Encoder(small, device="cpu", max_length=3)):
        assert split_long_nodes([crowded], other) == [crowded]


def test_scores_are_found_in_one_way_after_the_retriever_and_after_reranking(retriever: M3HybridRetriever) -> None:
    found = retriever.retrieve("keys")
    for nodes in (found, M3Rerank(encoder=retriever.encoder).postprocess_nodes(found, query_str="keys")):
        assert len(nodes) > 1
        for each in nodes:
            assert isinstance(each, M3NodeWithScore)
            assert each.score == pytest.approx(sum(each.m3_scores.values()) / 3, abs=1e-6)


def test_what_are_no_documents_is_refused_with_what_to_pass() -> None:
    for wrong, message in (
        (Document(text="a"), r"got one Document: pass \[document\]"),
        (["abc"], r"every document must be a Document, got str at position 0: pass Document\(text=...\)"),
    ):
        with pytest.raises(TypeError, match=message):
            M3HybridRetriever.from_documents(wrong, encoder=FakeEncoder())  # type: ignore[arg-type]
