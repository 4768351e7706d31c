"""`M3Rerank`: scores, copies, stored vectors, pickles."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import IndexNode, MetadataMode, QueryBundle, TextNode
from pydantic import ValidationError

from m3_integrations import M3Encoder, ModeWeights
from m3_integrations.llama_index import M3HybridRetriever, M3NodeWithScore, M3Rerank
from m3_integrations.scoring import score_vectors
from m3_integrations.vectors import M3Scores
from tests.fakes import FakeEncoder
from tests.llama_index.conftest import CountingEncoder, ids_of, with_scores


def brute_force(nodes: list[TextNode], query: str, weights: ModeWeights | None = None) -> M3Scores:
    encoder = FakeEncoder()
    texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
    return score_vectors(encoder.encode([query], kind="query"), encoder.encode(texts), weights)


async def test_scores_are_the_combined_ones_and_every_modes(fake: CountingEncoder, nodes: list[TextNode]) -> None:
    """Of the text for embedding models, which some of the metadata are part of."""
    expected = brute_force(nodes, "keys tea", ModeWeights.preset("miracl"))
    order = np.argsort(-expected.combined, kind="stable")[:7]
    reranker = M3Rerank(encoder=fake, top_n=7, weights="miracl")
    for found in (
        reranker.postprocess_nodes(with_scores(nodes), query_str="keys tea"),
        reranker.postprocess_nodes(with_scores(nodes), QueryBundle("keys tea")),
        await reranker.apostprocess_nodes(with_scores(nodes), query_str="keys tea"),
    ):
        assert ids_of(found) == [nodes[row].node_id for row in order]
        for each, row in zip(found, order, strict=True):
            assert isinstance(each, M3NodeWithScore)
            assert each.score == pytest.approx(expected.combined[row], abs=1e-6)
            by_hand = {mode: getattr(expected, mode)[row] for mode in ("dense", "lexical", "multi_vector")}
            assert each.m3_scores == each.node.metadata["m3_scores"] == pytest.approx(by_hand, abs=1e-6)


def test_impossible_weights_are_refused(fake: CountingEncoder) -> None:
    with pytest.raises(ValidationError, match="not all 0"):
        M3Rerank(encoder=fake, weights={"dense": 0, "lexical": 0, "multi_vector": 0})


@pytest.mark.parametrize("keep", [False, True])
def test_inputs_are_never_changed(fake: CountingEncoder, nodes: list[TextNode], keep: bool) -> None:
    inputs = with_scores([*nodes, IndexNode(id_="i", text="index", index_id="x", obj=nodes[0])])
    before = [each.model_copy(deep=True) for each in inputs]
    order = list(inputs)
    found = M3Rerank(encoder=fake, top_n=41, keep_retrieval_score=keep).postprocess_nodes(inputs, query_str="keys")
    assert inputs == before
    assert all(one is two for one, two in zip(inputs, order, strict=True))
    for each in found:
        each.node.metadata["new"] = 1
        each.node.excluded_embed_metadata_keys.append("row")
        each.score = 0
    assert inputs == before


def test_a_kept_first_score_is_in_no_text(fake: CountingEncoder, nodes: list[TextNode]) -> None:
    inputs = with_scores(nodes)
    scores = {each.node.node_id: each.score for each in inputs}
    texts = {
        node.node_id: [node.get_content(mode) for mode in (MetadataMode.EMBED, MetadataMode.LLM)] for node in nodes
    }
    found = M3Rerank(encoder=fake, top_n=40, keep_retrieval_score=True).postprocess_nodes(inputs, query_str="keys")
    for each in found:
        assert each.node.metadata["retrieval_score"] == scores[each.node.node_id]
        assert each.node.get_content(MetadataMode.EMBED) == texts[each.node.node_id][0]
        assert each.node.get_content(MetadataMode.LLM) == texts[each.node.node_id][1]
    plain = M3Rerank(encoder=fake).postprocess_nodes(inputs, query_str="keys")
    assert "retrieval_score" not in plain[0].node.metadata


def test_reranking_twice_keeps_the_newest_scores_and_excludes_each_key_once(
    fake: CountingEncoder, nodes: list[TextNode]
) -> None:
    reranker = M3Rerank(encoder=fake, top_n=3, keep_retrieval_score=True)
    first = reranker.postprocess_nodes(with_scores(nodes), query_str="keys")
    second = reranker.postprocess_nodes(first, query_str="rain")
    by_id = {each.node.node_id: each for each in first}
    for each in second:
        earlier = by_id[each.node.node_id]
        assert each.node.metadata["retrieval_score"] == earlier.score
        assert each.node.metadata["m3_scores"] != earlier.node.metadata["m3_scores"]
        assert each.node.excluded_embed_metadata_keys == ["path", "tags", "m3_scores", "retrieval_score"]
        assert each.node.excluded_llm_metadata_keys == ["path", "m3_scores", "retrieval_score"]
        assert each.score == pytest.approx(
            brute_force([n for n in nodes if n.node_id == each.node.node_id], "rain").combined[0], abs=1e-6
        )


def test_a_query_that_is_embedded_searched_and_reranked_costs_one_pass_and_a_stored_node_none(
    on_network: M3HybridRetriever,
) -> None:
    from m3_integrations.llama_index import M3Embedding, M3SparseEmbedding, sparse_query_fn

    encoder = on_network.encoder
    assert isinstance(encoder, M3Encoder)
    before = encoder.stats.forward_passes
    query = "a query that nobody has asked yet"
    M3Embedding(encoder=encoder).get_query_embedding(query)
    M3SparseEmbedding(encoder=encoder).get_query_embedding(query)
    sparse_query_fn(encoder)([query])
    found = on_network.with_options(similarity_top_k=6).retrieve(query)
    reranked = M3Rerank(encoder=encoder, store=on_network.store, top_n=6).postprocess_nodes(found, query_str=query)
    assert encoder.stats.forward_passes - before == 1
    assert ids_of(reranked) == ids_of(found)
    assert [each.score for each in reranked] == pytest.approx([each.score for each in found], abs=1e-6)


def test_pickling_keeps_model_encoder_and_settings(small: Path, fake: CountingEncoder) -> None:
    fake.delay_s = 0.25
    injected = M3Rerank(encoder=fake, top_n=5, weights=ModeWeights(1, 0, 0), keep_retrieval_score=True)
    twin = pickle.loads(pickle.dumps(injected))
    assert (twin.encoder.delay_s, twin.to_dict()) == (0.25, injected.to_dict())
    opened = M3Rerank(model=str(small), model_kwargs={"max_length": 8}, score_threshold=0.5)
    twin = pickle.loads(pickle.dumps(opened))
    assert (twin.encoder.max_length, twin.score_threshold, twin.to_dict()) == (8, 0.5, opened.to_dict())


def test_a_dump_makes_an_equal_reranker(small: Path) -> None:
    first = M3Rerank(model=str(small), weights=ModeWeights(1, 0.25, 0), top_n=2)
    second = M3Rerank.from_json(first.to_json())
    assert (second.weights, second.top_n, second.model) == (first.weights, 2, first.model)
    assert M3Rerank.class_name() == first.to_dict()["class_name"] == "M3Rerank"
