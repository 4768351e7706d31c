"""Adapters of both frameworks and the command line accept an `m3 serve` wherever they accept an encoder or a model."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from langchain_core.documents import Document
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from typer.testing import CliRunner

from m3_integrations import M3Encoder, RemoteEncoder, langchain, llama_index
from m3_integrations.cli import app
from m3_integrations.cli.collection import read_collection
from tests.remote.conftest import served

pytestmark = pytest.mark.enable_socket

TEXTS = ["Rotate the keys of the vault once a year.", "The museum opens on Tuesdays.", "Rain is expected in Vienna."]


def passes(encoder: M3Encoder) -> tuple[int, int]:
    return encoder.stats.forward_passes, encoder.stats.encoded_texts


async def test_a_query_of_langchain_that_is_searched_and_reranked_is_one_pass_there(
    remote: RemoteEncoder, local: M3Encoder
) -> None:
    retriever = langchain.M3HybridRetriever(encoder=remote, k=3)
    retriever.add_documents([Document(id=str(i), page_content=text) for i, text in enumerate(TEXTS)])
    rerank = langchain.M3Rerank(encoder=remote, store=retriever.store, top_n=2)
    embeddings = langchain.M3Embeddings(encoder=remote)
    here = langchain.M3HybridRetriever(encoder=local, store=retriever.store, k=3)
    for question, is_async in (("how do I rotate the keys, synchronously?", False), ("and asynchronously?", True)):
        before = passes(local)
        documents = await retriever.ainvoke(question) if is_async else retriever.invoke(question)
        found = cast("list[langchain.M3Document]", documents)
        best = rerank.compress_documents(found, question)
        dense = embeddings.embed_query(question)
        retriever.explain(question, "0")
        assert np.subtract(passes(local), before).tolist() == [1, 1]
        wanted = cast("list[langchain.M3Document]", here.invoke(question))
        assert [document.id for document in found] == [document.id for document in wanted]
        assert [each.score for each in found] == pytest.approx([each.score for each in wanted], abs=1e-5)
        assert [document.id for document in best] == [document.id for document in wanted[:2]]
        np.testing.assert_allclose(dense, local.encode([question], kind="query").dense[0], atol=1e-5)


def test_both_frameworks_open_a_url_as_a_model(url: str, local: M3Encoder) -> None:
    vectors = langchain.M3VectorStore(model=url)
    vectors.add_texts(TEXTS, ids=["a", "b", "c"])
    assert [found.id for found in vectors.similarity_search("rotate the keys", k=1)] == ["a"]
    scores = langchain.M3CrossEncoder(model=url).score([("keys", text) for text in TEXTS])
    assert scores == pytest.approx(local.score("keys", TEXTS).combined.tolist(), abs=1e-5)
    first = langchain.M3Embeddings(model=url)
    for again in (
        langchain.M3Embeddings(**first.model_dump()),
        copy.deepcopy(first),
        pickle.loads(pickle.dumps(first)),
    ):
        assert again.embed_query("keys") == first.embed_query("keys")

    kept = llama_index.M3VectorStore(model=url)
    nodes: list[Any] = [TextNode(id_=str(i), text=text) for i, text in enumerate(TEXTS)]
    index = VectorStoreIndex.from_vector_store(kept, embed_model=kept.embed_model)
    index.insert_nodes(nodes)
    assert index.as_retriever(similarity_top_k=1).retrieve("rotate the keys")[0].node_id == "0"
    ranked = llama_index.M3Rerank(model=url, top_n=3).postprocess_nodes(
        [NodeWithScore(node=node) for node in nodes], QueryBundle("keys")
    )
    assert [each.score for each in ranked] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)


def m3(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env=environment)


def test_the_command_line_indexes_searches_and_evaluates_over_a_server(local: M3Encoder, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "docs" / f"{i}.txt").write_text(text)
    store = str(tmp_path / "idx")
    data = tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    (data / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": str(i), "title": "", "text": text}) + "\n" for i, text in enumerate(TEXTS))
    )
    (data / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "rotate the keys"}) + "\n")
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    with served(local, api_keys=["secret"]) as url:
        refused = m3("index", str(tmp_path / "docs"), "--store", store, "--model", url)
        assert refused.exit_code == 1
        assert "does not accept the API key" in refused.output
        indexed = m3(
            "index", str(tmp_path / "docs"), "--store", store, "--size", "64", "--model", url, M3_API_KEY="secret"
        )
        assert "3 added" in indexed.output, indexed.output
        found = m3("search", store, "rotate the keys", "--model", url, "--json", M3_API_KEY="secret")
        assert json.loads(found.stdout)["hits"][0]["text"] == TEXTS[0]
        out = str(tmp_path / "out")
        measured = m3("eval", str(data), "--model", url, "--out", out, "--metrics", "nDCG@10", M3_API_KEY="secret")
        assert measured.exit_code == 0, measured.output
        assert (tmp_path / "out" / "results.json").exists()
        for wrong in (["--device", "cuda"], ["--max-length", "64"]):
            refused = m3("eval", str(data), "--model", url, *wrong, M3_API_KEY="secret")
            assert refused.exit_code == 1
            assert "settings of m3 serve" in refused.output
    gone = m3("search", store, "rotate the keys", "--model", url)
    assert gone.exit_code == 1
    assert "start the server with m3 serve MODEL" in gone.output


def test_the_demo_asks_a_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = [passage for passage in read_collection() if passage.id == "shutil.copyfile"]
    monkeypatch.setattr("m3_integrations.cli.demo.read_collection", lambda: passages)
    shown = m3("demo", "copy a file", "--model", url)
    assert shown.exit_code == 0, shown.output
    assert f"Asking m3 serve at {url}." in shown.output.replace("\n", " ")
    assert "Why shutil.copyfile" in shown.output
    assert "One network answered, and both frameworks used it." in shown.output
    refused = m3("demo", "--model", url, "--device", "cuda")
    assert refused.exit_code == 1
    assert "settings of m3 serve" in refused.output
