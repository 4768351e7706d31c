"""Rankings equal brute force in float64, by the paper's protocol and by the product's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from numpy.typing import NDArray
from rank_bm25 import BM25Okapi

from m3_integrations import M3Vectors, ModeWeights, Searcher, open_store
from m3_integrations.evaluation import Dataset, EvaluationResult, Protocol, evaluate, ranking, read_dataset, runs
from m3_integrations.evaluation.modes import COLUMNS, Column
from m3_integrations.evaluation.okapi import OkapiIndex
from m3_integrations.evaluation.ranking import Ranking
from m3_integrations.evaluation.runs import write_trec_run
from m3_integrations.vectors import Kind, Mode
from tests.evaluation.worlds import WorldEncoder, write_beir, write_world

WEIGHTS = {"dense+lexical": ModeWeights(0.2, 0.8, 0), "all": ModeWeights(1, 0.3, 1), "search:all": ModeWeights(2, 1, 3)}
SMALL = Protocol(rerank_depth=7, pool_size=5)


@pytest.fixture
def world(tmp_path: Path) -> Dataset:
    return read_dataset(write_world(tmp_path / "world"))


def all_scores(dataset: Dataset) -> dict[str, NDArray[np.float64]]:
    """Every query with every document in float64, straight from the definitions."""
    encoder = WorldEncoder()
    queries = encoder.encode(list(dataset.queries.values()), kind="query")
    texts = encoder.encode(list(dataset.corpus.texts()))
    shape = (len(queries), len(texts))
    scores = {mode: np.zeros(shape) for mode in ("dense", "lexical", "multi_vector")}
    for i, j in np.ndindex(*shape):
        a, b = queries.lexical[i].to_dict(), texts.lexical[j].to_dict()
        scores["dense"][i, j] = queries.dense[i].astype(np.float64) @ texts.dense[j]
        scores["lexical"][i, j] = sum(weight * b[token] for token, weight in a.items() if token in b)
        similarities = queries.multi_vector[i].astype(np.float64) @ texts.multi_vector[j].T
        scores["multi_vector"][i, j] = similarities.max(axis=1).mean()
    return scores


def best(scores: NDArray[np.float64], n: int, among: Sequence[int] | None = None) -> list[int]:
    rows = range(len(scores)) if among is None else among
    return sorted(rows, key=lambda row: (-scores[row], row))[:n]


def brute_force(dataset: Dataset, protocol: Protocol, depth: int) -> dict[str, list[list[int]]]:
    scores = all_scores(dataset)
    found: dict[str, list[list[int]]] = {column: [] for column in (*WEIGHTS, *scores)}
    for i in range(len(dataset.queries)):
        dense, lexical, multi = (scores[mode][i] for mode in ("dense", "lexical", "multi_vector"))
        by_dense = best(dense, depth)
        by_lexical = best(lexical, depth, np.flatnonzero(lexical > 0).tolist())
        found["dense"].append(by_dense)
        found["lexical"].append(by_lexical)
        missing_is_0 = 0.2 * np.where(np.isin(range(len(dense)), by_dense), dense, 0)
        missing_is_0 += 0.8 * np.where(np.isin(range(len(dense)), by_lexical), lexical, 0)
        found["dense+lexical"].append(best(missing_is_0, depth, sorted({*by_dense, *by_lexical})))
        reranked = by_dense[: protocol.rerank_depth]
        found["multi_vector"].append(best(multi, depth, reranked))
        found["all"].append(best(dense + 0.3 * lexical + multi, depth, reranked))
        union = {*by_dense[: protocol.pool_size], *by_lexical[: protocol.pool_size]}
        found["search:all"].append(best(2 * dense + lexical + 3 * multi, depth, sorted(union)))
    return found


def rows_of(result: EvaluationResult, column: Column) -> list[list[int]]:
    return [found.rows.tolist() for found in result.rankings[column]]


@pytest.mark.parametrize("encode_candidates", [False, True])
@pytest.mark.parametrize("depth", [1000, 9])  # 9: less than the corpus, so that documents are missing from a list
def test_every_column_equals_brute_force_in_float64(
    world: Dataset, monkeypatch: pytest.MonkeyPatch, depth: int, encode_candidates: bool
) -> None:
    monkeypatch.setattr(runs, "DEPTH", depth)
    monkeypatch.setattr(ranking, "_BLOCK_DOCUMENTS", 13)  # the corpus is read in several blocks
    monkeypatch.setattr(ranking, "_QUERY_BLOCK", 5)
    protocol = replace(SMALL, encode_candidates=encode_candidates)
    result = evaluate(WorldEncoder(), world, modes=[*WEIGHTS, "dense", "lexical", "multi_vector"],
                      weights=WEIGHTS, protocol=protocol)  # fmt: skip
    for column, expected in brute_force(world, protocol, depth).items():
        assert rows_of(result, column) == expected, column  # type: ignore[arg-type]
    lists = brute_force(world, protocol, 9)
    assert any(set(a) != set(b) for a, b in zip(lists["dense"], lists["lexical"], strict=True))


def test_scores_of_rankings_are_the_exact_ones(world: Dataset) -> None:
    result, exact = evaluate(WorldEncoder(), world, protocol=SMALL), all_scores(world)
    for column in ("dense", "lexical", "multi_vector"):
        for i, found in enumerate(result.rankings[column]):
            np.testing.assert_allclose(found.scores, exact[column][i][found.rows], atol=1e-6)
    for i, found in enumerate(result.rankings["all"]):
        combined = (exact["dense"][i] + 0.3 * exact["lexical"][i] + exact["multi_vector"][i]) / 2.3
        np.testing.assert_allclose(found.scores, combined[found.rows], atol=1e-6)


def test_the_products_column_is_what_searching_gives(world: Dataset) -> None:
    result = evaluate(WorldEncoder(), world, modes=["search:all"], protocol=SMALL)
    with Searcher(WorldEncoder(), open_store()) as searcher:
        searcher.add(world.corpus.texts(), ids=world.corpus.ids)
        for query, found in zip(world.queries.values(), result.rankings["search:all"], strict=True):
            hits = searcher.search(query, k=5, pool_size=5)
            assert [world.corpus.ids[row] for row in found.rows[:5]] == [hit.id for hit in hits]
            np.testing.assert_allclose(found.scores[:5], [hit.score for hit in hits], atol=1e-6)


@pytest.mark.parametrize("column", ["dense+lexical", "all", "search:all"])
def test_swapping_two_modes_weights_changes_that_column_only(world: Dataset, column: Column) -> None:
    chosen = {name: ModeWeights(0.2, 0.7, 0.1) for name in WEIGHTS}
    before = evaluate(WorldEncoder(), world, weights=chosen, protocol=SMALL)
    swapped = evaluate(WorldEncoder(), world, weights=chosen | {column: ModeWeights(0.7, 0.2, 0.1)}, protocol=SMALL)
    changed = {
        name
        for name in COLUMNS
        if rows_of(before, name) != rows_of(swapped, name)
        or any((a.scores != b.scores).any() for a, b in zip(before.rankings[name], swapped.rankings[name], strict=True))
    }
    assert changed == {column}
    assert {n for n in COLUMNS if any((before.values[n][m] != swapped.values[n][m]).any() for m in before.metrics)} <= {
        column
    }


def test_bm25_columns_are_rank_bm25s_over_tokens_and_over_words(tmp_path: Path) -> None:
    documents = {
        f"d{i}": text for i, text in enumerate(["Salt, salt and Pepper", "pepper Salt!", "sugar", "Sugar and salt"])
    }
    dataset = read_dataset(
        write_beir(tmp_path, documents, {"1": "SALT pepper?", "2": "nothing"}, {"1": {"d0": 1}, "2": {"d1": 1}})
    )
    result = evaluate(WorldEncoder(), dataset, modes=["bm25", "bm25:words"])
    splits: dict[Column, Callable[[str], list[str]]] = {
        "bm25": str.split,  # the tokens of this encoder
        "bm25:words": lambda text: re.findall(r"\w+", text.lower()),
    }
    for column, split in splits.items():
        index = BM25Okapi([split(text) for text in documents.values()])
        for query, found in zip(dataset.queries.values(), result.rankings[column], strict=True):
            expected = index.get_scores(split(query))
            hits = [row for row in best(expected, 4) if expected[row] != 0]
            assert found.rows.tolist() == hits
            np.testing.assert_allclose(found.scores, expected[hits], rtol=1e-6)
    assert rows_of(result, "bm25") != rows_of(result, "bm25:words")
    assert rows_of(result, "bm25:words")[1] == []


def test_the_baseline_over_nothing_finds_nothing() -> None:
    assert OkapiIndex([]).scores(["x"]).tolist() == []
    assert OkapiIndex([[]]).scores(["x"]).tolist() == [0]


class PlantedEncoder(WorldEncoder):
    """Gives the vectors that it is told for a text: dense ones, and one token vector equal to it."""

    def __init__(self, vector_of: Callable[[Kind, str], Sequence[float]]) -> None:
        super().__init__(modes=("dense", "multi_vector"))
        self._vector_of = vector_of

    def encode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        planted = super().encode(texts, kind=kind)
        dense = np.array([self._vector_of(kind, text) for text in texts], dtype=np.float32)
        token_vectors = type(planted.multi_vector)(np.arange(len(texts) + 1), dense)
        return M3Vectors(dense=dense, multi_vector=token_vectors).select(modes or self.modes)


def one_hot(place: int) -> list[float]:
    return [float(i == place) for i in range(30)]


@pytest.fixture
def one_relevant(tmp_path: Path) -> Dataset:
    """30 documents and 30 queries; query i asks for document 29 - i."""
    return read_dataset(
        write_beir(
            tmp_path / "planted",
            {f"d{i}": f"{i}" for i in range(30)},
            {f"q{i}": f"{29 - i}" for i in range(30)},
            {f"q{i}": {f"d{29 - i}": 1} for i in range(30)},
        )
    )


def test_a_planted_perfect_encoder_gets_one(one_relevant: Dataset) -> None:
    result = evaluate(PlantedEncoder(lambda _, text: one_hot(int(text))), one_relevant)
    assert result.columns == ("dense", "multi_vector", "bm25", "bm25:words")
    for column in ("dense", "multi_vector"):
        for metric in result.metrics:
            estimate = result.estimate(column, metric)
            assert (estimate.mean, estimate.low, estimate.high) == (1.0, 1.0, 1.0), (column, metric)


def test_a_constant_encoder_gets_chance_in_corpus_order(one_relevant: Dataset) -> None:
    result = evaluate(PlantedEncoder(lambda *_: [0.6, 0.8]), one_relevant)
    chance = {  # the mean over all places that the one relevant document may have
        "nDCG@10": sum(1 / np.log2(i + 1) for i in range(1, 11)) / 30,
        "Recall@100": 1.0,
        "MRR@10": sum(1 / i for i in range(1, 11)) / 30,
        "MAP": sum(1 / i for i in range(1, 31)) / 30,
    }
    for column in ("dense", "multi_vector"):
        assert all(found.rows.tolist() == list(range(30)) for found in result.rankings[column])
        for metric, expected in chance.items():
            assert result.estimate(column, metric).mean == pytest.approx(expected), (column, metric)


def test_trec_eval_reads_from_a_run_file_what_was_measured(tmp_path: Path, one_relevant: Dataset) -> None:
    # Equal scores throughout, which trec_eval alone would put in falling order of the ids.
    result = evaluate(PlantedEncoder(lambda *_: [0.6, 0.8]), one_relevant, modes=["dense"])
    write_trec_run(tmp_path / "dense.trec", one_relevant, result.rankings["dense"], "dense")
    lines = (tmp_path / "dense.trec").read_text().splitlines()
    assert lines[0] == "q0 Q0 d0 1 1 dense"
    assert len(lines) == 900
    measured = ir_measures.calc_aggregate(
        [ir_measures.AP],
        {query: dict(gains) for query, gains in one_relevant.qrels.items()},
        list(ir_measures.read_trec_run(str(tmp_path / "dense.trec"))),  # type: ignore[no-untyped-call]
    )
    assert list(measured.values()) == pytest.approx([result.estimate("dense", "MAP").mean])


def test_a_run_file_keeps_scores_that_differ(tmp_path: Path, one_relevant: Dataset) -> None:
    scores = np.array([1.5, 0.1, 0.1, -2.0, -2.0], dtype=np.float32)
    write_trec_run(tmp_path / "a.trec", one_relevant, [Ranking(np.arange(5), scores)] * 30, "a")
    read = [np.float32(line.split()[4]) for line in (tmp_path / "a.trec").read_text().splitlines()[:5]]
    assert [read[0], read[1], read[3]] == [scores[0], scores[1], scores[3]]
    assert read[2] == np.nextafter(scores[2], np.float32(-9))
    assert read[4] == np.nextafter(scores[4], np.float32(-9))


def test_an_id_with_white_space_cannot_be_in_a_run_file(tmp_path: Path) -> None:
    dataset = read_dataset(write_beir(tmp_path, {"a b": "x"}, {"1": "p"}, {"1": {"a b": 1}}))
    with pytest.raises(ValueError, match="'a b'"):
        write_trec_run(tmp_path / "run", dataset, [Ranking(np.array([0]), np.array([1.0], np.float32))], "x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modes": ["dense", "sparse"]}, "modes must be one or more of dense, lexical"),
        ({"modes": []}, "modes must be one or more of"),
        ({"metrics": []}, "metrics must be one or more"),
        ({"metrics": ["nDGC@10"]}, "unknown metric"),
        ({"weights": {"dense": "equal"}}, "dense cannot be weighted"),
        ({"weights": {"all": "best"}}, "unknown weights 'best'"),
        ({"weights": {"dense+lexical": ModeWeights(0, 0, 1)}}, "absent"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_encoded(
    world: Dataset, settings: dict[str, object], message: str
) -> None:
    encoder = WorldEncoder()
    with pytest.raises(ValueError, match=message):
        evaluate(encoder, world, **settings)  # type: ignore[arg-type]
    assert encoder.encoded == []


def test_protocol_numbers_are_checked() -> None:
    for name in ("rerank_depth", "pool_size"):
        for value in (0, 1001):
            with pytest.raises(ValueError, match=f"{name} must be from 1 to 1000, got {value}"):
                Protocol(**{name: value})  # type: ignore[arg-type]


def test_one_string_is_no_list_of_modes_or_metrics(world: Dataset) -> None:
    for name in ("modes", "metrics"):
        with pytest.raises(TypeError, match=f"{name} must be a sequence"):
            evaluate(WorldEncoder(), world, **{name: "dense"})  # type: ignore[arg-type]


def test_a_mode_without_a_head_is_refused_or_left_out(world: Dataset) -> None:
    with pytest.raises(ValueError, match="all needs lexical, multi_vector vectors"):
        evaluate(WorldEncoder(modes=("dense",)), world, modes=["all"])
    assert evaluate(WorldEncoder(modes=("dense",)), world).columns == ("dense", "bm25", "bm25:words")


def test_mkqas_measure_is_the_share_of_queries_whose_answer_is_among_the_first(tmp_path: Path) -> None:
    documents = {f"d{i}": text for i, text in enumerate(["0", "1", "2", "3"])}
    folder = write_beir(tmp_path / "nq", documents, {}, {})
    (tmp_path / "de.jsonl").write_text(
        '{"id": 1, "question": "3", "answers": ["zwei", "3"]}\n'  # found first
        '{"id": 2, "question": "0", "answers": ["1"]}\n'  # ties behind it: 1, 2, 3
        '{"id": 3, "question": "2", "answers": ["5"]}\n'
    )
    dataset = read_dataset(folder, queries_from=tmp_path / "de.jsonl")
    encoder = PlantedEncoder(lambda _, text: one_hot(int(text)))
    result = evaluate(encoder, dataset, modes=["dense"], metrics=["Success@1", "Success@2", "Success@4"])
    assert {metric: values.tolist() for metric, values in result.values["dense"].items()} == {
        "Success@1": [1.0, 0.0, 0.0],
        "Success@2": [1.0, 1.0, 0.0],
        "Success@4": [1.0, 1.0, 0.0],
    }
    assert evaluate(encoder, dataset, modes=["dense"]).metrics == ("Success@20", "Success@100")
    with pytest.raises(ValueError, match="only Success@k can be measured"):
        evaluate(encoder, dataset, metrics=["nDCG@10"])
