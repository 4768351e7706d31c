import copy
import pickle
from typing import Any

import numpy as np
import pytest
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document
from pydantic import ValidationError

from m3_integrations import M3Encoder, ModeWeights, open_store
from m3_integrations.langchain import M3CrossEncoder, M3HybridRetriever, M3Rerank
from tests.fakes import FakeEncoder
from tests.langchain.conftest import SENTENCES

QUERY = "which keys are rotated?"


@pytest.fixture
def found() -> list[Document]:
    return [
        Document(id=f"s{row}", page_content=text, metadata={"row": row, "relevance_score": "of the first stage"})
        for row, text in enumerate(SENTENCES)
    ]


async def test_documents_are_ranked_by_the_combined_score_and_carry_it(
    encoder: M3Encoder, found: list[Document]
) -> None:
    scores = encoder.score(QUERY, SENTENCES, weights=ModeWeights.preset("miracl"))
    order = np.argsort(-scores.combined, kind="stable").tolist()
    reranker = M3Rerank(encoder=encoder, weights="miracl", top_n=None)
    for best in (reranker.compress_documents(found, QUERY), await reranker.acompress_documents(found, QUERY)):
        assert [d.metadata["row"] for d in best] == order
        assert [d.metadata["relevance_score"] for d in best] == pytest.approx(scores.combined[order], abs=1e-5)
        for mode in ("dense", "lexical", "multi_vector"):
            expected = getattr(scores, mode)[order]
            assert [d.metadata["m3_scores"][mode] for d in best] == pytest.approx(expected, abs=1e-5)
        assert [(d.id, d.page_content) for d in best] == [(f"s{row}", SENTENCES[row]) for row in order]
        values = [v for d in best for v in (d.metadata["relevance_score"], *d.metadata["m3_scores"].values())]
        assert {type(value) for value in values} == {float}


def test_top_n_and_threshold_bound_the_result(encoder: M3Encoder, found: list[Document]) -> None:
    everything = M3Rerank(encoder=encoder, top_n=None).compress_documents(found, QUERY)
    third = everything[2].metadata["relevance_score"]
    for settings, n in (({}, 3), ({"top_n": 1}, 1), ({"top_n": 9}, 6), ({"top_n": 5, "score_threshold": third}, 3)):
        assert M3Rerank(encoder=encoder, **settings).compress_documents(found, QUERY) == everything[:n]
    assert M3Rerank(encoder=encoder, score_threshold=99.0).compress_documents(found, QUERY) == []


def test_equal_scores_keep_their_order(encoder: M3Encoder) -> None:
    documents = [Document(text, metadata={"row": row}) for row, text in enumerate(["水", "火", "a key", "水", "茶"])]
    reranker = M3Rerank(encoder=encoder, weights=ModeWeights(0, 1, 0), top_n=None)
    best = reranker.compress_documents(documents, "key")
    assert [(d.metadata["row"], d.metadata["relevance_score"] > 0) for d in best] == [
        (2, True), (0, False), (1, False), (3, False), (4, False),
    ]  # fmt: skip


async def test_documents_that_are_passed_in_stay_as_they_are(encoder: M3Encoder, found: list[Document]) -> None:
    untouched = copy.deepcopy(found)
    reranker = M3Rerank(encoder=encoder, top_n=None)
    best = [*reranker.compress_documents(found, QUERY), *await reranker.acompress_documents(found, QUERY)]
    assert found == untouched
    for document in best:
        document.metadata.clear()
    assert found == untouched


async def test_no_documents_give_no_documents_and_encode_nothing(fake: FakeEncoder) -> None:
    reranker = M3Rerank(encoder=fake)
    assert reranker.compress_documents([], QUERY) == await reranker.acompress_documents([], QUERY) == []
    assert fake.encoded == []


