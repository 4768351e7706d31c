"""`calibrate`: against scikit-learn's numbers, a search's own candidates, values worked by hand, and XQuAD."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from m3_integrations import M3Encoder, ModeWeights, Searcher, SearchOptions, open_store
from m3_integrations.cli import app
from m3_integrations.evaluation import FittedCalibration, calibrate, read_dataset
from m3_integrations.evaluation.calibrating import Trials, fit_calibration
from m3_integrations.evaluation.tuning import split_queries
from m3_integrations.evaluation.verdict import judge_calibration
from m3_integrations.search import Calibration, answer_features
from m3_integrations.search.calibration import FEATURES
from m3_integrations.vectors import LexicalWeights
from tests.evaluation.test_xquad import XQUAD
from tests.evaluation.worlds import WorldEncoder, write_beir, write_world

EQUAL = ModeWeights()


def random_trials() -> Trials:
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 9)) * np.arange(1, 10) + 5
    answers = features[:, 0] - 5 + 0.3 * (features[:, 4] - 5) + random.normal(size=60) * 2 > 0
    return Trials(features, answers, ~answers)


def test_the_fit_is_scikit_learns() -> None:
    """scikit-learn 1.9.1: LogisticRegression(C=1, tol=1e-10).fit((X - X.mean(0)) / X.std(0), y) on the same numbers."""
    trials = random_trials()
    found = fit_calibration("m", "f", EQUAL, trials, n_questions=30)
    golden = [1.504668, 0.754445, 0.324941, -0.73247, 0.88213, -0.083153, 0.201129, 0.146217, 0.212855]
    assert found.coefficients == pytest.approx(golden, abs=2e-6)
    assert found.intercept == pytest.approx(-0.288532, abs=2e-6)
    odds = ((trials.features[3] - trials.features.mean(0)) / trials.features.std(0)) @ golden - 0.288532
    assert found.probabilities(trials.features)[3] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-5)


def test_a_feature_that_never_changes_says_nothing() -> None:
    trials = random_trials()
    trials.features[:, 7] = 3
    found = fit_calibration("m", "f", EQUAL, trials, n_questions=30)
    assert (found.scales[7], found.coefficients[7]) == (1.0, 0.0)


def test_features_are_what_their_names_say() -> None:
    scores: Any = {
        "dense": np.array([0.5, 0.75, 0.25], np.float32),
        "lexical": np.array([0.125, 0.25, 0.5], np.float32),
        "multi_vector": np.array([0.5, 0.625, 0.5], np.float32),
    }
    query = LexicalWeights(np.array([1, 5], np.int32), np.array([0.5, 0.5], np.float32))  # with itself 0.5
    best, found = answer_features(scores, query, EQUAL)
    assert best == 1
    # The weighted means are 1.125, 1.625 and 1.25, divided by 3; the lexical mode prefers the last.
    expected = [0.75, 0.25, 0.625, 0.25, -0.25, 0.125, (1.625 - 1.25) / 3, 2, 0.25 / 0.5]
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(FEATURES) == 9
    alone: Any = {mode: values[:1] for mode, values in scores.items()}
    nothing = LexicalWeights(np.array([], np.int32), np.array([], np.float32))
    expected = [0.5, 0.125, 0.5, 0.5, 0.125, 0.5, 1.125 / 3, 3, 0]
    assert answer_features(alone, nothing, EQUAL)[1] == pytest.approx(expected, abs=1e-6)
    assert answer_features(scores, query, ModeWeights(0, 1, 0))[0] == 2


def made(said: list[float], answers: list[bool], absent: list[bool]) -> FittedCalibration:
    """One whose probabilities are these, on either half."""
    features = np.zeros((len(said), 9))
    features[:, 0] = [math.log(p / (1 - p)) for p in said]
    calibration = Calibration(
        model="m", fingerprint="f", weights=EQUAL, means=(0,) * 9, scales=(1,) * 9, coefficients=(1, *(0,) * 8),
        intercept=0, n_questions=3,
    )  # fmt: skip
    trials = Trials(features, np.array(answers), np.array(absent))
    return FittedCalibration(
        calibration=calibration, fitted_on=["a"], reported_on=["b"], fitted=trials, reported=trials
    )


def test_thresholds_and_what_they_come_to_are_those_worked_by_hand() -> None:
    said = [0.05, 0.15, 0.55, 0.75, 0.95, 0.99]
    fitted = made(said, [False, False, True, False, True, True], [True, True, False, False, False, False])
    # Means from above: 0.99, 0.97, 0.8967, 0.81, 0.678, 0.573. From below: 0.05, 0.1, 0.25, 0.375, 0.49, 0.573.
    assert fitted.threshold(answers_right=0.96) == pytest.approx(0.95)
    assert fitted.threshold(answers_right=0.8) == pytest.approx(0.55)
    assert fitted.threshold(answers_right=1.0) == 1.0
    assert fitted.threshold(refusals_right=0.9) == pytest.approx(0.15)
    assert fitted.threshold(refusals_right=0.999) == 0.0
    found = fitted.refusals(fitted.threshold(answers_right=0.8))
    assert (found.answers_right, found.refusals_right, found.absent_refused, found.found_kept) == (0.75, 1, 1, 1)
    found = fitted.refusals(0.8)
    assert (found.answers_right, found.refusals_right, found.absent_refused) == (1, 0.75, 1)
    assert found.found_kept == pytest.approx(2 / 3)
    assert fitted.refusals(fitted.threshold(refusals_right=0.9)).refusals_right == 1.0
    squares = [0.05**2, 0.15**2, 0.45**2, 0.75**2, 0.05**2, 0.01**2]
    assert fitted.brier == pytest.approx(sum(squares) / 6)
    assert fitted.brier_of_the_rate == 0.25
    assert [(b.n, b.right) for b in fitted.reliability()] == [(1, 0), (1, 0), (1, 1), (1, 0), (2, 1)]
    assert fitted.reliability()[-1].said == pytest.approx(0.97)
    for wrong in ({}, {"answers_right": 0.5, "refusals_right": 0.5}, {"answers_right": 0.0}, {"refusals_right": 1.1}):
        with pytest.raises(ValueError, match="pass one of answers_right and refusals_right"):
            fitted.threshold(**wrong)


def test_what_is_fitted_on_is_what_a_search_will_see(tmp_path: Path) -> None:
    """The probability of every trial is that of a search by `Searcher`, with and without what answers."""
    texts = {f"d{i:02}": f"text {i} of these" for i in range(70)}
    asked = {f"q{i}": f"question {i} of them" for i in range(40)}
    judged = {id_: {f"d{j:02}": int(j % 2 == 0 and i > 4) for j in range(70)} for i, id_ in enumerate(asked)}
    dataset = read_dataset(write_beir(tmp_path, texts, asked, judged))
    encoder = WorldEncoder()
    fitted = calibrate(encoder, dataset, weights="miracl", seed=3)
    assert (fitted.fitted_on, fitted.reported_on) == split_queries(dataset.queries, seed=3)
    with Searcher(encoder, open_store(), SearchOptions(weights="miracl", calibration=fitted.calibration)) as searcher:
        searcher.add(texts.values(), ids=texts, metadatas=[{"id": id_} for id_ in texts])
        said, answers = [], []
        for id_ in fitted.reported_on:
            answering = [document for document, gain in dataset.qrels[id_].items() if gain > 0]
            filters: list[Any] = [{}, {"id": {"$nin": answering}}] if answering else [{}]
            for filter_ in filters:
                (hit,) = searcher.search(dataset.queries[id_], k=1, filter=filter_)
                said.append(hit.scores["probability"])
                answers.append(hit.id in answering)
    assert said == pytest.approx(fitted.probabilities.tolist(), abs=1e-5)
    assert answers == fitted.reported.answers.tolist()
    n_answered = sum(any(dataset.qrels[id_].values()) for id_ in fitted.reported_on)
    assert fitted.reported.absent.sum() == len(fitted.reported_on)
    assert len(said) == len(fitted.reported_on) + n_answered


class CountedIds(list[str]):
    """Counts how often all are gone through."""

    passes = 0

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        return super().__iter__()


def test_the_ids_of_a_corpus_are_not_gone_through_for_every_question(tmp_path: Path) -> None:
    texts = {f"d{i}": f"text {i}" for i in range(30)}
    asked = {f"q{i}": f"question {i}" for i in range(40)}
    judged = {id_: {document: i % 2 for i, document in enumerate(texts)} for id_ in asked}
    dataset = read_dataset(write_beir(tmp_path, texts, asked, judged))
    dataset.corpus.ids = CountedIds(dataset.corpus.ids)
    calibrate(WorldEncoder(), dataset)
    assert dataset.corpus.ids.passes == 1


def test_questions_that_cannot_be_calibrated_on_are_refused(tmp_path: Path) -> None:
    texts = {f"d{i}": f"text {i}" for i in range(4)}
    asked = {"a": "one", "b": "two"}
    wrong = read_dataset(write_beir(tmp_path, texts, asked, {id_: {"d1": 0} for id_ in asked}))
    with pytest.raises(ValueError, match="finds its answer first"):
        calibrate(WorldEncoder(), wrong)
    with pytest.raises(ValueError, match="has no heads for"):
        calibrate(WorldEncoder(modes=("dense",)), wrong)


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_the_command_fits_on_the_users_questions_and_search_refuses_by_it(small: Path, tmp_path: Path) -> None:
    data, file = write_world(tmp_path / "data", documents=40, queries=30), tmp_path / "calibration.json"
    common = ["--model", str(small), "--device", "cpu"]
    paths = ["eval", str(data), "--calibrate", str(file), "--modes", "dense,search:all", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*paths, *common])
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    assert (written["format"], tuple(written["features"]), written["n_questions"]) == (1, FEATURES, 15)
    assert "right refusals min_probability=" in result.stdout
    report = json.loads((tmp_path / "out" / "results.json").read_text())["verdicts"][-1]["sentences"]
    assert all(sentence in result.stdout for sentence in report)
    with M3Encoder(str(small), shared=False, device="cpu") as encoder:
        fitted = calibrate(encoder, read_dataset(data))
    assert list(judge_calibration(fitted).sentences) == report
    assert Calibration(**{k: v for k, v in written.items() if k not in {"format", "features"}}) == fitted.calibration
    store = str(tmp_path / "store")
    with M3Encoder(str(small), shared=False, device="cpu") as encoder, open_store(store) as opened:
        Searcher(encoder, opened).add([f"word {i}" for i in range(9)])
    for least, said in (("1", "Nothing here answers that."), ("0", "probability 0.")):
        options = ["--calibration", str(file), "--min-probability", least]
        found = CliRunner().invoke(app, ["search", store, "word 3", *options, *common])
        assert found.exit_code == 0, found.output
        assert said in found.stdout
    found = CliRunner().invoke(app, ["search", store, "word 3", "--min-probability", "0.5", *common])
    assert (found.exit_code, "fit one on your own questions with m3 eval" in found.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--calibrate", "NOWHERE/c.json"], "the folder of the calibration"),
        (["--calibrate", "FOLDER"], "is a folder: name a file in it"),
        (["--calibrate", "c.json", "--model", "tiny", "--model", "SMALL"], "--calibrate is for one model on one"),
    ],
)
def test_a_calibration_that_cannot_be_made_is_refused_at_once(
    small: Path, tmp_path: Path, arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(M3Encoder, "encode_batches", None)
    places = {"SMALL": small, "FOLDER": tmp_path, "NOWHERE/c.json": tmp_path / "nowhere" / "c.json"}
    given = [str(places.get(a, a)) for a in arguments]
    result = CliRunner().invoke(app, ["eval", str(write_world(tmp_path / "data")), *given])
    assert (result.exit_code, text in result.stdout) == (1, True), result.output


@pytest.mark.slow
@pytest.mark.skipif(not XQUAD.is_dir(), reason=f"XQuAD in BEIR's layout is not at {XQUAD}")
@pytest.mark.filterwarnings("ignore:.*longer than")
def test_on_xquad_probabilities_hold_and_questions_without_their_paragraph_are_refused() -> None:
    """On the half that nothing was fitted on; the same figures stand in README.md beside evaluation."""
    with M3Encoder("tiny", shared=False, device="cpu") as encoder:
        fitted = calibrate(encoder, read_dataset(XQUAD / "en", titles=False))
    assert (fitted.brier, fitted.brier_of_the_rate) == pytest.approx((0.097, 0.247), abs=0.003)
    assert all(abs(b.said - b.right) < 0.15 for b in fitted.reliability())
    by_answers = fitted.refusals(fitted.threshold(answers_right=0.95))
    assert by_answers.answers_right == pytest.approx(0.953, abs=0.01)
    assert by_answers.absent_refused == pytest.approx(0.975, abs=0.01)
    assert by_answers.found_kept == pytest.approx(0.657, abs=0.02)
    by_refusals = fitted.refusals(fitted.threshold(refusals_right=0.95))
    assert by_refusals.refusals_right == pytest.approx(0.954, abs=0.01)
    assert by_refusals.absent_refused == pytest.approx(0.539, abs=0.02)
    assert by_refusals.found_kept == pytest.approx(0.970, abs=0.01)
    readme = (Path(calibrate.__code__.co_filename).parent / "README.md").read_text(encoding="utf-8")
    for value in (by_answers.absent_refused, by_answers.found_kept, by_refusals.absent_refused):
        assert re.search(rf"\b{value:.1%}", readme)


def test_a_calibration_is_written_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made([0.5], [True], [False]).calibration
    one.save(tmp_path / "c.json")
    before = (tmp_path / "c.json").read_text()

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        dataclasses.replace(one, intercept=3.0).save(tmp_path / "c.json")
    assert (tmp_path / "c.json").read_text() == before
