"""What both frameworks' `M3HybridRetriever` finds, returns, stores and refuses."""

import asyncio
import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from m3_integrations import M3Encoder, ModeWeights, Searcher, open_store
from m3_integrations.search import SearchMode
from m3_integrations.store import matches, parse_filter
from tests.adapters.drivers import SENTENCES, Found, Retriever
from tests.test_filters import random_filter
from tests.test_search import expected_ranking, make_texts

QUERY = "rotate the keys"


def ids_of(found: list[Found]) -> list[str | None]:
    return [each.id for each in found]


def expected(retriever: Retriever, query: str, **asked: Any) -> list[tuple[str, float]]:
    return expected_ranking(Searcher(retriever.made.encoder, retriever.made.store), query, **asked)[0]


def settled(retriever: Retriever, **asked: Any) -> Retriever:
    """Another retriever over the same encoder and store."""
    return type(retriever)(encoder=retriever.made.encoder, store=retriever.made.store, **asked)


async def test_every_setting_of_a_call_or_of_the_constructor_is_honoured(filled: Retriever) -> None:
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
        ranked = expected(filled, query, **asked)
        fixed = settled(filled, **asked)
        for found in (
            filled.search(query, **asked),
            await filled.asearch(query, **asked),
            fixed.search(query),
            await fixed.asearch(query),
        ):
            assert ids_of(found) == [id_ for id_, _ in ranked]
            assert [each.score for each in found] == pytest.approx([score for _, score in ranked], abs=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"pool_size": 2, "k": 2},
        {"fusion": "rrf", "rrf_k": 2, "k": 5},
        {"bm25": "replace", "mode": "lexical", "k": 5},
        {"bm25": "extra", "mode": "lexical", "k": 2},
        {"bm25": "extra", "k": 1},
        {"weights": "mldr", "mode": "dense+lexical", "score_threshold": 0.1, "k": 40, "filter": {"row": {"$lt": 30}}},
    ],
)
async def test_every_option_reaches_the_search(filled: Retriever, asked: dict[str, Any]) -> None:
    hits = Searcher(filled.made.encoder, filled.made.store).search("tea rain", **asked)
    fixed = settled(filled, **{"k": 4, **asked})
    for found in (
        filled.search("tea rain", **asked),
        await filled.asearch("tea rain", **asked),
        fixed.search("tea rain"),
        await fixed.asearch("tea rain"),
    ):
        assert [(each.id, each.score, each.scores) for each in found] == [(h.id, h.score, h.scores) for h in hits]


@pytest.mark.parametrize("is_async", [False, True])
async def test_none_in_a_call_means_the_constructors_option_and_an_empty_filter_means_none(
    filled: Retriever, is_async: bool
) -> None:
    first: dict[str, Any] = {
        "k": 2, "mode": "all", "weights": "miracl", "filter": {"row": {"$lt": 20}}, "score_threshold": 0.3,
        "pool_size": 7, "fusion": "weighted", "rrf_k": 5, "bm25": "off",
    }  # fmt: skip
    other: dict[str, Any] = {
        "k": 5, "mode": "dense", "weights": "mldr", "filter": {"row": {"$gte": 20}}, "score_threshold": 0.9,
        "pool_size": 1, "fusion": "rrf", "rrf_k": 0, "bm25": "extra",
    }  # fmt: skip
    fixed, searcher = settled(filled, **first), Searcher(filled.made.encoder, filled.made.store)

    async def ask(**asked: Any) -> list[tuple[str | None, float]]:
        found = await fixed.asearch("keys vault", **asked) if is_async else fixed.search("keys vault", **asked)
        return [(each.id, each.score) for each in found]

    def wanted(**asked: Any) -> list[tuple[str | None, float]]:
        return [(hit.id, hit.score) for hit in searcher.search("keys vault", **{**first, **asked})]

    nothing = dict.fromkeys(first)
    assert await ask() == await ask(**nothing) == wanted() != []
    for name, value in other.items():
        assert await ask(**{name: value}) == await ask(**{**nothing, name: value}) == wanted(**{name: value}), name
    assert len(await ask(filter={}, k=40, score_threshold=-1.0, pool_size=40)) == 40
    assert await ask() == wanted()  # a call changes nothing for the next one


