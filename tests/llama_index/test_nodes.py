"""Nodes as records, and back."""

import json
from datetime import date, datetime, timedelta, timezone

import pytest
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from m3_integrations import Searcher, open_store
from m3_integrations.llama_index import M3HybridRetriever, M3NodeWithScore, M3Rerank, M3VectorStore
from m3_integrations.llama_index.nodes import as_metadata, as_node
from tests.llama_index.conftest import CountingEncoder, ids_of


def retrieved(retriever: M3HybridRetriever, query: str = "text") -> M3NodeWithScore:
    (found,) = retriever.retrieve(query)
    assert isinstance(found, M3NodeWithScore)
    return found


@pytest.mark.parametrize(
    "node",
    [
        TextNode(
            id_="t",
            text="the text",
            metadata={"a": 1, "list": [1, "x"], "deep": {"b": None}},
            excluded_embed_metadata_keys=["a"],
            excluded_llm_metadata_keys=["deep"],
            relationships={
                NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", node_type=ObjectType.DOCUMENT, hash="h"),
                NodeRelationship.NEXT: RelatedNodeInfo(node_id="t2", metadata={"n": 1}),
                NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
            },
            start_char_idx=3,
            end_char_idx=11,
            metadata_template="{key}={value}",
            metadata_separator=" | ",
            text_template="{content} ({metadata_str})",
        ),
        TextNode(id_="mine", text="x", metadata={"doc_id": "A-17", "ref_doc_id": 5, "document_id": None}),
        Node(id_="n", text_resource=MediaResource(text="a multimodal text")),
        ImageNode(id_="i", text="a picture", image_url="https://example.org/a.png"),
        IndexNode(id_="x", text="an index", index_id="somewhere", obj=None),
        TextNode(id_="empty", text=""),
    ],
    ids=lambda node: node.id_,
)
def test_a_node_comes_back_whole(node: TextNode, fake: CountingEncoder) -> None:
    before = node.model_copy(deep=True)
    found = retrieved(M3HybridRetriever.from_nodes([node], encoder=fake))
    assert type(found.node) is type(node)
    assert found.node == node == before
    assert found.node.hash == node.hash
    for mode in MetadataMode:
        assert found.node.get_content(mode) == node.get_content(mode)


DATED = TextNode(
    id_="t",
    text="the text",
    metadata={"on": date(2024, 1, 1)},
    relationships={
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"on": date(2024, 1, 1), "iso": "2024-01-01"}),
        NodeRelationship.NEXT: RelatedNodeInfo(
            # Amsterdam's offset until 1937; pydantic would drop its seconds.
            node_id="t2",
            metadata={"log": [{"at": datetime(1900, 1, 1, tzinfo=timezone(timedelta(minutes=19, seconds=32)))}]},
        ),
        NodeRelationship.CHILD: [
            RelatedNodeInfo(node_id="c1"),
            RelatedNodeInfo(node_id="c2", metadata={"at": datetime(2024, 1, 1)}),
        ],
    },
)


def test_dates_of_related_nodes_come_back_as_dates_and_strings_as_strings(fake: CountingEncoder) -> None:
    vectors = M3VectorStore(encoder=fake)
    vectors.add([DATED])
    (found,) = vectors.get_nodes(["t"])
    assert found == DATED
    assert [found.relationships[kind] for kind in DATED.relationships] == list(DATED.relationships.values())


def test_dates_of_related_nodes_are_strings_for_llama_index_and_in_stores_of_earlier_versions() -> None:
    metadata = as_metadata(DATED)
    for_llama_index = metadata_dict_to_node(metadata)
    metadata["_node_content"] = node_to_metadata_dict(DATED)["_node_content"]  # what earlier versions stored
    for node in (for_llama_index, as_node("t", "the text", metadata)):
        assert node.source_node is not None
        assert node.source_node.metadata == {"on": "2024-01-01", "iso": "2024-01-01"}


@pytest.mark.parametrize("dates", ['[["9", "on"]]', '[["1", "absent"]]', "[[]]", "5", "null", '[["1", "text"]]'])
def test_places_of_dates_that_do_not_fit_the_node_leave_strings(dates: str) -> None:
    """After another program has changed the node's JSON and kept the key."""
    metadata = as_metadata(DATED)
    content = json.loads(metadata["_node_content"]) | {"m3_dates": json.loads(dates)}
    content["relationships"]["1"]["metadata"]["text"] = "no date"
    found = as_node("t", "the text", metadata | {"_node_content": json.dumps(content)})
    assert (found.node_id, found.metadata) == ("t", DATED.metadata)
    assert found.source_node is not None
    assert found.source_node.metadata == {"on": "2024-01-01", "iso": "2024-01-01", "text": "no date"}


def test_a_document_comes_back_as_a_text_node_as_in_llama_indexs_own_stores(fake: CountingEncoder) -> None:
    document = Document(id_="d", text="the text", metadata={"a": 1}, excluded_embed_metadata_keys=["a"])
    found = retrieved(M3HybridRetriever.from_nodes([document], encoder=fake)).node
    assert isinstance(found, TextNode)
    assert (found.node_id, found.text, found.metadata) == ("d", "the text", {"a": 1})
    assert found.excluded_embed_metadata_keys == ["a"]


