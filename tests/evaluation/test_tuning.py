"""Tuned weights come from one half of the queries and are reported on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3_integrations import ModeWeights
from m3_integrations.evaluation import Dataset, Protocol, evaluate, read_dataset, tune_weights, tuning
from m3_integrations.evaluation.tuning import TunedWeights, split_queries, weight_grid
from m3_integrations.vectors import PRESETS
from tests.evaluation.worlds import WorldEncoder, write_world


@pytest.fixture
def world(tmp_path: Path) -> Dataset:
    dataset = read_dataset(write_world(tmp_path / "world", documents=80, queries=30))
    qrels = {query: {f"d{(13 * i + 5) % 80}": 1, f"d{i}": 1} for i, query in enumerate(dataset.queries)}
    return replace(dataset, qrels=qrels)


def favouring(dataset: Dataset, queries: Mapping[str, int]) -> Dataset:
    """Judge so that for these queries the best candidate of one mode is what is relevant."""
    encoder = WorldEncoder()
    texts = encoder.encode(list(dataset.corpus.texts()))
    qrels = {query: dict(gains) for query, gains in dataset.qrels.items()}
    for query in queries:
        vectors = encoder.encode([dataset.queries[query]], kind="query")
        scores = texts.dense @ vectors.dense[0] * (1 if queries[query] == 0 else -1)
        qrels[query] = {f"d{row}": 1 for row in np.argsort(-scores)[:3]}
    return replace(dataset, qrels=qrels)


def leaks(tune: Callable[[Dataset], TunedWeights], dataset: Dataset) -> bool:
    """Whether judgements of the half that is reported on have any part in the weights that are found."""
    found = tune(dataset)
    for mode in (0, 1):
        if tune(favouring(dataset, dict.fromkeys(found.reported_on, mode))).weights != found.weights:
            return True
    return False


def tune(dataset: Dataset) -> TunedWeights:
    return tune_weights(WorldEncoder(), dataset, steps=8, protocol=Protocol(pool_size=40))


def test_the_half_that_is_reported_on_is_never_seen(world: Dataset) -> None:
    assert not leaks(tune, world)


def test_a_planted_leak_is_caught(world: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def overlapping(queries: Mapping[str, str], *, seed: int) -> tuple[list[str], list[str]]:
        return list(queries), split_queries(queries, seed=seed)[1]

    monkeypatch.setattr(tuning, "split_queries", overlapping)
    assert leaks(tune, world)


def test_queries_of_the_two_halves_and_their_texts_are_apart() -> None:
    queries = {f"q{i}": f"text {i // 3}" for i in range(60)}  # each text three times
    first, second = split_queries(queries, seed=4)
    assert sorted(first + second) == sorted(queries)
    assert not {queries[id_] for id_ in first} & {queries[id_] for id_ in second}
    assert len(first) == 30
    assert split_queries(dict(reversed(queries.items())), seed=4)[0] == first[::-1]  # whatever the order of the file
    assert split_queries(queries, seed=5)[0] != first
    with pytest.raises(ValueError, match="two different queries at least, got 1"):
        split_queries({"a": "same", "b": "same"}, seed=0)


def test_the_grid_holds_every_weighting_once_nearest_to_equal_first() -> None:
    grid = weight_grid(3)
    assert grid[0] == ModeWeights(1 / 3, 1 / 3, 1 / 3)
    assert {(w.dense, w.lexical, w.multi_vector) for w in grid} == {
        (a / 3, b / 3, (3 - a - b) / 3) for a in range(4) for b in range(4 - a)
    }
    assert len(weight_grid(20)) == 231
    assert {(w.dense, w.lexical, w.multi_vector) for w in grid[-3:]} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_the_weights_found_are_the_best_of_the_grid_on_their_half(world: Dataset) -> None:
    planted = favouring(world, dict.fromkeys(world.queries, 0))  # dense alone finds what is relevant
    found = tune(planted)
    assert found.weights == ModeWeights(1, 0, 0)
    assert found.estimate().mean == pytest.approx(1.0)
    assert found.estimate("equal").mean < 0.99
    assert found.compare("equal").difference.mean == pytest.approx(1 - found.estimate("equal").mean)


@pytest.mark.slow
def test_values_on_the_other_half_are_those_of_evaluating_with_the_weights(world: Dataset) -> None:
    found = tune(world)
    places = [list(world.queries).index(query) for query in found.reported_on]
    for name, weights in {"tuned": found.weights, **PRESETS}.items():
        result = evaluate(
            WorldEncoder(),
            world,
            modes=["search:all"],
            weights={"search:all": weights},
            protocol=Protocol(pool_size=40),
        )
        np.testing.assert_allclose(found.values[name], result.values["search:all"]["nDCG@10"][places], err_msg=name)
    assert set(found.found_on) | set(found.reported_on) == set(world.queries)


def test_what_cannot_be_tuned_is_refused_before_anything_is_encoded(world: Dataset) -> None:
    encoder = WorldEncoder()
    with pytest.raises(ValueError, match="has answers instead"):
        tune_weights(encoder, replace(world, qrels={}, answers={"q0": ["a"]}))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        tune_weights(encoder, world, steps=0)
    with pytest.raises(ValueError, match="unknown metric"):
        tune_weights(encoder, world, metric="nope")
    with pytest.raises(ValueError, match="search:all needs lexical"):
        tune_weights(WorldEncoder(modes=("dense",)), world)
    assert encoder.encoded == []