async def test_k_of_a_call_counts_sync_and_async(filled: Retriever) -> None:
    for k in (1, 3, 7):
        assert len(filled.search("keys", k=k)) == len(await filled.asearch("keys", k=k)) == k
    assert len(filled.search("keys")) == len(await filled.asearch("keys")) == 4


def test_results_carry_the_combined_score_and_the_raw_score_of_every_mode(
    on_network: Retriever, encoder: M3Encoder
) -> None:
    found = on_network.search(QUERY, k=6, weights="miracl")
    scores = encoder.score(QUERY, [each.text for each in found], weights=ModeWeights.preset("miracl"))
    assert [each.score for each in found] == pytest.approx(scores.combined.tolist(), abs=1e-5)
    for mode in ("dense", "lexical", "multi_vector"):
        assert [each.scores[mode] for each in found] == pytest.approx(getattr(scores, mode).tolist(), abs=1e-5)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert {type(value) for each in found for value in (each.score, *each.scores.values())} == {float}


def test_a_result_is_what_was_stored(filled: Retriever, texts: dict[str, tuple[str, dict[str, Any]]]) -> None:
    found = filled.search("keys", k=40)
    assert {each.id: (each.text, each.metadata) for each in found} == texts


def test_only_the_modes_that_rank_are_scored(filled: Retriever) -> None:
    for mode, names in (("dense", ["dense"]), ("dense+lexical", ["dense", "lexical"])):
        (found,) = filled.search("keys", mode=mode, k=1)
        assert list(found.scores) == names


