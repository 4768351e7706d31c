"""Why a record is missing, which sentences match, and `min_probability` over HTTP equal what `Searcher` does."""

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from m3_integrations import M3Encoder, Searcher, SearchOptions, open_store
from m3_integrations.search import Calibration
from m3_integrations.serve import Limits, create_app
from m3_integrations.vectors import ModeWeights
from tests.engine.gate import Gate as Passes
from tests.serve.conftest import serving
from tests.serve.test_ending import command
from tests.serve.test_gate import wait_for

pytestmark = pytest.mark.enable_socket

TEXTS = {
    "a": "The stone bridge over the water. It was built of stone in 1890! Ünïcödé 😀 comes before the key.",
    "b": "seven letters",
    "c": "the key to the bridge",
    "d": "",
}
YEARS = {"a": 2024, "b": 2021, "c": 2023, "d": 2020}


def calibration_of(encoder: M3Encoder) -> Calibration:
    """Return a calibration whose probability is the logistic function of the best hit's dense score."""
    return Calibration(
        model=encoder.model, fingerprint=encoder.fingerprint, weights=ModeWeights(), means=(0,) * 9, scales=(1,) * 9,
        coefficients=(1, *(0,) * 8), intercept=0, n_questions=9,
    )  # fmt: skip


@pytest.fixture(scope="module")
def searcher(served: M3Encoder) -> Searcher:
    made = Searcher(served, open_store(), SearchOptions(calibration=calibration_of(served)))
    made.add(TEXTS.values(), ids=TEXTS, metadatas=[{"year": year} for year in YEARS.values()])
    return made


@pytest.fixture(scope="module")
def client(searcher: Searcher, served: M3Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    file = tmp_path_factory.mktemp("calibration") / "c.json"
    calibration_of(served).save(file)
    gate = create_app(served, store=searcher.store, calibration=file, limits=Limits(max_texts=4))
    with serving(gate) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def approximately(value: Any) -> Any:
    """Return a JSON value with which numbers are compared up to 1e-5, as a batch of another size computes them."""
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    if isinstance(value, list):
        return [approximately(each) for each in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("id_", "options", "is_found"),
    [
        ("c", {}, True),
        ("c", {"min_probability": 0.99}, False),  # the logistic function of a cosine is at most 0.73
        ("b", {"k": 1}, False),
        ("b", {"k": 1, "pool_size": 1, "mode": "dense"}, False),
        ("c", {"k": 2, "filter": {"$or": [{"year": {"$gte": 2024}}, {"name": "x"}]}, "weights": "miracl"}, False),
        ("b", {"mode": "lexical", "k": 3}, False),
        ("b", {"fusion": "rrf", "rrf_k": 10, "weights": [1, 0.3, 1], "score_threshold": 0.9}, False),
    ],
)
def test_why_a_record_is_missing_is_what_the_searcher_says(
    id_: str, options: dict[str, Any], is_found: bool, client: httpx.Client, searcher: Searcher
) -> None:
    answer = client.post("/v1/explain_missing", json={"query": "the key", "id": id_, **options})
    assert answer.status_code == 200
    expected = searcher.explain_missing("the key", id_, **options)
    said = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(expected, options=None))))  # type: ignore[arg-type]
    for match, token in zip(said["shared"], expected.shared, strict=True):
        match["score"] = token.score
    said |= {"page": str(expected), "is_found": is_found}
    del said["query"], said["id"], said["options"]
    assert answer.json() == approximately(said)
    hits = client.post("/v1/search", json={"query": "the key", **options}).json()["hits"]
    assert (id_ in [hit["id"] for hit in hits]) is is_found


def test_a_filter_that_excludes_a_record_is_named(client: httpx.Client) -> None:
    asked = {"query": "the key", "id": "c", "filter": {"year": {"$gte": 2024}}}
    found = client.post("/v1/explain_missing", json=asked).json()
    assert found["excluded_by"] == [{"said": {"year": {"$gte": 2024}}, "where": [], "found": {"year": [2023]}}]
    assert "{'year': {'$gte': 2024}}: the record has year = 2023" in found["page"]


