"""FlagEmbedding's JSONL and the batches made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.data import Example, TrainingBatches, pad_texts, read_examples


@pytest.fixture
def tokenizer(small: Path) -> Tokenizer:
    return load_tokenizer(small)


def examples(count: int, negatives: int = 2) -> list[Example]:
    words = ["salt", "water", "engine", "window", "river", "report"]
    return [
        Example(
            query=f"{words[i % 6]} {i}",
            positives=tuple(f"{words[i % 6]} {i} yes {'long ' * (i % 11)}{j}" for j in range(2)),
            negatives=tuple(f"no {i} {j}" for j in range(negatives)),
        )
        for i in range(count)
    ]


def batches(data: list[Example], tokenizer: Tokenizer, **settings: object) -> TrainingBatches:
    values = {
        "batch_size": 4, "group_size": 2, "query_max_length": 12, "passage_max_length": 24, "steps": 20, "seed": 3,
    }  # fmt: skip
    return TrainingBatches(data, tokenizer, **{**values, **settings})  # type: ignore[arg-type]


def test_flagembeddings_lines_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"query": "q", "pos": ["a", "b"], "neg": ["c"], "pos_scores": [1.0, 0.5], "neg_scores": [0.1],'
        ' "prompt": "find: ", "type": "normal"}\n\n{"query": "r", "pos": ["d"]}\n'
    )
    expected = [Example("q", ("a", "b"), ("c",), "find: ", (1.0, 0.5), (0.1,)), Example("r", ("d",), ())]
    assert read_examples([path]) == expected
    again = [dataclasses.replace(example, source=1) for example in expected]
    assert read_examples([tmp_path, path]) == expected + again


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q"}', '"pos" must be a list'),
        ('{"query": "q", "pos": []}', '"pos" must hold at least one'),
        ('{"query": 3, "pos": ["a"]}', 'needs an object with "query"'),
        ('{"query": "q", "pos": ["a"], "neg": "b"}', '"neg" must be a list of strings, got str'),
        ('{"query": "q", "pos": ["a"], "prompt": 1}', '"prompt" must be a string, got int'),
        ('{"query": " ", "pos": ["a"]}', "\"query\" must not be blank, got ' ': remove it, or the line"),
        ('{"query": "q", "pos": ["a", ""]}', "\"pos\" must not be blank, got ''"),
        ('{"query": "q", "pos": ["a"], "neg": ["\\n"]}', '"neg" must not be blank'),
        ("{", "line 2: Expecting"),
        ("[" * 100_000, "line 2: maximum recursion depth"),
        ('{"query": "\\ud800", "pos": ["a"]}', "surrogates not allowed"),
        ('{"query": "q", "pos": ["a"], "neg": ["b", "\\udfff"]}', "surrogates not allowed"),
        ('{"query": "q", "pos": ["\udcff"]}', "can't decode byte 0xff"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    first = '\ufeff{"query": "q", "pos": ["a"], "neg": []}\n'  # with a byte order mark
    path.write_text(first + line + "\n", encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message) as raised:
        read_examples([path])
    assert "data.jsonl, line 2: " in str(raised.value)


@pytest.mark.parametrize("scores", ["[NaN]", "[1e39]", f"[1{'0' * 400}]", "[true]", "0", "false", '""', "{}", "[1, 2]"])
def test_a_teachers_scores_that_float32_cannot_hold_are_refused(tmp_path: Path, scores: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"query": "q", "pos": ["a"], "pos_scores": {scores}}}\n')
    with pytest.raises(
        ValueError, match=r'line 1: "pos_scores" must be a list of 1 finite numbers of float32, .*, got'
    ):
        read_examples([path])


def test_a_teachers_scores_may_be_absent_whole_or_large(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    for scores, expected in (("null", ()), ("[]", ()), ("[3]", (3.0,)), ("[-3.4e38]", (-3.4e38,))):
        path.write_text(f'{{"query": "q", "pos": ["a"], "pos_scores": {scores}}}\n')
        assert read_examples([path])[0].positive_scores == expected


def test_a_batch_depends_on_the_seed_and_its_number_alone(tokenizer: Tokenizer) -> None:
    data = examples(22)
    first, second = batches(data, tokenizer), batches(data, tokenizer)
    forward = [first[step] for step in range(20)]
    backward = [second[step] for step in reversed(range(20))][::-1]
    assert all(a[key].equal(b[key]) for a, b in zip(forward, backward, strict=True) for key in a)
    other = batches(data, tokenizer, seed=4)
    assert any(not torch.equal(other[0][key], forward[0][key]) for key in forward[0])


def test_an_epoch_shows_every_example_once_and_passages_stand_in_groups(tokenizer: Tokenizer) -> None:
    data = examples(24)
    plan = batches(data, tokenizer, steps=12)
    texts = {tuple(tokenizer([example.query], max_length=12)[0].ids.tolist()): example for example in data}
    for epoch in range(2):
        seen = []
        for step in range(epoch * 6, epoch * 6 + 6):
            batch = plan[step]
            assert len(batch["passage_ids"]) == 8
            for row in range(4):
                ids = batch["query_ids"][row][batch["query_mask"][row].bool()]
                example = texts[tuple(ids.tolist())]
                seen.append(example.query)
                group = batch["passage_ids"][row * 2 : row * 2 + 2]
                masks = batch["passage_mask"][row * 2 : row * 2 + 2].bool()
                positive, negative = (tuple(ids[mask].tolist()) for ids, mask in zip(group, masks, strict=True))
                allowed = [tuple(t.ids.tolist()) for t in tokenizer(example.positives, max_length=24)]
                refused = [tuple(t.ids.tolist()) for t in tokenizer(example.negatives, max_length=24)]
                assert positive in allowed
                assert negative in refused
        assert sorted(seen) == sorted(example.query for example in data)


def test_a_batch_holds_texts_of_similar_length(tokenizer: Tokenizer) -> None:
    data = [Example(f"q {i}", ("w " * (1 + i % 20),), ()) for i in range(200)]
    plan = batches(data, tokenizer, batch_size=10, group_size=1, steps=20)
    lengths = [plan[step]["passage_mask"].sum(dim=1) for step in range(20)]
    assert max(int(length.max() - length.min()) for length in lengths) <= 1
    assert len({int(length.max()) for length in lengths}) > 5


def test_too_few_negatives_are_taken_twice(tokenizer: Tokenizer) -> None:
    plan = batches(examples(4, negatives=1), tokenizer, group_size=4, steps=1)
    assert len(plan[0]["passage_ids"]) == 16


def test_the_instruction_is_the_examples_own_or_the_runs(tokenizer: Tokenizer) -> None:
    data = [Example("water", ("a",), (), "find salt"), Example("water", ("b",), ())]
    plan = batches(data, tokenizer, batch_size=2, group_size=1, steps=1, instruction="river ")
    got = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(plan[0]["query_ids"], plan[0]["query_mask"], strict=True)
    }
    expected = tokenizer(["find saltwater", "river water"], max_length=12)
    assert got == {tuple(tokens.ids.tolist()) for tokens in expected}


def test_texts_are_padded_and_cut(tokenizer: Tokenizer) -> None:
    padded = pad_texts(["salt", "salt water " * 20], tokenizer, max_length=8)
    lengths = padded.attention_mask.sum(dim=1)
    assert padded.input_ids.shape == (2, 8)
    assert lengths[1] == 8
    assert np.all(padded.input_ids[0, lengths[0] :].numpy() == tokenizer.pad_id)
    assert padded.input_ids[1, -1] == padded.input_ids[0, lengths[0] - 1]


def test_what_cannot_make_a_batch_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="3 examples do not fill one batch of 4"):
        batches(examples(3), tokenizer)
    with pytest.raises(ValueError, match=r"4 of 4 examples have no negatives, such as .* train_group_size 2"):
        batches(examples(4, negatives=0), tokenizer)


def test_an_answer_is_known_from_every_line_of_its_query_whatever_the_batch(tokenizer: Tokenizer) -> None:
    data = [
        Example("salt", ("water",), ("window",)),
        Example("salt", ("river",), ("engine", "water")),  # the answer of the first line among its own negatives
        Example("salt", ("report",), ("river",), "find "),  # another query
        Example("engine", ("river",), ("salt",)),
    ]
    answers = {("", "salt"): {"water", "river"}, ("find ", "salt"): {"report"}, ("", "engine"): {"river"}}
    words = ["salt", "water", "engine", "window", "river", "report"]
    texts = {
        tuple(tokens.ids.tolist()): word for word, tokens in zip(words, tokenizer(words, max_length=24), strict=True)
    }
    of_query = {
        tuple(tokenizer([instruction + query], max_length=12)[0].ids.tolist()): expected
        for (instruction, query), expected in answers.items()
    }
    plan = batches(data, tokenizer, batch_size=2, group_size=2, steps=40)
    known_beyond_the_batch = 0
    for step in range(40):
        batch = plan[step]
        passages = [
            texts[tuple(ids[mask.bool()].tolist())]
            for ids, mask in zip(batch["passage_ids"], batch["passage_mask"], strict=True)
        ]
        for row, (ids, mask) in enumerate(zip(batch["query_ids"], batch["query_mask"], strict=True)):
            expected = of_query[tuple(ids[mask.bool()].tolist())]
            assert batch["known_answers"][row].tolist() == [text in expected for text in passages]
            own = passages[int(batch["positives"][row])]
            known_beyond_the_batch += any(text in expected and text != own for text in passages)
    assert known_beyond_the_batch > 5
