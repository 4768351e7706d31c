"""Groups of batches by length and by file, and what each process gets of a batch."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.data import Example, TrainingBatches, read_examples, shuffle_segments
from m3_integrations.training.plan import BatchPlan

LENGTHS = np.array([3, 10, 11, 20, 5, 21, 40, 9, 30, 12, 8, 10])
FILES = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1])


@pytest.fixture
def tokenizer(small: Path) -> Tokenizer:
    return load_tokenizer(small)


def make_batches(data: list[Example], tokenizer: Tokenizer, **settings: object) -> TrainingBatches:
    values = {
        "batch_size": 4, "group_size": 2, "query_max_length": 16, "passage_max_length": 64, "steps": 12, "seed": 3,
    }  # fmt: skip
    return TrainingBatches(data, tokenizer, **{**values, **settings})  # type: ignore[arg-type]


def make_examples(count: int) -> list[Example]:
    return [
        Example(
            query=f"query {i}",
            positives=(f"answer {i} {'salt one river two ' * (i % 9)}", f"other {i}"),
            negatives=tuple(f"no {i} {j}" for j in range(3)),
            positive_scores=(float(i), i + 0.5),
            negative_scores=tuple(-i - j / 10 for j in range(3)),
        )
        for i in range(count)
    ]


def test_every_length_group_has_its_batch_size_and_its_examples() -> None:
    plan = BatchPlan(LENGTHS, FILES, {10: 3, 20: 2, 50: 1}, seed=0)
    assert plan.batches_per_epoch == 6 // 3 + 3 // 2 + 3
    for epoch in range(4):
        batches = [plan.rows(epoch * 6 + place) for place in range(6)]
        assert Counter(len(rows) for rows in batches) == {3: 2, 2: 1, 1: 3}
        limits = {3: (0, 10), 2: (11, 20), 1: (21, 50)}
        for rows in batches:
            low, high = limits[len(rows)]
            assert all(low <= length <= high for length in LENGTHS[rows])
        seen = Counter(np.concatenate(batches).tolist())
        assert set(seen.values()) == {1}
        assert len(seen) == 11  # all but one of the three of the middle group


def test_what_is_left_out_of_an_epoch_is_not_always_the_longest() -> None:
    plan = BatchPlan(LENGTHS, FILES, 5, seed=0)
    everything = set(range(12))
    left = [everything - set(np.concatenate([plan.rows(2 * epoch), plan.rows(2 * epoch + 1)])) for epoch in range(30)]
    assert {len(rows) for rows in left} == {2}
    assert set().union(*left) == everything


def test_a_batch_of_one_source_has_one_file_and_the_last_may_be_kept() -> None:
    plan = BatchPlan(LENGTHS, FILES, {20: 4, 50: 2}, one_source=True, keeps_last=True, seed=1)
    assert plan.batches_per_epoch == 2 + 1 + 2  # 6 of the first file; 3 short and 3 long ones of the second
    batches = [plan.rows(step) for step in range(5)]
    assert sorted(len(rows) for rows in batches) == [1, 2, 2, 3, 4]
    assert all(len(set(FILES[rows])) == 1 for rows in batches)
    assert sorted(np.concatenate(batches).tolist()) == list(range(12))


def test_a_rest_that_leaves_a_process_without_a_query_is_no_batch(tokenizer: Tokenizer) -> None:
    plan = BatchPlan(LENGTHS, FILES, 5, keeps_last=True, least=3, seed=0)
    assert [len(plan.rows(step)) for step in range(plan.batches_per_epoch)] == [5, 5]
    assert BatchPlan(LENGTHS, FILES, 5, keeps_last=True, least=2, seed=0).batches_per_epoch == 3
    with pytest.raises(ValueError, match="1 examples of one length group or file do not fill one batch of 3"):
        BatchPlan(LENGTHS, FILES, {30: 3, 50: 3}, keeps_last=True, least=2, seed=0)
    batches = make_batches(make_examples(9), tokenizer, keeps_last=True, process=1, processes=2)
    assert [len(batches[step]["query_ids"]) for step in range(4)] == [2] * 4


def test_a_batch_is_decided_by_its_number_whatever_was_asked_before() -> None:
    forward, backward = (
        BatchPlan(LENGTHS, FILES, {10: 3, 50: 2}, one_source=True, keeps_last=True, seed=7) for _ in "ab"
    )
    steps = range(3 * forward.batches_per_epoch)
    expected = [forward.rows(step).tolist() for step in steps]
    assert [backward.rows(step).tolist() for step in reversed(steps)][::-1] == expected
    assert expected[:6] != expected[6:12]


def test_groups_that_cannot_be_formed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size_by_length ends at 30 tokens, but a passage has 40"):
        BatchPlan(LENGTHS, FILES, {10: 2, 30: 2}, seed=0)
    with pytest.raises(ValueError, match=r"3 examples of one length group or file do not fill one batch of 4"):
        BatchPlan(LENGTHS, FILES, {10: 2, 20: 4, 50: 1}, seed=0)
    with pytest.raises(ValueError, match="there are no examples"):
        BatchPlan(LENGTHS[:0], FILES[:0], 4, seed=0)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_parts_of_all_processes_are_the_batch_of_one(tokenizer: Tokenizer, processes: int) -> None:
    data = make_examples(11)
    settings = {"keeps_last": True, "shuffle_ratio": 0.5, "needs_scores": True}
    whole = make_batches(data, tokenizer, **settings)
    parts = [
        make_batches(data, tokenizer, process=process, processes=processes, **settings) for process in range(processes)
    ]
    for step in range(12):
        expected, got = whole[step], [part[step] for part in parts]
        for name in ("positives", "known_answers", "teacher_scores"):
            assert torch.cat([part[name] for part in got]).equal(expected[name])
        for side in ("query", "passage"):
            texts = [
                ids[mask.bool()].tolist()
                for part in got
                for ids, mask in zip(part[f"{side}_ids"], part[f"{side}_mask"], strict=True)
            ]
            assert texts == [
                ids[mask.bool()].tolist()
                for ids, mask in zip(expected[f"{side}_ids"], expected[f"{side}_mask"], strict=True)
            ]
        queries = len(expected["query_ids"])
        assert [part["share"].item() for part in got] == pytest.approx(
            [len(part["query_ids"]) * processes / queries for part in got]
        )


def test_a_process_that_gathers_nothing_sees_its_own_columns(tokenizer: Tokenizer) -> None:
    part = make_batches(make_examples(8), tokenizer, process=1, processes=2, is_gathered=False)[0]
    assert part["positives"].tolist() == [0, 2]
    assert part["known_answers"].tolist() == [[True, False, False, False], [False, False, True, False]]


def test_scores_go_with_the_passages_that_were_chosen(tokenizer: Tokenizer) -> None:
    data = make_examples(8)
    scores = {text: score for each in data for text, score in zip(
        each.positives + each.negatives, each.positive_scores + each.negative_scores, strict=True
    )}  # fmt: skip
    batches = make_batches(data, tokenizer, group_size=3, needs_scores=True)
    by_ids = {tuple(tokenizer([text], max_length=64)[0].ids.tolist()): score for text, score in scores.items()}
    for step in range(6):
        batch = batches[step]
        got = [
            by_ids[tuple(ids[mask.bool()].tolist())]
            for ids, mask in zip(batch["passage_ids"], batch["passage_mask"], strict=True)
        ]
        assert batch["teacher_scores"].flatten().tolist() == pytest.approx(got)


def test_a_passage_that_answers_a_query_by_the_data_is_known_wherever_it_stands(tokenizer: Tokenizer) -> None:
    data = [
        Example("who", ("me", "you"), ("they",)),
        Example("who", ("us",), ("you",)),  # the same query again, whose negative is the other's answer
        Example("what", ("this",), ("me",)),
        Example("who", ("me",), ("this",), "find: "),  # another query, with its instruction
    ]
    batch = make_batches(data, tokenizer, steps=1)[0]

    def read(side: str) -> list[tuple[int, ...]]:
        pairs = zip(batch[f"{side}_ids"], batch[f"{side}_mask"], strict=True)
        return [tuple(ids[mask.bool()].tolist()) for ids, mask in pairs]

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer([text], max_length=64)[0].ids.tolist())

    answers = {"who": {"me", "you", "us"}, "what": {"this"}, "find: who": {"me"}}
    texts = {tokens(text): text for text in ("me", "you", "us", "this", "they", *answers)}
    expected = [[texts[passage] in answers[texts[query]] for passage in read("passage")] for query in read("query")]
    assert batch["known_answers"].tolist() == expected
    assert sum(map(sum, expected)) > 5


def test_segments_are_shuffled_with_the_probability_that_was_asked_for(tokenizer: Tokenizer) -> None:
    words = [f"w{i}" for i in range(60)]
    text = " ".join(words)
    shuffled = {shuffle_segments(text, random.Random(seed)) for seed in range(60)}
    assert len(shuffled) == 6  # every order of three
    assert all(sorted(each.replace(" ", "")) == sorted(text.replace(" ", "")) for each in shuffled)
    assert shuffle_segments("x" * 100, random.Random(0)) == "x" * 100

    data = [Example(f"q {i}", (f"{i} {'salt water engine window river report ' * 4}",), ()) for i in range(300)]
    settings = {"batch_size": 300, "group_size": 1, "steps": 1, "query_max_length": 8}
    plain = make_batches(data, tokenizer, **settings)[0]["passage_ids"]
    some = make_batches(data, tokenizer, shuffle_ratio=0.2, **settings)[0]["passage_ids"]
    changed = sum(not a.equal(b) for a, b in zip(plain, some[:, : plain.shape[1]], strict=True))
    assert 30 < changed < 70  # 50 are expected, as one order of six is the text's own


def test_a_wrong_teacher_or_too_small_a_batch_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pos_scores and neg_scores, which a teacher needs: 'q'"):
        make_batches([*make_examples(4), Example("q", ("a",), ("b",))], tokenizer, needs_scores=True)
    with pytest.raises(ValueError, match=r"1 of 5 examples have no negatives, such as 'bare', and train_group_size 2"):
        make_batches([*make_examples(4), Example("bare", ("a",), ())], tokenizer, group_size=2)
    with pytest.raises(ValueError, match="a batch of 2 queries is too small for 3 processes"):
        make_batches(make_examples(9), tokenizer, batch_size={32: 4, 64: 2}, processes=3)
    path = tmp_path / "a.jsonl"
    row = {"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [1]}
    for scores in ([1.0], ["x", 1], 3, [1.0, float("nan")]):
        path.write_text(json.dumps({**row, "neg_scores": scores}))
        with pytest.raises(ValueError, match=r'line 1: "neg_scores" must be a list of 2 finite numbers'):
            read_examples([path])
    path.write_text(json.dumps({**row, "pos_scores": None, "neg_scores": []}))
    assert read_examples([path]) == [Example("q", ("a",), ("b", "c"))]