def test_what_is_encoded_is_the_embed_content(fake: CountingEncoder) -> None:
    node = TextNode(
        id_="n", text="text", metadata={"title": "Vault", "path": "/x"}, excluded_embed_metadata_keys=["path"]
    )
    retriever = M3HybridRetriever.from_nodes([node], encoder=fake)
    assert fake.encoded == [("document", "title: Vault\n\ntext")]
    (record,) = retriever.store.get(["n"])
    assert record.text == "title: Vault\n\ntext"


def test_a_records_metadata_are_llama_indexs_convention() -> None:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc")}
    metadata = as_metadata(TextNode(id_="n", text="text", metadata={"a": 1}, relationships=source))
    assert metadata.pop("_node_content").startswith('{"id_": "n"')
    assert metadata == {
        "a": 1,
        "_node_type": "TextNode",
        "document_id": "doc",
        "doc_id": "doc",
        "ref_doc_id": "doc",
        "_node_ref_doc_id": "doc",
    }
    assert set(as_metadata(TextNode(text="alone"))) == {"_node_content", "_node_type"}


def test_what_a_user_calls_doc_id_is_what_filters_see(fake: CountingEncoder) -> None:
    own = {"doc_id": "A-17", "ref_doc_id": "A-17"}
    nodes = [
        TextNode(id_="mine", text="a", metadata=own, relationships=source_of("d1")),
        TextNode(id_="other", text="b", relationships=source_of("A-17")),
    ]
    retriever = M3HybridRetriever.from_nodes(nodes, encoder=fake)
    assert sorted(ids_of(retriever.with_options(filters=own).retrieve("a"))) == ["mine", "other"]
    assert ids_of(retriever.with_options(filters={"document_id": "d1"}).retrieve("a")) == ["mine"]
    assert retriever.delete_ref_doc("A-17") == 1
    assert ids_of(retriever.retrieve("a")) == ["mine"]


def source_of(document_id: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document_id)}


def test_a_record_that_was_not_added_as_a_node_is_a_text_node(fake: CountingEncoder) -> None:
    store = open_store()
    Searcher(fake, store).add(["the text"], ids=["r"], metadatas=[{"year": 2024, "tags": ["a"]}])
    fake.encoded.clear()
    found = retrieved(M3HybridRetriever(encoder=fake, store=store))
    node = found.node
    assert type(node) is TextNode
    assert (node.node_id, node.text, node.metadata) == ("r", "the text", {"year": 2024, "tags": ["a"]})
    assert node.get_content(MetadataMode.EMBED) == "the text"
    assert node.get_content(MetadataMode.LLM) == "year: 2024\ntags: ['a']\n\nthe text"

    M3Rerank(encoder=fake, store=store).postprocess_nodes([found], query_str="q")
    assert [kind for kind, _ in fake.encoded] == ["query", "query"]


def test_results_are_the_callers_own(retriever: M3HybridRetriever) -> None:
    first = retriever.retrieve("keys")
    expected = [each.node.model_copy(deep=True) for each in first]
    for each in first:
        each.node.metadata.clear()
        each.node.set_content("changed")
    assert [each.node for each in retriever.retrieve("keys")] == expected


def test_the_object_of_an_index_node_is_found_again(fake: CountingEncoder, retriever: M3HybridRetriever) -> None:
    inner = TextNode(id_="inner", text="the inner text")
    nodes = [
        IndexNode(id_="a", text="points at a retriever", index_id="first", obj=retriever),
        IndexNode(id_="b", text="points at a node", index_id="second", obj=inner),
    ]
    outer = M3HybridRetriever.from_nodes(nodes, encoder=fake)
    assert nodes[0].obj is retriever
    found = outer.with_options(similarity_top_k=2).retrieve("points")
    assert set(ids_of(found)) == {"inner", *ids_of(retriever.retrieve("points"))}


def test_a_users_own_key_called_as_our_scores_stays(fake: CountingEncoder) -> None:
    own = TextNode(text="keys", id_="own", metadata={"m3_scores": "mine", "retrieval_score": 3})
    hidden = own.model_copy(update={"id_": "hidden", "excluded_embed_metadata_keys": list(own.metadata)})
    half = TextNode(
        text="keys", id_="half", metadata={"retrieval_score": 3}, excluded_embed_metadata_keys=["retrieval_score"]
    )
    retriever = M3HybridRetriever.from_nodes([own, hidden, half], encoder=fake)
    for each in retriever.retrieve("keys"):
        assert each.node.metadata == (half if each.node.node_id == "half" else own).metadata
    reranked = [
        each.node for each in M3Rerank(encoder=fake).postprocess_nodes(retriever.retrieve("keys"), query_str="a")
    ]
    again = M3HybridRetriever.from_nodes([node for node in reranked if node.node_id == "half"], encoder=fake)
    assert again.retrieve("keys")[0].node.metadata == half.metadata


def test_the_scores_of_an_earlier_reranking_are_not_stored(retriever: M3HybridRetriever, fake: CountingEncoder) -> None:
    rerank = M3Rerank(encoder=fake, keep_retrieval_score=True)
    found = rerank.postprocess_nodes(retriever.retrieve("keys"), query_str="keys")
    again = M3HybridRetriever.from_nodes([each.node for each in found], encoder=fake, similarity_top_k=3)
    originals = {each.node.node_id: each.node for each in retriever.retrieve("keys")}
    assert "m3_scores" in found[0].node.metadata
    for each in again.retrieve("keys"):
        assert each.node == originals[each.node.node_id]
