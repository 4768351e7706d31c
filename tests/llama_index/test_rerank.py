"""`M3Rerank`: scores, copies, stored vectors, pickles."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

from m3_integrations import M3Encoder, ModeWeights, open_store
from m3_integrations.llama_index import M3HybridRetriever, M3NodeWithScore, M3Rerank
from m3_integrations.scoring import score_vectors
from m3_integrations.vectors import M3Scores
from tests.fakes import FakeEncoder
from tests.llama_index.conftest import SENTENCES, CountingEncoder, ids_of, longest_pause_s, with_scores


def brute_force(nodes: list[TextNode], query: str, weights: ModeWeights | None = None) -> M3Scores:
    encoder = FakeEncoder()
    texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
    return score_vectors(encoder.encode([query], kind="query"), encoder.encode(texts), weights)


@pytest.mark.parametrize("weights", [None, "miracl", ModeWeights(0, 1, 0), ModeWeights(0.5, 0.1, 2)])
async def test_scores_are_the_combined_ones_and_every_modes(
    fake: CountingEncoder, nodes: list[TextNode], weights: ModeWeights | str | None
) -> None:
    chosen = ModeWeights.preset(weights) if isinstance(weights, str) else weights
    expected = brute_force(nodes, "keys tea", chosen)
    order = np.argsort(-expected.combined, kind="stable")[:7]
    reranker = M3Rerank(encoder=fake, top_n=7, weights=weights)
    for found in (
        reranker.postprocess_nodes(with_scores(nodes), query_str="keys tea"),
        reranker.postprocess_nodes(with_scores(nodes), QueryBundle("keys tea")),
        await reranker.apostprocess_nodes(with_scores(nodes), query_str="keys tea"),
    ):
        assert ids_of(found) == [nodes[row].node_id for row in order]
        for each, row in zip(found, order, strict=True):
            assert isinstance(each, M3NodeWithScore)
            assert each.score == pytest.approx(expected.combined[row], abs=1e-6)
            by_hand = {
                "dense": expected.dense[row],
                "lexical": expected.lexical[row],
                "multi_vector": expected.multi_vector[row],
            }
            assert each.m3_scores == each.node.metadata["m3_scores"] == pytest.approx(by_hand, abs=1e-6)
            assert {type(value) for value in (each.score, *each.m3_scores.values())} == {float}


def test_equal_scores_keep_their_order(fake: CountingEncoder) -> None:
    twins = [NodeWithScore(node=TextNode(id_=name, text="same")) for name in "cab"]
    assert ids_of(M3Rerank(encoder=fake).postprocess_nodes(twins, query_str="q")) == ["c", "a", "b"]


def test_a_threshold_drops_what_is_below_it(fake: CountingEncoder, nodes: list[TextNode]) -> None:
    combined = np.sort(brute_force(nodes, "keys").combined)[::-1]
    limit = float(combined[4])
    kept = M3Rerank(encoder=fake, top_n=40, score_threshold=limit).postprocess_nodes(
        with_scores(nodes), query_str="keys"
    )
    assert [each.score for each in kept] == pytest.approx(combined[:5].tolist())
    assert len(M3Rerank(encoder=fake, top_n=2, score_threshold=limit)._rank(with_scores(nodes), "keys")) == 2
    assert M3Rerank(encoder=fake, score_threshold=99).postprocess_nodes(with_scores(nodes), query_str="keys") == []


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


def test_all_texts_share_forward_passes(encoder: M3Encoder, sentences: list[TextNode]) -> None:
    M3Rerank(encoder=encoder).postprocess_nodes(with_scores(sentences), query_str="keys")
    assert (encoder.stats.forward_passes, encoder.stats.encoded_texts) == (2, 7)


def test_a_query_over_the_length_limit_is_cut(encoder: M3Encoder, sentences: list[TextNode]) -> None:
    long = " ".join(SENTENCES * 20)
    with pytest.warns(UserWarning, match="longer than 128 tokens"):
        found = M3Rerank(encoder=encoder).postprocess_nodes(with_scores(sentences), query_str=long)
    assert len(found) == 3


async def test_stored_vectors_are_used_where_id_and_text_agree(
    on_network: M3HybridRetriever, sentences: list[TextNode]
) -> None:
    encoder = on_network.encoder
    assert isinstance(encoder, M3Encoder)
    reranker = M3Rerank(encoder=encoder, store=on_network.store, top_n=6)
    expected = M3Rerank(encoder=encoder, top_n=6).postprocess_nodes(with_scores(sentences), query_str="first query")
    before = encoder.stats
    found = reranker.postprocess_nodes(with_scores(sentences), query_str="first query")
    assert encoder.stats.encoded_texts == before.encoded_texts
    assert ids_of(found) == ids_of(expected)
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)

    changed = sentences[2].model_copy(update={"text": "Another text under a known id."})
    foreign = TextNode(id_="foreign", text="A text that is not stored.")
    await reranker.apostprocess_nodes(with_scores([*sentences[:2], changed, foreign]), query_str="second query")
    assert encoder.stats.encoded_texts - before.encoded_texts == 3  # the query, and the two texts


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_n": 0}, "greater than or equal to 1"),
        ({"top_n": -1}, "greater than or equal to 1"),
        ({"top_k": 3}, "top_k\n.*Extra"),
        ({"device": "cpu"}, "device\n.*Extra"),
        ({"weights": "best"}, "unknown weights 'best'"),
        ({"weights": (1, 1, 1)}, "ModeWeights"),
        ({"score_threshold": float("nan")}, "finite"),
    ],
)
def test_wrong_settings_are_refused(fake: CountingEncoder, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        M3Rerank(encoder=fake, **settings)


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="not all 0"):
        M3Rerank(encoder=FakeEncoder(), weights={"dense": 0, "lexical": 0, "multi_vector": 0})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"store must be a store, got './folder': open one with open_store"):
        M3Rerank(encoder=FakeEncoder(), store="./folder")  # type: ignore[arg-type]


def test_a_store_of_another_model_is_refused(on_network: M3HybridRetriever, sentences: list[TextNode]) -> None:
    reranker = M3Rerank(encoder=FakeEncoder(), store=on_network.store)
    with pytest.raises(ValueError, match="not of fa4e"):
        reranker.postprocess_nodes(with_scores(sentences), query_str="keys")


async def test_async_never_blocks_the_event_loop(nodes: list[TextNode]) -> None:
    slow = M3Rerank(encoder=FakeEncoder(delay_s=0.3))
    assert await longest_pause_s(lambda: slow.apostprocess_nodes(with_scores(nodes[:2]), query_str="keys")) < 0.05


def test_pickling_keeps_model_encoder_and_settings(small: Path, fake: CountingEncoder) -> None:
    fake.delay_s = 0.25
    injected = M3Rerank(encoder=fake, top_n=5, weights=ModeWeights(1, 0, 0), keep_retrieval_score=True)
    twin = pickle.loads(pickle.dumps(injected))
    assert (twin.encoder.delay_s, twin.to_dict()) == (0.25, injected.to_dict())
    opened = M3Rerank(model=str(small), model_kwargs={"max_length": 8}, score_threshold=0.5)
    twin = pickle.loads(pickle.dumps(opened))
    assert (twin.encoder.max_length, twin.score_threshold, twin.to_dict()) == (8, 0.5, opened.to_dict())


def test_a_reranker_over_memory_refuses_to_be_pickled(fake: CountingEncoder) -> None:
    with pytest.raises(TypeError, match="use a server store"):
        pickle.dumps(M3Rerank(encoder=fake, store=open_store()))


def test_a_dump_makes_an_equal_reranker(small: Path) -> None:
    first = M3Rerank(model=str(small), weights=ModeWeights(1, 0.25, 0), top_n=2)
    second = M3Rerank.from_json(first.to_json())
    assert (second.weights, second.top_n, second.model) == (first.weights, 2, first.model)
    assert M3Rerank.class_name() == first.to_dict()["class_name"] == "M3Rerank"
