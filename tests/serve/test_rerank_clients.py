"""What other makers' reranker clients, and curl, get from the doors equals what `M3Encoder` does."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import cohere
import numpy as np
import pytest
from cohere.core.api_error import ApiError
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from pydantic import SecretStr

from m3_integrations import M3Encoder
from m3_integrations.serve import create_app
from tests.serve.conftest import serving

pytestmark = pytest.mark.enable_socket

TEXTS = ["the stone bridge", "water under the bridge", "seven letters and a key"]
QUERY = "a bridge over water"
NAME, KEY = "m3", "a-key-of-the-tests"
WRONG = "this server needs an API key"


@pytest.fixture(scope="module")
def url(served: M3Encoder) -> Iterator[str]:
    with serving(create_app(served, api_keys=[KEY], name=NAME)) as url:
        yield url


@pytest.fixture(scope="module")
def wanted(served: M3Encoder) -> list[tuple[int, float]]:
    """Rows and scores, best first."""
    scores = served.score(QUERY, TEXTS).combined
    return [(int(row), float(scores[row])) for row in np.argsort(-scores)]


def check(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    assert [row for row, _ in found] == [row for row, _ in wanted]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in wanted], atol=1e-6, rtol=0)


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(id_=str(i), text=text)) for i, text in enumerate(TEXTS)]


def ranked(found: list[NodeWithScore]) -> list[tuple[int, float]]:
    return [(int(each.node.node_id), each.score or 0.0) for each in found]


def test_coheres_client_ranks_as_the_encoder(url: str, wanted: list[tuple[int, float]]) -> None:
    with cohere.ClientV2(KEY, base_url=url) as client:
        answer = client.rerank(model=NAME, query=QUERY, documents=TEXTS, top_n=2, max_tokens_per_doc=4096)
        check([(each.index, each.relevance_score) for each in answer.results], wanted[:2])
    with cohere.Client(KEY, base_url=url) as older:
        documents: list[Any] = [{"text": text} for text in TEXTS]
        found = older.rerank(model=NAME, query=QUERY, documents=documents, return_documents=True)
        check([(each.index, each.relevance_score) for each in found.results], wanted)
        assert [each.document.text for each in found.results if each.document] == [TEXTS[row] for row, _ in wanted]
    with cohere.ClientV2("wrong", base_url=url) as stranger, pytest.raises(ApiError, match=WRONG) as error:
        stranger.rerank(model=NAME, query=QUERY, documents=TEXTS)
    assert error.value.status_code == 401


def test_langchains_reranker_ranks_as_the_encoder(url: str, wanted: list[tuple[int, float]]) -> None:
    with cohere.ClientV2(KEY, base_url=url) as client:
        reranker = CohereRerank(client=client, model=NAME, top_n=2)
        documents = [Document(text, metadata={"row": i}) for i, text in enumerate(TEXTS)]
        found = reranker.compress_documents(documents, QUERY)
    check([(each.metadata["row"], each.metadata["relevance_score"]) for each in found], wanted[:2])
    by_url = CohereRerank(base_url=url, cohere_api_key=SecretStr(KEY), model=NAME)
    check([(each["index"], each["relevance_score"]) for each in by_url.rerank(TEXTS, QUERY, top_n=None)], wanted)
    by_url.client.__exit__(None, None, None)


def test_llama_indexs_reranker_of_jina_ranks_as_the_encoder(url: str, wanted: list[tuple[int, float]]) -> None:
    reranker = JinaRerank(base_url=f"{url}/v1", api_key=KEY, model=NAME, top_n=2)
    with reranker._session:
        check(ranked(reranker.postprocess_nodes(nodes(), QueryBundle(QUERY))), wanted[:2])
    stranger = JinaRerank(base_url=f"{url}/v1", api_key="wrong", model=NAME)
    with stranger._session, pytest.raises(RuntimeError, match=WRONG):
        stranger.postprocess_nodes(nodes(), QueryBundle(QUERY))


def test_llama_indexs_reranker_of_tei_ranks_as_the_encoder(url: str, wanted: list[tuple[int, float]]) -> None:
    reranker = TextEmbeddingInference(base_url=url, auth_token=f"Bearer {KEY}", top_n=2)
    check(ranked(reranker.postprocess_nodes(nodes(), QueryBundle(QUERY))), wanted[:2])


def curl(url: str, asked: dict[str, Any] | None = None, *, key: str = KEY) -> tuple[int, Any]:
    """Return the status and the JSON that the program gets."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    command = [program, "--silent", "--write-out", "\n%{http_code}", "--header", f"Authorization: Bearer {key}", url]
    if asked is not None:
        command += ["--header", "Content-Type: application/json", "--data", json.dumps(asked)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    body, _, status = answer.rpartition("\n")
    return int(status), json.loads(body)


def test_curl_gets_the_encoders_vectors_and_scores(
    url: str, served: M3Encoder, wanted: list[tuple[int, float]]
) -> None:
    status, answer = curl(f"{url}/v1/embeddings", {"model": NAME, "input": TEXTS})
    assert status == 200
    found = [each["embedding"] for each in answer["data"]]
    np.testing.assert_allclose(found, served.encode(TEXTS).dense, atol=1e-6, rtol=0)
    status, answer = curl(f"{url}/rerank", {"query": QUERY, "documents": TEXTS})
    assert status == 200
    check([(each["index"], each["relevance_score"]) for each in answer["results"]], wanted)
    assert curl(f"{url}/health", key="none is needed") == (200, {"status": "ok"})


def test_curl_gets_errors_as_json(url: str) -> None:
    status, answer = curl(f"{url}/v1/embeddings", {"model": NAME, "input": TEXTS}, key="wrong")
    assert status == 401
    assert answer["error"]["message"].startswith(WRONG)
    assert answer["error"]["type"] == "authentication_error"
    status, answer = curl(f"{url}/rerank", {"query": QUERY})
    assert status == 422
    assert answer["error"]["message"] == answer["detail"] == "a request must have either documents or texts"