def test_stored_vectors_are_used_where_id_and_text_are_known(fake: FakeEncoder) -> None:
    store = open_store()
    M3HybridRetriever.from_texts(["one", "two", "three"], ids=["1", "2", "3"], encoder=fake, store=store)
    fake.encoded.clear()
    documents = [
        Document("one", id="1"),
        Document("changed since", id="2"),
        Document("three"),
        Document("unknown", id="4"),
    ]
    best = M3Rerank(encoder=fake, store=store, top_n=None).compress_documents(documents, QUERY)
    assert fake.encoded == [
        ("query", QUERY),
        ("document", "changed since"),
        ("document", "three"),
        ("document", "unknown"),
    ]
    plain = M3Rerank(encoder=fake, top_n=None).compress_documents(documents, QUERY)
    assert [d.page_content for d in best] == [d.page_content for d in plain]
    for with_store, without in zip(best, plain, strict=True):
        assert with_store.metadata["m3_scores"] == pytest.approx(without.metadata["m3_scores"], abs=1e-5)


def test_a_query_that_is_retrieved_and_reranked_costs_one_pass_and_stored_documents_none(
    sentences: M3HybridRetriever,
) -> None:
    encoder = sentences.encoder
    assert isinstance(encoder, M3Encoder)
    reranker = M3Rerank(encoder=encoder, store=sentences.store)
    before = encoder.stats
    best = reranker.compress_documents(sentences.invoke("of a kind", k=6), "of a kind")
    assert len(best) == 3
    assert encoder.stats.forward_passes - before.forward_passes == 1
    assert encoder.stats.encoded_texts - before.encoded_texts == 1


def test_a_store_of_another_model_is_refused(fake: FakeEncoder, sentences: M3HybridRetriever) -> None:
    reranker = M3Rerank(encoder=fake, store=sentences.store)
    with pytest.raises(ValueError, match="not of fa4e"):
        reranker.compress_documents(sentences.invoke("keys"), "keys")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"top_n": 0}, ValidationError, "top_n"),
        ({"top_n": -1}, ValidationError, "top_n"),
        ({"topn": 3}, ValidationError, "topn"),
        ({"weights": "best"}, ValidationError, "unknown weights 'best'"),
        ({"weights": (1, 1, 1)}, ValidationError, "weights"),
        ({"score_threshold": float("inf")}, ValidationError, "score_threshold"),
        ({"store": "./folder"}, TypeError, "store must be a store, got './folder'"),
    ],
)
def test_impossible_settings_are_refused(
    fake: FakeEncoder, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        M3Rerank(encoder=fake, **settings)


def test_rerankers_pickle_and_one_over_memory_refuses(sentences: M3HybridRetriever, found: list[Document]) -> None:
    reranker = M3Rerank(encoder=sentences.encoder, top_n=2, weights="mldr", score_threshold=-1.0)
    twin = pickle.loads(pickle.dumps(reranker))
    assert twin.compress_documents(found, QUERY) == reranker.compress_documents(found, QUERY)
    assert repr(twin) == repr(reranker)
    cross = M3CrossEncoder(encoder=sentences.encoder, weights=ModeWeights(1, 2, 3))
    pairs = [(QUERY, text) for text in SENTENCES]
    assert pickle.loads(pickle.dumps(cross)).score(pairs) == cross.score(pairs)
    with pytest.raises(TypeError, match="use a server store"):
        pickle.dumps(M3Rerank(encoder=sentences.encoder, store=sentences.store))


def test_a_cross_encoder_gives_the_combined_score_of_every_pair(encoder: M3Encoder) -> None:
    pairs = [("keys", SENTENCES[0]), ("tea", SENTENCES[3]), ("keys", SENTENCES[4]), ("", "")]
    for weights in (None, "miracl", ModeWeights(0, 1, 0)):
        scores = M3CrossEncoder(encoder=encoder, weights=weights).score(pairs)
        chosen = ModeWeights.preset(weights) if isinstance(weights, str) else weights
        expected = [float(encoder.score(q, [text], weights=chosen).combined[0]) for q, text in pairs]
        assert scores == pytest.approx(expected, abs=1e-5)
        assert {type(score) for score in scores} == {float}
    assert M3CrossEncoder(encoder=encoder).score([]) == []


def test_the_cross_encoder_works_in_langchains_reranker(encoder: M3Encoder, found: list[Document]) -> None:
    theirs = CrossEncoderReranker(model=M3CrossEncoder(encoder=encoder, weights="miracl"), top_n=4)
    ours = M3Rerank(encoder=encoder, weights="miracl", top_n=4)
    best = theirs.compress_documents(found, QUERY)
    assert [d.id for d in best] == [d.id for d in ours.compress_documents(found, QUERY)]
    assert list(theirs.compress_documents([], QUERY)) == []