def test_an_unknown_id_is_an_answer(client: httpx.Client) -> None:
    answer = client.post("/v1/explain_missing", json={"query": "the key", "id": "z"})
    assert answer.status_code == 200
    assert answer.json() == {
        "page": "The store has no record 'z'.", "is_stored": False, "is_found": False, "excluded_by": [], "legs": [],
        "is_candidate": False, "needed_pool_size": None, "scores": {}, "score": None, "rank": None, "n_candidates": 0,
        "last_score": None, "probability": None, "rank_by_weights": {}, "needed_weights": None, "text_length": 0,
        "text_read_to": 0, "query_read_to": 0, "shared": [], "near": [],
    }  # fmt: skip


def test_sentences_are_the_searchers(client: httpx.Client, searcher: Searcher) -> None:
    answer = client.post("/v1/spans", json={"query": "stone", "ids": ["d", "a", "b", "a"]})
    found = answer.json()["records"]
    assert [record["id"] for record in found] == ["d", "a", "b"]
    for record, evidence in zip(found, searcher.spans("stone", ["d", "a", "b"]), strict=True):
        sentences = [dataclasses.asdict(each) | {"text": evidence.text[each.start : each.end]}
                     for each in evidence.sentences]  # fmt: skip
        assert record == approximately(
            {"id": evidence.id, "sentences": sentences, "modes": list(evidence.modes), "read_to": evidence.read_to}
        )
    assert [(each["start"], each["end"], each["text"]) for each in found[1]["sentences"]] == [
        (0, 32, "The stone bridge over the water."),
        (33, 63, "It was built of stone in 1890!"),
        (64, 95, "Ünïcödé 😀 comes before the key."),
    ]
    assert client.post("/v1/spans", json={"query": "stone", "ids": []}).json() == {"records": []}


def test_more_records_than_are_scored_at_a_time_come_in_their_order(served: M3Encoder) -> None:
    searcher = Searcher(served, open_store())
    ids = searcher.add([f"The key {i}. The bridge {i}." for i in range(37)], ids=[f"d{i}" for i in range(37)])
    with serving(create_app(served, store=searcher.store)) as url:
        found = httpx.post(f"{url}/v1/spans", json={"query": "key", "ids": ids[::-1]}, timeout=60).json()["records"]
    assert [record["id"] for record in found] == ids[::-1]
    assert [record["sentences"][1]["text"] for record in found] == [f"The bridge {i}." for i in range(36, -1, -1)]


def test_spans_take_the_places_of_long_requests(alone: M3Encoder) -> None:
    searcher = Searcher(alone, open_store())
    searcher.add(["water"], ids=["a"])
    passes, asked = Passes(alone), {"query": "key", "ids": ["a"]}
    gate = create_app(alone, store=searcher.store, limits=Limits(max_running=8))
    with serving(gate) as url, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(httpx.post, f"{url}/v1/spans", json=asked, timeout=60) for _ in range(2)]
        wait_for(url, running=1, waiting=1)
        passes.open()
        assert [each.result().json()["records"][0]["read_to"] for each in both] == [5, 5]


def test_only_likely_answers_are_returned(client: httpx.Client, searcher: Searcher) -> None:
    first, *others = client.post("/v1/search", json={"query": "the key", "mode": "all"}).json()["hits"]
    (expected, *_) = searcher.search("the key")
    assert first["id"] == expected.id
    assert first["scores"]["probability"] == pytest.approx(expected.scores["probability"], abs=1e-6)
    assert not any("probability" in hit["scores"] for hit in others)
    for least, n in ((0, 4), (expected.scores["probability"] - 1e-4, 4), (expected.scores["probability"] + 1e-4, 0)):
        answer = client.post("/v1/search", json={"query": "the key", "min_probability": least})
        assert len(answer.json()["hits"]) == n


