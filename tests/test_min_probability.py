"""`min_probability`: nothing is returned where the best hit is unlikely to answer, in `Searcher` and frameworks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.vector_stores import VectorStoreQuery
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from pydantic import ValidationError

from m3_integrations import Searcher, SearchOptions, open_store
from m3_integrations.langchain import M3HybridRetriever, M3VectorStore
from m3_integrations.llama_index import M3HybridRetriever as NodeRetriever
from m3_integrations.llama_index import M3VectorStore as NodeStore
from m3_integrations.search import Calibration, read_calibration
from m3_integrations.vectors import ModeWeights
from tests.fakes import FakeEncoder

# The probability is the logistic function of the best hit's dense score.
BY_DENSE = Calibration(
    model="fake", fingerprint="fa4e", weights=ModeWeights(), means=(0,) * 9, scales=(1,) * 9,
    coefficients=(1, *(0,) * 8), intercept=0, n_questions=9,
)  # fmt: skip
TEXTS = [f"text {i} of these" for i in range(30)]


@pytest.fixture
def searcher() -> Searcher:
    made = Searcher(FakeEncoder(), open_store(), SearchOptions(calibration=BY_DENSE))
    made.add(TEXTS, ids=[f"d{i:02}" for i in range(30)], metadatas=[{"row": i} for i in range(30)])
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    BY_DENSE.save(tmp_path / "c.json")
    return tmp_path / "c.json"


async def test_the_best_hit_has_its_probability_and_nothing_is_returned_below_it(searcher: Searcher) -> None:
    plain = Searcher(searcher.encoder, searcher.store).search("a question")
    hits = searcher.search("a question")
    first, *others = hits
    probability = first.scores.pop("probability")
    assert hits == plain
    assert all("probability" not in hit.scores for hit in others)
    assert probability == pytest.approx(BY_DENSE.probabilities(_row(first.scores["dense"]))[0], abs=1e-6)
    for least, n in ((probability, 4), (probability + 1e-9, 0), (0, 4), (1, 0), (None, 4)):
        found = searcher.search("a question", min_probability=least)
        assert len(found) == n
        assert await searcher.asearch("a question", min_probability=least) == found
        assert searcher.search_batch(["a question"], min_probability=least) == [found]
    assert searcher.search("a question", filter={"row": 99}, min_probability=0.1) == []
    (only,) = searcher.search("a question", filter={"row": 7}, score_threshold=-9)
    assert only.scores["probability"] == pytest.approx(BY_DENSE.probabilities(_row(only.scores["dense"]))[0], abs=1e-6)


def test_a_refused_record_is_explained_by_the_probability(searcher: Searcher) -> None:
    (first, *_) = searcher.search("a question", k=1)
    probability = first.scores["probability"]
    found = searcher.explain_missing("a question", first.id, min_probability=probability)
    assert (found.probability, found.is_found) == (probability, True)
    refused = searcher.explain_missing("a question", first.id, min_probability=probability + 1e-6)
    assert (refused.probability, refused.rank, refused.is_found) == (probability, 1, False)
    assert f"answers with a probability of {probability:.2f}, below min_probability=" in str(refused)
    assert Searcher(searcher.encoder, searcher.store).explain_missing("a question", first.id).probability is None


def _row(dense: float) -> Any:
    import numpy as np

    return np.array([[dense, *[0.0] * 8]])


@pytest.mark.parametrize(
    "asked",
    [
        {"mode": "dense"},
        {"weights": "miracl"},
        {"fusion": "rrf"},
        {"bm25": "extra"},
        {"ids": ["d01", "d02"]},
    ],
)
def test_another_search_than_the_fitted_one_has_no_probability(searcher: Searcher, asked: dict[str, Any]) -> None:
    hits = searcher.search("a question", **asked)
    assert hits
    assert not any("probability" in hit.scores for hit in hits)
    assert searcher.search("a question", min_probability=0, **asked) == hits
    with pytest.raises(ValueError, match=r"needs a calibration for this search: this one is for all three modes"):
        searcher.search("a question", min_probability=0.1, **asked)


def test_without_a_fit_it_is_not_there(searcher: Searcher) -> None:
    for ask in (
        lambda: SearchOptions(min_probability=0.5),
        lambda: Searcher(searcher.encoder, searcher.store).search("a", min_probability=0.5),
        lambda: NodeRetriever(encoder=searcher.encoder, min_probability=0.5),
        lambda: M3HybridRetriever(encoder=searcher.encoder, min_probability=0.5),
        lambda: M3VectorStore(encoder=searcher.encoder).similarity_search("a", min_probability=0.5),
    ):
        with pytest.raises(ValueError, match=r"fit one on your own questions with m3 eval DATA --calibrate FILE"):
            ask()


def test_a_fit_of_another_model_is_refused(searcher: Searcher) -> None:
    other = dataclasses.replace(BY_DENSE, model="wide", fingerprint="31de")
    with pytest.raises(ValueError, match=r"fitted for wide \(31de\), and this model is fake \(fa4e\)"):
        searcher.search("a question", calibration=other)


def test_a_store_without_token_vectors_has_no_probability(tmp_path: Path) -> None:
    with Searcher(
        FakeEncoder(), open_store(tmp_path / "store", multi_vector="none"), SearchOptions(calibration=BY_DENSE)
    ) as searcher:
        searcher.add(TEXTS)
        assert "probability" not in searcher.search("a question")[0].scores
        with pytest.raises(ValueError, match=r"not for dense\+lexical"):
            searcher.search("a question", min_probability=0.5)


async def test_langchain_has_it(searcher: Searcher, file: Path) -> None:
    retriever = M3HybridRetriever(encoder=searcher.encoder, store=searcher.store, calibration=file)
    found: Any = retriever.invoke("a question")
    probability = found[0].m3_scores["probability"]
    assert probability == searcher.search("a question")[0].scores["probability"]
    for least, n in ((probability, 4), (probability + 1e-9, 0)):
        assert len(retriever.invoke("a question", min_probability=least)) == n
        strict = M3HybridRetriever(
            encoder=searcher.encoder, store=searcher.store, calibration=BY_DENSE, min_probability=least
        )
        assert len(await strict.ainvoke("a question")) == n
    twin = M3HybridRetriever(**{**retriever.model_dump(), "encoder": searcher.encoder, "store": searcher.store})
    assert twin.calibration == retriever.calibration == BY_DENSE
    again = M3HybridRetriever(**json.loads(retriever.model_dump_json()), encoder=searcher.encoder, store=searcher.store)
    assert again.invoke("a question") == found
    vectors = M3VectorStore(encoder=searcher.encoder, store=searcher.store)
    assert vectors.similarity_search("a question", calibration=str(file), min_probability=1) == []
    with pytest.raises(ValidationError, match="must be a Calibration or the file of one"):
        M3HybridRetriever(encoder=searcher.encoder, calibration=3)  # type: ignore[arg-type]


async def test_langchain_vector_store_has_it_as_a_field(searcher: Searcher, file: Path) -> None:
    probability = searcher.search("a question")[0].scores["probability"]
    for least, n in ((probability, 4), (probability + 1e-9, 0)):
        vectors = M3VectorStore(
            encoder=searcher.encoder, store=searcher.store, calibration=file, min_probability=least, mode="all"
        )
        assert len(vectors.similarity_search("a question")) == len(await vectors.asimilarity_search("a question")) == n
        assert len(vectors.max_marginal_relevance_search("a question")) == n
        assert len(vectors.as_retriever().invoke("a question")) == n
        assert len(vectors.as_retriever(search_type="mmr").invoke("a question")) == n
        by_relevance = vectors.as_retriever(
            search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.0}
        )
        assert len(await by_relevance.ainvoke("a question")) == n
    plain = M3VectorStore(encoder=searcher.encoder, store=searcher.store)
    kwargs = {"calibration": str(file), "min_probability": probability + 1e-9}
    for search_type in ("similarity", "mmr"):
        retriever = plain.as_retriever(search_type=search_type, search_kwargs=kwargs)
        assert retriever.invoke("a question") == await retriever.ainvoke("a question") == []
        assert len(retriever.invoke("a question", min_probability=probability)) == 4


async def test_a_search_by_vector_needs_the_way_out_and_has_it(searcher: Searcher) -> None:
    strict: Any = {
        "encoder": searcher.encoder, "store": searcher.store, "calibration": BY_DENSE, "min_probability": 0.9
    }  # fmt: skip
    vectors = M3VectorStore(**strict)
    embedding = vectors.embeddings.embed_query("a question")
    for search in (vectors.similarity_search_by_vector, vectors.max_marginal_relevance_search_by_vector):
        with pytest.raises(ValueError, match="min_probability=0 searches without it"):
            search(embedding)
        assert len(search(embedding, min_probability=0)) == 4
    for asearch in (vectors.asimilarity_search_by_vector, vectors.amax_marginal_relevance_search_by_vector):
        with pytest.raises(ValueError, match="min_probability=0 searches without it"):
            await asearch(embedding)
        assert len(await asearch(embedding, min_probability=0)) == 4
    nodes = NodeStore(**strict)
    for query in (
        VectorStoreQuery(query_embedding=embedding, similarity_top_k=4),
        VectorStoreQuery(query_str="a question", similarity_top_k=4, mode=VectorStoreQueryMode.MMR),
    ):
        with pytest.raises(ValueError, match="min_probability=0 searches without it"):
            nodes.query(query)
        assert len(nodes.query(query, min_probability=0).ids or []) == 4


async def test_llama_index_vector_store_has_it_as_a_field(searcher: Searcher, file: Path) -> None:
    probability = searcher.search("a question")[0].scores["probability"]
    for least, n in ((probability - 1e-6, 4), (probability + 1e-6, 0)):
        vectors = NodeStore(encoder=searcher.encoder, store=searcher.store, calibration=file, min_probability=least)
        index = VectorStoreIndex.from_vector_store(vectors, embed_model=vectors.embed_model)
        engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4)
        assert len(engine.query("a question").source_nodes) == n
        assert len((await engine.aquery("a question")).source_nodes) == n
        for fields in (vectors.to_dict(), json.loads(vectors.to_json())):
            twin = NodeStore(**fields, encoder=searcher.encoder)
            assert (twin.calibration, twin.min_probability) == (BY_DENSE, least)
    plain = NodeStore(encoder=searcher.encoder, store=searcher.store)
    index = VectorStoreIndex.from_vector_store(plain, embed_model=plain.embed_model)
    options = {"calibration": file, "min_probability": probability + 1e-6}
    assert index.as_retriever(similarity_top_k=4, vector_store_kwargs=options).retrieve("a question") == []
    plain.calibration, plain.min_probability = BY_DENSE, 1
    assert index.as_retriever().retrieve("a question") == []
    with pytest.raises(ValidationError, match="must be a Calibration or the file of one"):
        NodeStore(encoder=searcher.encoder, calibration=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fit one on your own questions with m3 eval DATA --calibrate FILE"):
        NodeStore(encoder=searcher.encoder, min_probability=0.5)


async def test_llama_index_has_it(searcher: Searcher, file: Path) -> None:
    retriever = NodeRetriever(encoder=searcher.encoder, store=searcher.store, similarity_top_k=4, calibration=file)
    found: Any = retriever.retrieve("a question")
    probability = found[0].m3_scores["probability"]
    assert probability == searcher.search("a question")[0].scores["probability"]
    for least, n in ((probability, 4), (probability + 1e-9, 0)):
        strict = retriever.with_options(min_probability=least)
        assert len(strict.retrieve("a question")) == len(await strict.aretrieve("a question")) == n


def test_only_calibrations_are_read(file: Path, tmp_path: Path) -> None:
    assert read_calibration(file) == read_calibration(str(file)) == read_calibration(BY_DENSE) == BY_DENSE
    with pytest.raises(FileNotFoundError, match=r"no calibration at .*absent\.json: m3 eval DATA --calibrate"):
        read_calibration(tmp_path / "absent.json")
    document = json.loads(file.read_text())
    for change, message in (
        ({"format": 2}, "it has format 2"),
        ({"features": ["dense"]}, "with features dense"),
        ({"means": [1.0]}, "means must be 9 finite numbers"),
        ({"coefficients": [float("nan")] * 9}, "coefficients must be 9 finite numbers"),
        ({"scales": [0.0] * 9}, "scales must be above 0"),
        ({"extra": 1}, "unexpected keyword argument 'extra'"),
        ({"weights": "best"}, "unknown weights 'best'"),
    ):
        (tmp_path / "wrong.json").write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=message):
            read_calibration(tmp_path / "wrong.json")
    for text in ("{", "[1]", "3", "null"):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(ValueError, match="is not a calibration that this version can read"):
            read_calibration(tmp_path / "wrong.json")
    for least in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="min_probability must be from 0 to 1"):
            SearchOptions(calibration=BY_DENSE, min_probability=least)
