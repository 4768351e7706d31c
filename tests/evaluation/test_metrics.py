"""Metrics equal a second implementation's; intervals and tests are what they say."""

import ast
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import ir_measures
import numpy as np
import pytest

from m3_integrations.evaluation.metrics import check_gains, check_metrics, cutoff_of, measure_queries, parse_metric
from m3_integrations.evaluation.statistics import compare_paired, estimate_mean

METRICS = ("nDCG@10", "Recall@100", "MRR@10", "MAP", "Success@20")


def second_implementation(ranked: Sequence[str], gains: Mapping[str, int]) -> dict[str, float]:
    """The textbook's formulas, straight from the order of the documents."""
    got = [gains.get(document, 0) for document in ranked]
    relevant = sum(gain > 0 for gain in gains.values())
    ideal = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(gains.values(), reverse=True)[:10]))
    first = next((i + 1 for i, gain in enumerate(got) if gain > 0), None)
    hits = [i for i, gain in enumerate(got) if gain > 0]
    return {
        "nDCG@10": sum(g / math.log2(i + 2) for i, g in enumerate(got[:10])) / ideal if ideal else 0.0,
        "Recall@100": sum(gain > 0 for gain in got[:100]) / relevant if relevant else 0.0,
        "MRR@10": 1 / first if first and first <= 10 else 0.0,
        "MAP": sum((n + 1) / (i + 1) for n, i in enumerate(hits)) / relevant if relevant else 0.0,
        "Success@20": float(any(gain > 0 for gain in got[:20])),
    }


def test_metrics_equal_a_second_implementation_with_graded_judgements() -> None:
    random = np.random.default_rng(0)
    documents = [f"d{i}" for i in range(150)]
    qrels = {
        f"q{i}": {d: int(random.integers(0, 4)) for d in random.choice(documents, random.integers(1, 30), False)}
        for i in range(40)
    }
    ranked = {query: [str(d) for d in random.permutation(documents)[: random.integers(0, 150)]] for query in qrels}
    ranked["q3"] = []  # an empty result
    del ranked["q5"]  # and none at all
    qrels["q7"] = {"d1": 0, "d2": 0}  # judged, and nothing is relevant
    ranked["not judged"] = documents
    measured = measure_queries(ranked, qrels, METRICS)
    for i, (query, gains) in enumerate(qrels.items()):
        expected = second_implementation(ranked.get(query, []), gains)
        for metric in METRICS:
            assert measured[metric][i] == pytest.approx(expected[metric], abs=1e-9), (query, metric)
    assert measured["nDCG@10"].shape == (40,)
    assert 0.02 < measured["nDCG@10"].mean() < 0.5  # the cases are not all trivial


def test_documents_are_taken_in_the_order_given_whatever_their_ids() -> None:
    # trec_eval alone would put equal scores in falling order of the ids: b before a.
    first, last = (
        measure_queries({"q": ["a", "b"]}, {"q": {"a": 1}}, ["MRR@10"]),
        measure_queries({"q": ["b", "a"]}, {"q": {"a": 1}}, ["MRR@10"]),
    )
    assert (first["MRR@10"].tolist(), last["MRR@10"].tolist()) == ([1.0], [0.5])


def test_more_queries_than_are_measured_at_a_time_keep_their_order() -> None:
    qrels = {f"q{i}": {"a": 1} for i in range(1203)}
    ranked = {f"q{i}": [f"x{j}" for j in range(i % 7)] + ["a"] for i in range(1203)}
    assert measure_queries(ranked, qrels, ["MRR@10"])["MRR@10"].tolist() == [1 / (i % 7 + 1) for i in range(1203)]


