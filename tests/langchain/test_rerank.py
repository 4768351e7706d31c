import copy
import pickle

import pytest
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document
from pydantic import ValidationError

from m3_integrations import M3Encoder, ModeWeights
from m3_integrations.langchain import M3CrossEncoder, M3Rerank
from m3_integrations.langchain.documents import without_scores
from tests.adapters.drivers import SENTENCES

QUERY = "which keys are rotated?"


@pytest.fixture
def found() -> list[Document]:
    return [
        Document(id=f"s{row}", page_content=text, metadata={"row": row, "relevance_score": "of the first stage"})
        for row, text in enumerate(SENTENCES)
    ]


def test_a_result_is_the_document_with_scores_in_its_metadata(encoder: M3Encoder, found: list[Document]) -> None:
    untouched = copy.deepcopy(found)
    best = M3Rerank(encoder=encoder, top_n=None).compress_documents(found, QUERY)
    assert found == untouched
    assert sorted(document.metadata["row"] for document in best) == list(range(6))
    for document in best:
        original = found[document.metadata["row"]]
        results = {key: document.metadata[key] for key in ("relevance_score", "m3_scores")}
        assert document == original.model_copy(update={"metadata": {**original.metadata, **results}})
        assert type(document.metadata["relevance_score"]) is float  # that of the first stage has gone


def test_a_cross_encoder_pickles_and_refuses_wrong_weights(encoder: M3Encoder) -> None:
    cross = M3CrossEncoder(encoder=encoder, weights=ModeWeights(1, 2, 3))
    pairs = [(QUERY, text) for text in SENTENCES]
    assert pickle.loads(pickle.dumps(cross)).score(pairs) == cross.score(pairs)
    for weights, message in (("best", "unknown weights 'best'"), ((1, 1), "ModeWeights")):
        with pytest.raises(ValidationError, match=message):
            M3CrossEncoder(encoder=encoder, weights=weights)


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


def test_a_users_own_keys_called_as_our_scores_stay() -> None:
    own = {"m3_scores": "mine", "relevance_score": 3, "a": 1}
    assert without_scores(own) == own
    assert without_scores({"a": 1, "relevance_score": 0.5, "m3_scores": {"dense": 0.5}}) == {"a": 1}