@pytest.mark.parametrize(
    ("path", "asked", "status", "message"),
    [
        ("/v1/spans", {"query": "a", "ids": ["a", "z"]}, 404, "there is no record 'z'"),
        ("/v1/spans", {"query": "a", "ids": list("abcab")}, 422, "may hold at most 4 ids, got 5"),
        ("/v1/spans", {"query": "a", "ids": "a"}, 422, "body.ids: Input should be a valid list"),
        ("/v1/spans", {"query": "a", "id": "a"}, 422, "body.id: Extra inputs are not permitted"),
        ("/v1/explain_missing", {"query": "a"}, 422, "body.id: Field required"),
        ("/v1/explain_missing", {"query": "a", "id": 7}, 422, "body.id: Input should be a valid string"),
        ("/v1/explain_missing", {"query": "a", "id": "a", "k": "5"}, 422, "body.k: Input should be a valid integer"),
        ("/v1/explain_missing", {"query": "a", "id": "a", "filter": {"year": {"$near": 3}}}, 422, "near"),
        ("/v1/explain_missing", {"query": "a", "id": "a", "min_probability": 1, "mode": "dense"}, 422, "this one"),
        ("/v1/search", {"query": "a", "min_probability": 1.1}, 422, "less than or equal to 1"),
        ("/v1/search", {"query": "a", "min_probability": "1"}, 422, "should be a valid number"),
        ("/v1/search", {"query": "a", "min_probability": 0.5, "mode": "dense"}, 422, "this one is for all three modes"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    path: str, asked: dict[str, Any], status: int, message: str, client: httpx.Client
) -> None:
    answer = client.post(path, json=asked)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_without_a_calibration_no_probability_can_be_asked_for(served: M3Encoder) -> None:
    with serving(create_app(served, store=open_store())) as url:
        for path, more in (("/v1/search", {}), ("/v1/explain_missing", {"id": "a"})):
            answer = httpx.post(f"{url}{path}", json={"query": "a", "min_probability": 0.9, **more}, timeout=60)
            assert answer.status_code == 422
            assert answer.json()["error"]["message"] == (
                "min_probability=0.9 needs a calibration, which this server lacks: fit one with m3 eval DATA "
                "--calibrate FILE, and start m3 serve with --calibration FILE"
            )
        assert httpx.post(f"{url}/v1/search", json={"query": "a", "min_probability": 0}).json() == {"hits": []}


def test_a_calibration_that_cannot_be_used_is_refused_at_the_start(served: M3Encoder, tmp_path: Path) -> None:
    known, store = calibration_of(served), open_store()
    with pytest.raises(ValueError, match=r"fitted for wide \(31de\), and this model is"):
        create_app(served, store=store, calibration=dataclasses.replace(known, model="wide", fingerprint="31de"))
    assert store.fingerprint is None  # it was bound to nothing
    with pytest.raises(ValueError, match="needs a store to search"):
        create_app(served, calibration=known)
    with pytest.raises(FileNotFoundError, match=r"no calibration at .*absent\.json: m3 eval DATA --calibrate"):
        create_app(served, store=store, calibration=tmp_path / "absent.json")


def test_the_command_reads_a_calibration(tmp_path: Path) -> None:
    store, file = str(tmp_path / "store"), tmp_path / "c.json"
    with M3Encoder("tiny", device="cpu") as encoder:
        known = calibration_of(encoder)
    known.save(file)
    with command("tiny", "--store", store, "--calibration", str(file)) as (process, url, _):
        httpx.post(f"{url}/v1/records", json={"records": [{"id": "a", "text": "water"}]}, timeout=60)
        for least, n in ((0.5, 1), (1, 0)):  # the logistic function of a cosine is from 0.27 to 0.73
            asked = {"query": "water", "min_probability": least}
            assert len(httpx.post(f"{url}/v1/search", json=asked, timeout=60).json()["hits"]) == n
        process.terminate()
    dataclasses.replace(known, model="wide", fingerprint="31de").save(file)
    with (
        pytest.raises(AssertionError, match=r"fitted for wide \(31de\), and this model is tiny"),
        command("tiny", "--store", store, "--calibration", str(file)),
    ):
        pass