@pytest.mark.skipif(shutil.which("perl") is None, reason="gdeval is a program in Perl")
def test_metrics_of_gdeval_are_measured_whatever_the_ids_are() -> None:
    """gdeval refuses an id such as "q a", takes "x-7" for 7, and reads the document "d 1" as "d"."""
    qrels = {"q a": {"d 1": 2, "d 2": 4}, "x-7": {"é": 1}, "7": {"é": 1}, "none": {"é": 0}}
    ranked = {"q a": ["d 1", "d 2"], "x-7": ["d 2", "é"], "7": ["é"], "none": ["é"]}
    found = measure_queries(ranked, qrels, ["ERR@10", "nDCG(dcg='exp-log2')@10", "MRR@10"])
    cascade = 3 / 16 + (1 - 3 / 16) * 15 / 16 / 2  # a reader stops at a gain g by (2^g - 1) / 16
    assert found["ERR@10"] == pytest.approx([cascade, 1 / 16 / 2, 1 / 16, 0], abs=1e-5)
    gained, ideal = 3 + 15 / math.log2(3), 15 + 3 / math.log2(3)
    expected = [gained / ideal, 1 / math.log2(3), 1, 0]
    assert found["nDCG(dcg='exp-log2')@10"] == pytest.approx(expected, abs=1e-5)  # gdeval prints five decimals
    assert found["MRR@10"].tolist() == [1, 0.5, 1, 0]
    with pytest.raises(
        ValueError, match=r"ERR@10 is for gains of at most 4, and query 'q' has the gain 5 for 'a': use"
    ):
        measure_queries({"q": ["a"]}, {"q": {"a": 5}}, ["MAP", "ERR@10"])


