"""What each door answers equals what `M3Encoder` does, for plain HTTP and for other makers' clients."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from pydantic import SecretStr
from safetensors.numpy import load
from tokenizers import Tokenizer

from m3_integrations import M3Encoder
from m3_integrations.serve import create_app
from tests.serve.conftest import serving

pytestmark = pytest.mark.enable_socket

TEXTS = ["the stone bridge", "water", "", "seven letters under the bridge, and a key", "water"]
NAME, KEY = "m3", "a-key-of-the-tests"


@pytest.fixture(scope="module")
def url(served: M3Encoder) -> Iterator[str]:
    with serving(create_app(served, api_keys=[KEY], name=NAME)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


def test_the_encoder_describes_itself(client: httpx.Client, served: M3Encoder) -> None:
    about = client.get("/v1/encoder").json()
    assert about["api"] == 1
    assert about["model"] == NAME
    assert about["fingerprint"] == served.fingerprint
    assert (about["dim"], about["token_dim"]) == (64, 64)
    assert about["modes"] == ["dense", "lexical", "multi_vector"]
    assert (about["max_length"], about["query_max_length"]) == (served.max_length, served.query_max_length)
    assert about["limits"] == {"texts": 2048, "body_bytes": 8 << 20, "tokens": 65_536}


@pytest.mark.parametrize("kind", ["document", "query"])
def test_all_three_views_travel_in_one_answer(client: httpx.Client, served: M3Encoder, kind: Any) -> None:
    answer = client.post("/v1/encode", json={"texts": TEXTS, "kind": kind, "modes": None, "max_length": None})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-m3-fingerprint"] == served.fingerprint
    found, expected = load(answer.content), served.encode(TEXTS, kind=kind)
    np.testing.assert_allclose(found["dense"], expected.dense, atol=1e-5)
    np.testing.assert_array_equal(found["lexical.offsets"], expected.lexical.offsets)
    np.testing.assert_array_equal(found["lexical.indices"], expected.lexical.indices)
    np.testing.assert_allclose(found["lexical.values"], expected.lexical.values, atol=1e-5)
    np.testing.assert_array_equal(found["multi_vector.offsets"], expected.multi_vector.offsets)
    np.testing.assert_allclose(found["multi_vector.flat"], expected.multi_vector.flat, atol=1e-5)
    types = {name: str(array.dtype) for name, array in found.items()}
    assert types == {
        "dense": "float32", "lexical.offsets": "int64", "lexical.indices": "int32", "lexical.values": "float32",
        "multi_vector.offsets": "int64", "multi_vector.flat": "float32",
    }  # fmt: skip


def test_only_the_modes_that_were_asked_for_travel_and_cut_texts_are_counted(client: httpx.Client) -> None:
    answer = client.post("/v1/encode", json={"texts": [TEXTS[3], "water"], "modes": ["dense"], "max_length": 4})
    assert load(answer.content).keys() == {"dense"}
    header = json.loads(answer.content[8 : 8 + int.from_bytes(answer.content[:8], "little")])
    assert header["__metadata__"] == {"truncated": "1"}
    assert load(client.post("/v1/encode", json={"texts": []}).content)["dense"].shape == (0, 64)


def test_tokens_and_the_vocabulary_are_the_encoders(client: httpx.Client, served: M3Encoder) -> None:
    assert client.post("/v1/tokenize", json={"texts": TEXTS, "kind": "query"}).json() == {
        "tokens": served.tokenize(TEXTS, kind="query")
    }
    assert client.post("/v1/tokenize", json={"texts": TEXTS, "max_length": 4}).json() == {
        "tokens": served.tokenize(TEXTS, max_length=4)
    }
    assert client.get("/v1/vocabulary").json() == {"tokens": list(served.vocabulary)}


def test_scores_of_pairs_are_the_encoders(client: httpx.Client, served: M3Encoder) -> None:
    pairs = [("stone", text) for text in TEXTS] + [("key", TEXTS[3])]
    found = client.post("/v1/score_pairs", json={"pairs": pairs, "weights": [0.2, 0.5, 0.3]}).json()
    expected = served.score_pairs(pairs, weights=[0.2, 0.5, 0.3])
    modes = {"combined", "dense", "lexical", "multi_vector"}
    assert found.keys() == modes | {"truncated_queries", "truncated_texts"}
    assert found["truncated_queries"] == found["truncated_texts"] == []
    for name, values in ((name, found[name]) for name in modes):
        np.testing.assert_allclose(values, getattr(expected, name), atol=1e-5)
    assert client.post("/v1/score_pairs", json={"pairs": []}).json()["combined"] == []


def test_pairs_with_texts_that_were_cut_are_named(client: httpx.Client) -> None:
    pairs = [("a", "b"), ("word " * 300, "b"), ("a", "word " * 300), ("word " * 300, "c")]
    found = client.post("/v1/score_pairs", json={"pairs": pairs}).json()
    assert (found["truncated_queries"], found["truncated_texts"]) == ([1, 3], [2])


def test_the_tokenizer_that_is_handed_out_counts_as_the_encoder_does(client: httpx.Client, served: M3Encoder) -> None:
    answer = client.get("/v1/tokenizer")
    assert answer.headers["x-m3-fingerprint"] == served.fingerprint
    tokenizer = Tokenizer.from_str(answer.text)
    assert [tokenizer.encode(text).tokens[1:] for text in TEXTS] == served.tokenize(TEXTS)


def test_openais_client_gets_the_same_vectors_in_both_formats(url: str, served: M3Encoder) -> None:
    expected = served.encode(TEXTS).dense
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [NAME]
        answer = client.embeddings.create(model=NAME, input=TEXTS)  # asks for base64
        np.testing.assert_allclose([each.embedding for each in answer.data], expected, atol=1e-6, rtol=0)
        assert [each.index for each in answer.data] == [0, 1, 2, 3, 4]
        assert answer.usage.prompt_tokens == sum(len(tokens) + 1 for tokens in served.tokenize(TEXTS))
        plain = client.embeddings.create(model=NAME, input="water", encoding_format="float")
        np.testing.assert_allclose(plain.data[0].embedding, expected[1], atol=1e-6, rtol=0)
        with pytest.raises(openai.UnprocessableEntityError, match="cannot be shortened: leave dimensions out"):
            client.embeddings.create(model=NAME, input="water", dimensions=8)
        with pytest.raises(openai.UnprocessableEntityError, match="got token ids"):
            client.embeddings.create(model=NAME, input=[[5, 6]])
        with pytest.raises(openai.NotFoundError, match="this server has only the model 'm3', got 'ada'"):
            client.embeddings.create(model="ada", input="water")
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="needs an API key"),
    ):
        stranger.models.list()


def test_the_frameworks_clients_of_openai_get_the_same_vectors(url: str, served: M3Encoder) -> None:
    expected = served.encode(TEXTS).dense
    with httpx.Client() as first, httpx.Client() as second:
        chain = OpenAIEmbeddings(
            base_url=f"{url}/v1",
            api_key=SecretStr(KEY),
            model=NAME,
            check_embedding_ctx_length=False,
            http_client=first,
        )
        np.testing.assert_allclose(chain.embed_documents(TEXTS), expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(chain.embed_query("water"), expected[1], atol=1e-6, rtol=0)
        index = OpenAILikeEmbedding(model_name=NAME, api_base=f"{url}/v1", api_key=KEY, http_client=second)
        np.testing.assert_allclose(index.get_text_embedding_batch(TEXTS[:2]), expected[:2], atol=1e-6, rtol=0)


def test_base64_holds_little_endian_float32(client: httpx.Client, served: M3Encoder) -> None:
    asked = {"model": NAME, "input": ["water"], "encoding_format": "base64", "user": "somebody"}
    (found,) = client.post("/v1/embeddings", json=asked).json()["data"]
    vector = np.frombuffer(base64.b64decode(found["embedding"]), dtype="<f4")
    np.testing.assert_allclose(vector, served.encode(["water"]).dense[0], atol=1e-5)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked_by_all_three_modes(path: str, client: httpx.Client, served: M3Encoder) -> None:
    documents = ["the stone bridge", {"text": "water"}, "a key"]
    expected = served.score("water", ["the stone bridge", "water", "a key"]).combined
    order = np.argsort(-expected).tolist()
    asked = {"model": NAME, "query": "water", "documents": documents, "top_n": 2, "return_documents": True}
    answer = client.post(path, json=asked).json()
    assert [each["index"] for each in answer["results"]] == order[:2]
    assert answer["results"][0]["document"] == {"text": "water"}
    np.testing.assert_allclose([r["relevance_score"] for r in answer["results"]], expected[order[:2]], atol=1e-5)
    plain = client.post(path, json={"query": "water", "documents": documents, "weights": "miracl"}).json()["results"]
    assert [each.keys() for each in plain] == [{"index", "relevance_score"}] * 3
    weighted = served.score("water", ["the stone bridge", "water", "a key"], weights="miracl").combined
    np.testing.assert_allclose([r["relevance_score"] for r in plain], sorted(weighted, reverse=True), atol=1e-5)


def test_a_request_of_text_embeddings_inference_is_answered_in_its_shape(
    client: httpx.Client, served: M3Encoder
) -> None:
    asked = {"query": "water", "texts": ["a key", "water"], "raw_scores": False, "return_text": True, "truncate": True}
    expected = served.score("water", ["water", "a key"]).combined
    answer = client.post("/rerank", json=asked).json()
    assert [(each["index"], each["text"]) for each in answer] == [(1, "water"), (0, "a key")]
    np.testing.assert_allclose([each["score"] for each in answer], expected, atol=1e-5)
    assert client.post("/rerank", json={"query": "water", "documents": []}).json()["results"] == []


@pytest.mark.parametrize(
    ("path", "asked", "message"),
    [
        ("/v1/encode", {"texts": "water"}, "body.texts: Input should be a valid list"),
        ("/v1/encode", {"texts": ["a"], "mode": "dense"}, "body.mode: Extra inputs are not permitted"),
        ("/v1/encode", {"texts": ["a"], "modes": []}, "modes must be one or more of"),
        ("/v1/encode", {"texts": ["a"], "max_length": 2}, "body.max_length: Input should be greater than"),
        ("/v1/score_pairs", {"pairs": [["a", "b"]], "weights": [0, 0, 0]}, "not all 0"),
        ("/v1/score_pairs", {"pairs": [["a", "b"]], "weights": "best"}, "unknown weights 'best'"),
        ("/v1/embeddings", {"model": NAME, "input": []}, "one or more texts, got none"),
        ("/rerank", {"query": "a"}, "either documents or texts"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "body.top_n: Input should be greater than"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_refused_in_openais_shape(
    path: str, asked: dict[str, Any], message: str, client: httpx.Client
) -> None:
    answer = client.post(path, json=asked)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", 422)


def test_what_is_not_valid_is_refused_without_being_quoted_at_length(client: httpx.Client) -> None:
    lone = client.post("/v1/encode", content=b'{"texts": ["\\ud800"]}', headers={"content-type": "application/json"})
    assert lone.status_code == 422
    broken = client.post("/v1/encode", content=b'{"texts": [', headers={"content-type": "application/json"})
    assert broken.status_code == 422
    deep = client.post("/v1/encode", content=b"[" * 200_000, headers={"content-type": "application/json"})
    assert deep.status_code in {400, 422}
    secret = "a secret " * 200
    for asked in ({"texts": [secret], "kind": secret}, {"texts": [secret, 7]}, {"texts": ["a"], "modes": [secret]}):
        answer = client.post("/v1/encode", json=asked)
        assert answer.status_code == 422
        assert len(answer.content) < 700
        assert secret not in answer.text
    assert client.get("/v1/encode").status_code == 405
    assert client.get("/nowhere").json()["error"]["code"] == 404


def test_the_openapi_page_names_every_door_and_its_errors(client: httpx.Client) -> None:
    page = client.get("/openapi.json", headers={"Authorization": ""}).json()
    assert {"/v1/encode", "/v1/embeddings", "/rerank", "/v1/encoder", "/health", "/metrics"} <= page["paths"].keys()
    assert "/v1/search" not in page["paths"], "there is no store"
    encode = page["paths"]["/v1/encode"]["post"]["responses"]
    assert encode["200"]["content"].keys() == {"application/octet-stream"}
    for status in ("401", "413", "422", "429", "503", "504"):
        assert encode[status]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}
