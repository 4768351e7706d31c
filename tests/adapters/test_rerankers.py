"""How both frameworks' `M3Rerank` ranks, what it returns and what it refuses."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from m3_integrations import M3Encoder, ModeWeights, Searcher, open_store
from m3_integrations.vectors import WeightsLike
from tests.adapters.drivers import SENTENCES, Found, Reranker, Retriever
from tests.fakes import FakeEncoder

QUERY = "which keys are rotated?"
IDS = [f"s{row}" for row in range(len(SENTENCES))]


def rows_of(found: list[Found]) -> list[int]:
    return [each.metadata["row"] for each in found]


@pytest.mark.parametrize("weights", [None, "miracl", ModeWeights(0, 1, 0), [0.5, 0.1, 2]])
async def test_documents_are_ranked_by_the_combined_score_and_carry_it(
    make_reranker: type[Reranker], encoder: M3Encoder, weights: WeightsLike | None
) -> None:
    chosen = {"miracl": ModeWeights(1, 0.3, 1)}.get(weights, weights) if isinstance(weights, str) else weights
    chosen = ModeWeights(*chosen) if isinstance(chosen, list) else chosen
    scores = encoder.score(QUERY, SENTENCES, weights=chosen)
    order = np.argsort(-scores.combined, kind="stable").tolist()
    reranker = make_reranker(encoder=encoder, weights=weights, top_n=6)
    inputs = reranker.inputs(SENTENCES, IDS)
    for best in (reranker.rank(QUERY, inputs), await reranker.arank(QUERY, inputs)):
        assert rows_of(best) == order
        assert [(each.id, each.text) for each in best] == [(IDS[row], SENTENCES[row]) for row in order]
        assert [each.score for each in best] == pytest.approx(scores.combined[order].tolist(), abs=1e-5)
        for mode in ("dense", "lexical", "multi_vector"):
            assert [each.scores[mode] for each in best] == pytest.approx(
                getattr(scores, mode)[order].tolist(), abs=1e-5
            )
        assert {type(value) for each in best for value in (each.score, *each.scores.values())} == {float}


def test_top_n_and_threshold_bound_the_result(make_reranker: type[Reranker], encoder: M3Encoder) -> None:
    inputs = make_reranker.inputs(SENTENCES, IDS)
    everything = make_reranker(encoder=encoder, top_n=9).rank(QUERY, inputs)
    third = everything[2].score
    for settings, n in (
        ({}, 3),
        ({"top_n": 1}, 1),
        ({"top_n": 6}, 6),
        ({"top_n": 5, "score_threshold": third}, 3),
        ({"top_n": 2, "score_threshold": third}, 2),
        ({"score_threshold": 99.0}, 0),
    ):
        assert make_reranker(encoder=encoder, **settings).rank(QUERY, inputs) == everything[:n]


def test_documents_of_a_generator_are_read_once(make_reranker: type[Reranker], encoder: M3Encoder) -> None:
    reranker = make_reranker(encoder=encoder)
    inputs = reranker.inputs(SENTENCES, IDS)
    assert reranker.rank(QUERY, (each for each in inputs)) == reranker.rank(QUERY, inputs)


def test_equal_scores_keep_their_order(make_reranker: type[Reranker], encoder: M3Encoder) -> None:
    reranker = make_reranker(encoder=encoder, weights=ModeWeights(0, 1, 0), top_n=5)
    best = reranker.rank("key", reranker.inputs(["水", "火", "a key", "水", "茶"], list("edcba")))
    assert [(row, each.score > 0) for row, each in zip(rows_of(best), best, strict=True)] == [
        (2, True), (0, False), (1, False), (3, False), (4, False),
    ]  # fmt: skip


async def test_what_is_passed_in_stays_as_it_is(make_reranker: type[Reranker], encoder: M3Encoder) -> None:
    reranker = make_reranker(encoder=encoder, top_n=6)
    inputs = reranker.inputs(SENTENCES, IDS)
    untouched, order = copy.deepcopy(inputs), list(inputs)
    best = [*reranker.rank(QUERY, inputs), *await reranker.arank(QUERY, inputs)]
    assert inputs == untouched
    for each in best:
        each.metadata.clear()
        each.scores.clear()
    assert inputs == untouched
    assert all(one is two for one, two in zip(inputs, order, strict=True))


async def test_nothing_gives_nothing_and_encodes_nothing(make_reranker: type[Reranker], fake: FakeEncoder) -> None:
    reranker = make_reranker(encoder=fake)
    assert reranker.rank(QUERY, []) == await reranker.arank(QUERY, []) == []
    assert fake.encoded == []


async def test_stored_vectors_are_used_where_id_and_text_are_known(
    make_reranker: type[Reranker], fake: FakeEncoder
) -> None:
    store = open_store()
    Searcher(fake, store).add(["one", "two", "three"], ids=["1", "2", "3"])
    inputs = make_reranker.inputs(["one", "changed since", "three", "unknown"], ["1", "2", None, "4"])
    plain = make_reranker(encoder=fake, top_n=4).rank(QUERY, inputs)
    with_store = make_reranker(encoder=fake, store=store, top_n=4)
    for is_async in (False, True):
        fake.encoded.clear()
        best = await with_store.arank(QUERY, inputs) if is_async else with_store.rank(QUERY, inputs)
        assert fake.encoded == [
            ("query", QUERY),
            ("document", "changed since"),
            ("document", "three"),
            ("document", "unknown"),
        ]
        assert [each.text for each in best] == [each.text for each in plain]
        for one, other in zip(best, plain, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-5)
            assert one.score == pytest.approx(other.score, abs=1e-5)


def test_a_query_that_is_retrieved_and_reranked_costs_one_pass_and_stored_documents_none(
    on_network: Retriever, make_reranker: type[Reranker]
) -> None:
    """In either framework over what the other one has stored."""
    encoder = on_network.made.encoder
    assert isinstance(encoder, M3Encoder)
    reranker = make_reranker(encoder=encoder, store=on_network.made.store, top_n=6)
    before = encoder.stats
    found = on_network.search("of a kind", k=6)
    best = reranker.rank("of a kind", reranker.inputs([each.text for each in found], [each.id for each in found]))
    assert encoder.stats.forward_passes - before.forward_passes == 1
    assert encoder.stats.encoded_texts - before.encoded_texts == 1
    assert [each.id for each in best] == [each.id for each in found]
    assert [each.score for each in best] == pytest.approx([each.score for each in found], abs=1e-6)


def test_all_texts_share_forward_passes(make_reranker: type[Reranker], encoder: M3Encoder) -> None:
    make_reranker(encoder=encoder).rank(QUERY, make_reranker.inputs(SENTENCES, IDS))
    assert (encoder.stats.forward_passes, encoder.stats.encoded_texts) == (2, 7)


def test_a_query_over_the_length_limit_is_cut(make_reranker: type[Reranker], encoder: M3Encoder) -> None:
    with pytest.warns(UserWarning, match="longer than 128 tokens"):
        found = make_reranker(encoder=encoder).rank(" ".join(SENTENCES * 20), make_reranker.inputs(SENTENCES, IDS))
    assert len(found) == 3


async def test_a_store_of_another_model_is_refused(
    make_reranker: type[Reranker], fake: FakeEncoder, on_network: Retriever
) -> None:
    reranker = make_reranker(encoder=fake, store=on_network.made.store)
    inputs = reranker.inputs(SENTENCES, IDS)
    with pytest.raises(ValueError, match="not of fa4e"):
        reranker.rank("keys", inputs)
    with pytest.raises(ValueError, match="not of fa4e"):
        await reranker.arank("keys", inputs)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"top_n": 0}, ValueError, "greater than or equal to 1"),
        ({"top_n": -1}, ValueError, "greater than or equal to 1"),
        ({"topn": 3}, ValueError, "topn\n.*Extra"),
        ({"device": "cpu"}, ValueError, "device\n.*Extra"),
        ({"weights": "best"}, ValueError, "unknown weights 'best'"),
        ({"weights": (1, 1)}, ValueError, "ModeWeights"),
        ({"weights": {"dense": 1}}, ValueError, "a mapping with these keys"),
        ({"weights": {3, 4, 5}}, ValueError, "ModeWeights"),
        ({"top_n": True}, ValueError, "integer"),
        ({"weights": {"dense": 0, "lexical": 0, "multi_vector": 0}}, ValueError, "not all 0"),
        ({"score_threshold": float("inf")}, ValueError, "score_threshold\n.*finite"),
        ({"score_threshold": float("nan")}, ValueError, "score_threshold\n.*finite"),
        ({"store": "./folder"}, TypeError, r"store must be a store, got './folder': open one with open_store"),
    ],
)
def test_impossible_settings_are_refused(
    make_reranker: type[Reranker], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before anything is loaded: there is no such model."""
    with pytest.raises(error, match=message):
        make_reranker(model="/no/such/folder", **settings)


def test_a_reranker_pickles_and_one_over_memory_refuses(make_reranker: type[Reranker], encoder: M3Encoder) -> None:
    reranker = make_reranker(encoder=encoder, top_n=2, weights="mldr", score_threshold=-1.0)
    twin = copy.copy(reranker)
    twin.made = pickle.loads(pickle.dumps(reranker.made))
    inputs = reranker.inputs(SENTENCES, IDS)
    assert twin.rank(QUERY, inputs) == reranker.rank(QUERY, inputs)
    assert (twin.made.top_n, twin.made.weights, twin.made.score_threshold) == (2, "mldr", -1.0)
    with pytest.raises(TypeError, match="use a store on a server"):
        pickle.dumps(make_reranker(encoder=encoder, store=open_store()).made)