def test_a_metric_whose_program_is_missing_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(ir_measures.gdeval, "_is_available", None)
    parse_metric.cache_clear()
    with pytest.raises(ValueError, match=r"^ir-measures cannot compute 'ERR@9': [^\n]*$"):
        parse_metric("ERR@9")


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("MAP", ir_measures.AP),
        ("nDCG@10", ir_measures.nDCG @ 10),
        ("MRR@10", ir_measures.RR @ 10),
        ("P(rel=2)@5", ir_measures.P(rel=2) @ 5),
        ("IPrec@0.1", ir_measures.IPrec @ 0.1),
        ("nDCG(gains={0: 1, 1: 3})@7", ir_measures.nDCG(gains={0: 1, 1: 3}, cutoff=7)),
    ],
)
def test_a_name_is_read_as_ir_measures_reads_it(name: str, measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing_in_python_3_14 in {"Num", "Str", "NameConstant"} & vars(ast).keys():
        monkeypatch.delattr(ast, missing_in_python_3_14)
    parse_metric.cache_clear()
    assert parse_metric(name) == measure


@pytest.mark.parametrize(
    "name",
    ["nope", "nDCG@x", "", "nDCG@", "nDCG(10)", "nDCG(**{})", "nDCG@5@5", "(" * 999],
)
def test_an_unknown_metric_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown metric"):
        measure_queries({}, {"q": {"a": 1}}, [name])


@pytest.mark.parametrize(
    "name",
    [
        *("Recall", "R", "alpha_nDCG@10", "SDCG@5", "P(foo=1)@5", "nDCG@-1", "nDCG@0", "AP@0", "MRR@-3"),
        *("P(rel=0)@5", "P(rel=-1)@5", "AP(rel=99999999999)", "Accuracy", "Success(rel=0)@5", "nDCG@99999999999"),
        *("nDCG(gains=[1])@10", "nDCG(gains={1: -5})@10", "nDCG(gains={1: 99999999999})@10", "nDCG(gains={1: 0.5})@10"),
        *("nDCG(gains={'a': 1})@10", "nDCG(gains={1.5: 1})@10"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_refused_before_the_work(name: str) -> None:
    """It lacks a cutoff, another parameter, or a package, or has a number with which trec_eval ends the process."""
    with pytest.raises(ValueError, match=re.escape(f"cannot compute {name!r}")):
        check_metrics(["nDCG@10", name])


def test_a_metric_that_divides_by_zero_for_some_queries_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="'Accuracy': it has no value for a query that finds only relevant documents"):
        check_metrics(["Accuracy"])


def test_metrics_of_a_generator_are_read_once() -> None:
    assert check_metrics(name for name in ("MAP", "MRR@10")) == ("MAP", "MRR@10")  # type: ignore[arg-type]


def test_negative_gains_are_not_judged_and_huge_ones_are_refused() -> None:
    """trec_eval ends the process by a question with nothing but -2, and is wrong from 2**31 on."""
    ranked = {"junk": ["a"], "mixed": ["a", "b"]}
    found = measure_queries(ranked, {"junk": {"a": -2}, "mixed": {"a": -2, "b": 1}}, ["nDCG@10", "MRR@10"])
    np.testing.assert_allclose(found["nDCG@10"], [0, 1 / math.log2(3)])
    np.testing.assert_allclose(found["MRR@10"], [0, 0.5])
    judged = measure_queries({"q": ["u", "a", "n"]}, {"q": {"u": -7, "a": 1, "n": 0}}, ["AP(judged_only=True)"])
    assert judged["AP(judged_only=True)"] == [1]
    assert measure_queries({"q": ["a"]}, {"q": {"a": 1_000_000}}, ["nDCG@10"])["nDCG@10"] == [1]
    with pytest.raises(ValueError, match="query 'q' has the gain 2147483647 for 'a': a gain may be at most 1,000,000"):
        measure_queries({"q": ["a"]}, {"q": {"a": 2**31 - 1}}, ["nDCG@10"])


@pytest.mark.parametrize("gain", [True, np.int64(1), 1.0, np.float32(1), np.array(1), Fraction(1)])
def test_a_gain_of_another_type_is_the_whole_number_that_it_means(gain: Any) -> None:
    assert check_gains({"q": {"a": gain}}) == {"q": {"a": 1}}
    assert measure_queries({"q": ["a"]}, {"q": {"a": gain}}, ["nDCG@10"])["nDCG@10"] == [1]


@pytest.mark.parametrize("gain", [0.5, math.nan, math.inf, "1", None, [], np.array([1, 2]), 1j])
def test_a_gain_that_is_no_whole_number_is_refused(gain: Any) -> None:
    with pytest.raises(ValueError, match=r"query 'q' has the gain .* for 'a': a gain must be a whole number"):
        measure_queries({"q": ["a"]}, {"q": {"a": gain}}, ["nDCG@10"])


def test_a_query_without_results_scores_0_by_every_metric() -> None:
    """ir-measures divides by the number of results for some."""
    qrels = {"none": {"a": 1}, "absent": {"a": 1}, "some": {"a": 1}}
    found = measure_queries({"none": [], "some": ["a", "b"]}, qrels, ["Judged@10", "nDCG@10", "SetP"])
    assert {name: values.tolist() for name, values in found.items()} == {
        "Judged@10": [0, 0, 0.5],
        "nDCG@10": [0, 0, 1],
        "SetP": [0, 0, 0.5],
    }
    assert measure_queries({}, qrels, ["Judged@10"])["Judged@10"].tolist() == [0, 0, 0]


def test_a_metric_says_how_deep_it_looks() -> None:
    assert [cutoff_of(name) for name in ("nDCG@10", "Recall@100", "MAP")] == [10, 100, None]


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    estimate = estimate_mean(values)
    error = values.std(ddof=1) / 20  # the normal approximation, which 400 values warrant
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert estimate_mean(values) == estimate


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(2)
    estimates = [estimate_mean(random.exponential(1.0, 60), seed=i) for i in range(60)]
    covered = sum(e.low <= 1.0 <= e.high for e in estimates)
    assert 50 <= covered <= 60  # 95 % of 60 are 57; a skewed distribution costs a little


def test_few_and_equal_values_have_an_interval_too() -> None:
    for values in ([0.5], [0.5, 0.5, 0.5]):
        estimate = estimate_mean(np.array(values))
        assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one query"):
        estimate_mean(np.array([]))


def test_the_paired_test_equals_counting_all_exchanges() -> None:
    better, worse = np.array([0.9, 0.8, 0.35, 0.6, 0.7, 0.5]), np.array([0.5, 0.6, 0.4, 0.3, 0.2, 0.1])
    differences = better - worse
    means = [abs(np.mean(differences * signs)) for signs in product((1, -1), repeat=6)]
    expected = np.mean(np.array(means) >= abs(differences.mean()) - 1e-12)
    comparison = compare_paired(better, worse)
    assert comparison.p_value == pytest.approx(expected)
    assert comparison.difference.mean == pytest.approx(differences.mean())
    assert compare_paired(worse, better).p_value == pytest.approx(expected)


def test_the_paired_test_uses_the_pairs() -> None:
    random = np.random.default_rng(3)
    hard = random.random(200)  # queries differ far more than the two rankings do
    assert compare_paired(hard + 0.01 + random.normal(0, 0.02, 200), hard).p_value < 0.001
    assert compare_paired(random.permutation(hard) + 0.01, hard).p_value > 0.05


def test_equal_and_single_queries_differ_by_chance_at_most() -> None:
    values = np.array([0.1, 0.7, 0.3])
    assert compare_paired(values, values).p_value == 1.0
    assert compare_paired(np.array([0.9]), np.array([0.1])).p_value == 1.0
    with pytest.raises(ValueError, match="same queries, got 3 and 2"):
        compare_paired(values, values[:2])