async def test_filters_never_leak(filled: Retriever, texts: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Random filters give exactly what the plain evaluator gives, through every mode, sync and async."""
    random = np.random.default_rng(3)
    sizes = set()
    for trial in range(80):
        filter_ = random_filter(random)
        parsed = parse_filter(filter_)
        allowed = {id_ for id_, (_, own) in texts.items() if matches(parsed, own)}
        mode = get_args(SearchMode)[trial % 5]
        for found in (
            filled.search("keys rain", filter=filter_, k=40, mode=mode),
            await filled.asearch("keys rain", filter=filter_, k=40, mode=mode),
            settled(filled, k=40, mode=mode, filter=filter_).search("keys rain"),
        ):
            assert set(ids_of(found)) == allowed if mode != "lexical" else set(ids_of(found)) <= allowed
            sizes.add(len(found))
    assert {0, 40} < sizes


def test_changing_a_filter_after_it_was_given_changes_nothing(filled: Retriever) -> None:
    filter_: dict[str, Any] = {"row": {"$in": [1, 2]}}
    fixed = settled(filled, filter=filter_)
    filter_["row"]["$in"].append(3)
    assert sorted(each.metadata["row"] for each in fixed.search("keys")) == [1, 2]


def test_a_text_that_shares_no_token_is_no_lexical_hit(on_network: Retriever) -> None:
    for bm25 in ("off", "replace"):
        assert on_network.search("水", mode="lexical", bm25=bm25) == []
    (found,) = on_network.search("museum", mode="lexical", k=1)
    assert found.text == "The museum opens on Tuesdays."


def test_bm25_finds_words_of_languages_without_spaces(make: type[Retriever], encoder: M3Encoder) -> None:
    texts = ["我们明天去博物馆看展览", "今天下雨", "火车晚上九点开往维也纳"]
    retriever = make(encoder=encoder, bm25="replace", fusion="rrf", mode="lexical", k=1)
    retriever.add(texts)
    (found,) = retriever.search("火车几点开")
    assert found.text == texts[2]
    assert found.scores["bm25"] > 0


def test_the_bm25_index_is_made_once_for_all_options(filled: Retriever) -> None:
    """It is a pass of the tokenizer over every record."""
    fake, tokenized = filled.made.encoder, []
    tokenize = fake.tokenize

    def counting(texts: Any, **kwargs: Any) -> list[list[str]]:
        tokenized.append(len(texts))
        return tokenize(texts, **kwargs)

    fake.tokenize = counting  # type: ignore[method-assign]
    for k in (1, 2, 3):
        filled.search("keys", bm25="extra", k=k)
    assert tokenized == [40, 1, 1, 1]


def test_bm25_over_a_folder_is_refused_before_a_model_is_loaded(make: type[Retriever], tmp_path: Path) -> None:
    with (
        open_store(tmp_path / "store") as store,
        pytest.raises(ValueError, match="bm25='extra' needs a store in memory"),
    ):
        make(model="/no/such/folder", store=store, bm25="extra")


def test_weights_may_be_numbers_a_mapping_or_a_preset(filled: Retriever) -> None:
    expected = filled.search("keys vault", weights=ModeWeights(1, 0.3, 1))
    weights: Any
    for weights in ([1, 0.3, 1], (1, 0.3, 1), np.array([1, 0.3, 1]), "miracl",
                    {"dense": 1, "lexical": 0.3, "multi_vector": 1}):  # fmt: skip
        assert filled.search("keys vault", weights=weights) == expected
        assert type(filled)(encoder=filled.made.encoder, store=filled.made.store, k=4, weights=weights).search(
            "keys vault"
        ) == expected  # fmt: skip


def test_a_flag_is_no_number_and_numpys_numbers_are(make: type[Retriever], filled: Retriever) -> None:
    for name in ("k", "pool_size", "rrf_k"):
        with pytest.raises((TypeError, ValueError), match="integer"):
            make(encoder=filled.made.encoder, **{name: True})
    assert len(make(encoder=filled.made.encoder, store=filled.made.store, k=np.int64(3)).search("keys")) == 3


@pytest.mark.parametrize("unknown", ["top_k", "verbose", "num_results"])
async def test_unknown_arguments_of_a_call_are_refused(filled: Retriever, unknown: str) -> None:
    for value in (1, None):
        with pytest.raises(TypeError, match=f"no option {unknown}: .*(it|It) has (k|similarity_top_k, filters), mode"):
            filled.search("keys", **{unknown: value})
        with pytest.raises(TypeError, match=f"no option {unknown}"):
            await filled.asearch("keys", **{unknown: value})


async def test_impossible_arguments_of_a_call_are_refused(filled: Retriever) -> None:
    for asked, error, message in (
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": "3"}, TypeError, "k must be an integer"),
        ({"weights": "best"}, ValueError, "unknown weights"),
        ({"weights": (1, -1, 1)}, ValueError, "mode weights must be"),
        ({"weights": (1, 1)}, TypeError, "weights must be ModeWeights"),
        ({"mode": "sparse"}, ValueError, "mode must be one of"),
        ({"filter": {"color": {"$regex": "r"}}}, ValueError, r"unknown \$regex on 'color'"),
        ({"filter": "a = 1"}, TypeError, "must be a mapping"),
    ):
        with pytest.raises(error, match=message):
            filled.search("keys", **asked)
        with pytest.raises(error, match=message):
            await filled.asearch("keys", **asked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 3}, "top_k"),
        ({"K": 3}, "K"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": "three"}, "integer"),
        ({"pool_size": 0}, "pool_size must be at least 1"),
        ({"mode": "sparse"}, "dense\\+lexical"),
        ({"fusion": "mean"}, "weighted.* rrf|'weighted' or 'rrf'"),
        ({"weights": "best"}, "unknown weights 'best'"),
        ({"weights": (1, 1)}, "ModeWeights"),
        ({"filter": {"a": {"$near": 1}}}, r"unknown \$near"),
        ({"filter": "a = 1"}, "must be a mapping"),
        ({"score_threshold": float("nan")}, "score_threshold must be finite"),
        ({"store": "./folder"}, r"store must be a store, got './folder': open one with open_store"),
    ],
)
def test_unknown_and_impossible_arguments_of_the_constructor_are_refused(
    make: type[Retriever], settings: dict[str, Any], message: str
) -> None:
    """Before anything is loaded: there is no such model."""
    with pytest.raises((TypeError, ValueError), match=message):
        make(model="/no/such/folder", **settings)
    with pytest.raises(FileNotFoundError, match="/no/such/folder"):
        make(model="/no/such/folder")


async def test_a_query_costs_one_pass_and_documents_none(on_network: Retriever) -> None:
    encoder = on_network.made.encoder
    assert isinstance(encoder, M3Encoder)
    for question, is_async in (("a query of its own", False), ("another query", True)):
        before = encoder.stats
        _ = await on_network.asearch(question, k=6) if is_async else on_network.search(question, k=6)
        on_network.explain(question, "s0")
        assert encoder.stats.forward_passes - before.forward_passes == 1
        assert encoder.stats.encoded_texts - before.encoded_texts == 1


def test_an_explanation_adds_up_to_the_scores_of_the_result(on_network: Retriever) -> None:
    (found,) = on_network.search("rotate keys", k=1)
    explanation = on_network.explain("rotate keys", str(found.id))
    assert explanation.scores == pytest.approx(found.scores, abs=1e-5)
    assert sum(match.score for match in explanation.lexical) == pytest.approx(explanation.scores["lexical"], abs=1e-5)
    with pytest.raises(KeyError, match="nobody"):
        on_network.explain("keys", "nobody")


def test_a_miss_is_explained_with_the_options_of_the_call(filled: Retriever) -> None:
    searcher = Searcher(filled.made.encoder, filled.made.store)
    for id_ in ("d03", "d17", "nobody"):
        found = filled.explain_missing("keys vault", id_, k=2, pool_size=3, filter={"row": {"$gt": 5}})
        assert found == searcher.explain_missing("keys vault", id_, k=2, pool_size=3, filter={"row": {"$gt": 5}})
        assert found.is_stored is (id_ != "nobody")
    assert [
        str(clause) for clause in filled.explain_missing("keys", "d03", filter={"row": {"$gt": 5}}).excluded_by
    ] == ["{'row': {'$gt': 5}}: the record has row = 3"]


def test_the_sentences_of_what_was_found_are_told(on_network: Retriever) -> None:
    searcher = Searcher(on_network.made.encoder, on_network.made.store)
    assert on_network.made.spans("rotate keys", ["s0", "s3"]) == searcher.spans("rotate keys", ["s0", "s3"])
    assert [evidence.text for evidence in on_network.made.spans("keys", ["s0"])] == [SENTENCES[0]]


def test_sentences_are_found_by_their_words(on_network: Retriever) -> None:
    for row, text in enumerate(SENTENCES):
        assert on_network.search(text, k=1)[0].id == f"s{row}"


async def test_async_gives_what_sync_gives_to_many_at_once(on_network: Retriever) -> None:
    queries = [f"query {i} of keys" for i in range(12)]
    found = await asyncio.gather(*(on_network.asearch(query) for query in queries))
    for query, each in zip(queries, found, strict=True):
        wanted = on_network.search(query)
        assert ids_of(each) == ids_of(wanted)
        assert [one.score for one in each] == pytest.approx([one.score for one in wanted], abs=1e-5)


async def test_an_error_of_the_encoder_reaches_the_caller(on_network: Retriever) -> None:
    encoder = on_network.made.encoder
    assert isinstance(encoder, M3Encoder)
    on_network.search("keys")
    encoder.close()
    with pytest.raises(RuntimeError, match="was closed"):
        on_network.search("keys")
    with pytest.raises(RuntimeError, match="was closed"):
        await on_network.asearch("keys")


def test_a_retriever_over_memory_refuses_to_be_pickled_and_names_the_way_out(filled: Retriever) -> None:
    with pytest.raises(TypeError, match="use a store on a server"):
        pickle.dumps(filled.made)


async def test_a_store_of_another_model_is_refused(small: Path, make: type[Retriever], filled: Retriever) -> None:
    other = make(model=str(small), store=filled.made.store)
    with pytest.raises(ValueError, match="vectors of the model fa4e"):
        other.search("keys")
    with pytest.raises(ValueError, match="vectors of the model fa4e"):
        await other.asearch("keys")
    with pytest.raises(ValueError, match="vectors of the model fa4e"):
        other.add(["a"])
