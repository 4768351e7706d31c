"""What `m3 eval` says in the end, and the tables above it: on values that are made so that the answer is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from m3_integrations import ModeWeights
from m3_integrations.cli.evaluation import _print_tables
from m3_integrations.evaluation import COLUMNS, EvaluationResult, Protocol, TunedWeights, read_dataset
from m3_integrations.evaluation.statistics import POWER, difference_shown, questions_needed
from m3_integrations.evaluation.tables import make_tables, model_names
from m3_integrations.evaluation.verdict import make_verdicts
from tests.evaluation.worlds import write_world

NOISE = np.random.default_rng(0).normal(0, 0.1, (8, 400))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("worlds") / "world", queries=12)


def made(world: Path, values: Mapping[str, Any], *, model: str = "old", metrics: Sequence[str] = ("nDCG@10",)) -> Any:
    """A result with these values for every metric."""
    return EvaluationResult(
        dataset=read_dataset(world),
        model=model,
        fingerprint="",
        weights={"all": ModeWeights(1, 0.3, 1)},
        protocol=Protocol(),
        values=cast("Any", {c: dict.fromkeys(metrics, np.asarray(v, dtype=float)) for c, v in values.items()}),
        rankings={},
    )


def sentences(*results: EvaluationResult, tuned: Sequence[TunedWeights] = ()) -> list[str]:
    return [sentence for verdict in make_verdicts(results, tuned) for sentence in verdict.sentences]


def test_as_many_questions_as_are_said_show_the_difference_four_times_of_five() -> None:
    """Against brute force: samples of that many questions, a t-test on each."""
    random, level = np.random.default_rng(1), 0.01
    observed = random.normal(size=50)
    observed = 0.05 + 0.2 * (observed - observed.mean()) / observed.std(ddof=1)  # mean 0.05, deviation 0.2
    n = questions_needed(observed, level)
    assert n == 187  # ((2.5758 + 0.8416) · 0.2 / 0.05)² = 186.9
    samples = random.normal(0.05, 0.2, (4000, n))
    assert np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < level) == pytest.approx(POWER, abs=0.025)
    assert difference_shown(observed, level) == pytest.approx(3.4175 * 0.2 / 50**0.5, abs=1e-4)
    assert questions_needed(np.array([0.1, -0.1]), level) is None


def test_a_clear_winner_is_shown_and_the_questions_are_enough(world: Path) -> None:
    best, second = 0.6 + NOISE[0], 0.4 + NOISE[1]
    least, mean = difference_shown(best - second, 0.05 / 3), f"{(best - second).mean():.3f}"
    assert sentences(made(world, {"dense": second, "all": best, "bm25": 0.2 + NOISE[2]}))[:3] == [
        f"all ranks best here: nDCG@10 {best.mean():.3f}.",
        "That it beats dense and bm25 is shown.",
        f"The 400 questions are enough: they show a difference of {least:.3f} between all and dense, and it is {mean}.",
    ]


def test_a_measure_that_is_0_everywhere_names_no_best_mode(world: Path) -> None:
    nothing = np.zeros(12)
    result = made(world, {"dense": nothing, "all": nothing}, metrics=("nDCG@1", "R@100"))
    said = sentences(result)
    assert said[0] == "No mode is better than another here: nDCG@1 is 0 in each."
    assert "do the judgements belong to this corpus?" in said[1]
    assert "best" not in " ".join(said)
    result.values["all"]["R@100"] = NOISE[0][:12]
    assert not any("judgements" in each for each in sentences(result))


def test_what_is_within_chance_of_the_best_is_said_with_the_questions_it_would_take(world: Path) -> None:
    best, second = 0.6 + NOISE[0], 0.597 + NOISE[1]
    found = sentences(made(world, {"dense": second, "search:all": best, "bm25": 0.2 + NOISE[2]}))
    assert found[1] == "dense is within chance of it; that it beats bm25 is shown."
    said = re.search(r"about ([\d,]+) would show", found[2])
    needed = questions_needed(best - second, 0.05 / 3)
    assert said is not None
    assert needed is not None
    assert needed <= int(said[1].replace(",", "")) < 1.11 * needed
    assert found[3] == "Whether other weights are worth it was not measured: --tune does."


def test_the_best_of_many_equal_modes_is_not_called_better(world: Path) -> None:
    """Each single test of eight noisy modes may have p < 0.05; the best of them is best by luck."""
    found = sentences(made(world, dict(zip(COLUMNS, 0.5 + NOISE, strict=True))))
    assert "is within chance: take whichever is cheapest." in found[1]
    assert "are too few" in found[2]


def test_modes_that_rank_alike_and_one_question_are_told_so(world: Path) -> None:
    value = f"{0.5 + NOISE[0].mean():.3f}"
    alike = sentences(made(world, {"dense": 0.5 + NOISE[0], "lexical": 0.5 + NOISE[0][::-1]}))
    assert alike == [f"dense and lexical rank alike here: nDCG@10 {value}. Take whichever is cheapest."]
    three = sentences(made(world, {"dense": NOISE[1], "lexical": 0.5 + NOISE[0], "bm25": 0.5 + NOISE[0]}))
    assert three[:2] == [
        f"lexical and bm25 rank best here, and alike: nDCG@10 {value}.",
        "That lexical beats dense is shown.",
    ]
    one = sentences(made(world, {"dense": [1.0], "lexical": [1.0]}))
    assert [each[:25] for each in one] == ["dense and lexical rank al", "One question shows nothin"]
    assert sentences(made(world, {"dense": [1.0], "lexical": [0.0]}))[2].startswith("One question shows nothing")
    assert sentences(made(world, {"dense": [1.0, 0.5]})) == ["dense ranks best here: nDCG@10 0.750."]


def tuned_by(gain: Any) -> TunedWeights:
    values = {"equal": 0.5 + NOISE[0]}
    values = {"tuned": values["equal"] + gain, **values}
    half = [str(i) for i in range(400)]
    return TunedWeights(
        weights=ModeWeights(0.5, 0.4, 0.1), metric="nDCG@10", found_on=half, reported_on=half, values=values
    )


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.05 + NOISE[3] / 4, "Use the tuned weights (0.50 / 0.40 / 0.10): the gain on the half they were not found"),
        (
            -0.01 - abs(NOISE[3]),
            "Keep the equal weights: the tuned ones (0.50 / 0.40 / 0.10) do no better on the other",
        ),
        (0.0, "Keep the equal weights: the tuned ones (0.50 / 0.40 / 0.10) rank the 400 questions of the other half"),
        (
            0.004 + NOISE[3] - NOISE[3].mean(),
            "Keep the equal weights: the tuned ones' (0.50 / 0.40 / 0.10) gain on the other half is within chance",
        ),
    ],
)
def test_tuned_weights_are_used_only_if_they_win_on_the_other_half(world: Path, gain: Any, said: str) -> None:
    result = made(world, {"search:all": 0.5 + NOISE[0]})
    found = sentences(result, tuned=[tuned_by(gain)])
    assert found[1].startswith(said)
    assert len(found) == (3 if "within chance" in said else 2)
    if len(found) == 3:
        needed = questions_needed(np.broadcast_to(gain, (400,)), 0.05)
        said_n = re.search(r"About ([\d,]+) questions would show it", found[2])
        assert said_n is not None
        assert needed is not None
        assert 2 * needed <= int(said_n[1].replace(",", "")) < 2.2 * needed


def test_a_new_checkpoint_is_compared_with_the_old_one(world: Path) -> None:
    old = made(world, {"dense": 0.4 + NOISE[0], "all": 0.5 + NOISE[0]}, model="runs/a/final")
    new = made(world, {"dense": 0.4 + NOISE[1], "all": 0.6 + NOISE[1]}, model="runs/b/final")
    verdict = list(make_verdicts([old, new]))[-1]
    assert verdict.about == "b/final less a/final on world"
    mean = (new.values["all"]["nDCG@10"] - old.values["all"]["nDCG@10"]).mean()
    start = f"That b/final is better than a/final by all is shown: nDCG@10 {mean:+.3f} ["
    assert verdict.sentences[0].startswith(start)
    back = list(make_verdicts([new, old]))[-1]
    assert back.sentences[0].startswith("That b/final is better than a/final by all is shown: nDCG@10 -0.1")
    alike = list(make_verdicts([old, made(world, {c: v["nDCG@10"] for c, v in old.values.items()}, model="c")]))[-1]
    assert alike.sentences == ["Both rank alike by all."]
    turned = made(world, {c: v["nDCG@10"][::-1] for c, v in old.values.items()}, model="c")
    (said,) = list(make_verdicts([old, turned]))[-1].sentences
    assert said.startswith("Neither is better than the other by all: nDCG@10 ")


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["/x/tiny", "BAAI/bge-m3"], ["tiny", "bge-m3"]),
        (["runs/a/final", "runs/b/final"], ["a/final", "b/final"]),
        (["final", "out/final"], ["final", "out/final"]),
        ([r"C:\runs\a", "tiny"], ["a", "tiny"]),
        (["http://h:1", "http://h:2"], ["h:1", "h:2"]),
    ],
)
def test_a_model_is_called_by_what_tells_it_from_the_others(
    world: Path, models: list[str], expected: list[str]
) -> None:
    results = [made(world, {"dense": [0.5]}, model=model) for model in models]
    assert list(model_names(results).values()) == expected


@pytest.mark.slow
def test_every_table_fits_80_columns_with_all_its_numbers(world: Path) -> None:
    metrics = ["nDCG@10", "Recall@100", "MRR@10", "MAP", "Success@100", "Success@20", "nDCG@100"]
    results = [
        made(world, dict(zip(COLUMNS, shift + NOISE, strict=True)), model=model, metrics=metrics)
        for model, shift in (("old", 0.5), ("new", 0.52))
    ]
    tuned = [tuned_by(0.01), tuned_by(0.02)]
    tables = list(make_tables(results, "dense", tuned))
    assert [table.title for table in tables][:3] == [
        "old on world",
        "old on world",
        "old on world: nDCG@10, less that of dense",
    ]
    for width in (40, 80, 200):
        console = Console(width=width, color_system=None)
        with console.capture() as capture:
            _print_tables(tables, console)
        printed = capture.get()
        assert all(len(line.rstrip()) <= 80 for line in printed.splitlines() if line[:1] in "┏┃┡│└")
        for cell in (cell for table in tables for row in table.rows for cell in row):
            assert cell in printed
    lines = tables[1].explanations
    assert "search:all: the 100 best of both legs, by all three modes: what the retrievers here do" in lines
    assert "all: the 200 best by dense, by all three modes, as in the paper (1 / 0.3 / 1)" in lines
