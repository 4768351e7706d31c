"""Hard negatives: against a plain ranking of everything, by hand, after a kill, and as training data."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification
from typer.testing import CliRunner

from m3_integrations import M3Encoder, open_store
from m3_integrations.cli import app
from m3_integrations.scoring import combine, raw_scores
from m3_integrations.search import Hit, SearchMode
from m3_integrations.store import Store
from m3_integrations.training import run_training
from m3_integrations.training.data import read_examples
from m3_integrations.training.mining import (
    CrossEncoder,
    MiningOptions,
    index_passages,
    mine_negatives,
    read_passages,
)
from m3_integrations.training.mining.choosing import choose_negatives, margin_limits
from m3_integrations.vectors import MODES, M3Scores, Mode, ModeWeights
from tests.evaluation.worlds import write_jsonl
from tests.fakes import FakeEncoder
from tests.training.conftest import WriteConfig

PASSAGES = [f"passage {i} {'about keys ' * (i % 5)}{random.Random(i).getrandbits(80):x}" for i in range(60)]
QUERIES = [f"question {i}" for i in range(8)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def filled(store: Store, encoder: FakeEncoder, passages: Sequence[str] = PASSAGES) -> Store:
    index_passages(encoder, store, passages)
    return store


def write_pairs(path: Path, n: int = 8) -> Path:
    write_jsonl(path, [{"query": f"question {i}", "pos": [PASSAGES[7 * i % 60]], "neg": ["old"]} for i in range(n)])
    return path


def rankings(query: str, own: Sequence[str], pool: int) -> dict[str, list[str]]:
    """Every passage but these, ranked from the encoder's vectors alone.

    By token vectors and by all modes together only those are ranked that are among the best of the two legs.
    """
    encoder = FakeEncoder()
    scores = raw_scores(encoder.encode([query], kind="query"), encoder.encode(PASSAGES), MODES)
    legs = [np.argsort(-scores["dense"])[:pool], np.argsort(-scores["lexical"])[:pool]]
    legs[1] = legs[1][scores["lexical"][legs[1]] > 0]
    union = set(legs[0].tolist()) | set(legs[1].tolist())
    ranked: dict[str, list[int]] = {"dense": legs[0].tolist(), "lexical": legs[1].tolist()}
    for mode, values in (("multi_vector", scores["multi_vector"]), ("all", combine(scores, ModeWeights()))):
        ranked[mode] = [row for row in np.argsort(-values).tolist() if row in union]
    return {mode: [PASSAGES[row] for row in rows if PASSAGES[row] not in own] for mode, rows in ranked.items()}


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_negatives_are_drawn_from_these_ranks_of_every_mode(place: str, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    with open_store(None if place == "memory" else tmp_path / "store") as store:
        filled(store, encoder)
        data = write_pairs(tmp_path / "pairs.jsonl")
        few = MiningOptions(n=6, first_rank=3, last_rank=12, duplicates=1)
        report = mine_negatives(encoder, store, data, tmp_path / "few.jsonl", few)
        every = MiningOptions(n=60, first_rank=3, last_rank=12, duplicates=1)
        mine_negatives(encoder, store, data, tmp_path / "every.jsonl", every)
    assert (report.examples, report.negatives, report.short, report.without) == (8, 48, 0, 0)
    for few_row, row in zip(read(tmp_path / "few.jsonl"), read(tmp_path / "every.jsonl"), strict=True):
        ranked = rankings(row["query"], row["pos"], 14)  # 12 ranks, a positive, and the query itself if it is there
        expected = {mode: set(ranked[mode][2:12]) for mode in MODES}
        assert set(row["neg"]) == set.union(*expected.values())
        assert len(set(row["neg"])) == len(row["neg"])
        # One of each mode in turn.
        for i, text in enumerate(few_row["neg"]):
            assert text in expected[MODES[i % 3]]


def test_a_ranking_may_be_of_all_modes_together(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    options = MiningOptions(modes=("all",), n=60, first_rank=2, last_rank=6, duplicates=1)
    mine_negatives(
        encoder, filled(open_store(), encoder), write_pairs(tmp_path / "p.jsonl"), tmp_path / "out.jsonl", options
    )
    for row in read(tmp_path / "out.jsonl"):
        assert set(row["neg"]) == set(rankings(row["query"], row["pos"], 8)["all"][1:6])


def test_an_answer_of_another_line_of_the_same_query_is_no_negative(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    best = rankings("question 0", (), 60)["dense"]
    answers = [best[0], best[4], best[9]]
    data = tmp_path / "pairs.jsonl"
    write_jsonl(data, [{"query": "question 0", "pos": [text]} for text in answers])
    every = MiningOptions(modes=("dense",), n=60, first_rank=1, last_rank=12, duplicates=1)
    store = filled(open_store(), encoder)
    mine_negatives(encoder, store, data, tmp_path / "out.jsonl", every)
    for row in read(tmp_path / "out.jsonl"):
        assert set(row["neg"]) == set(best[:15]) - set(answers)
    below = MiningOptions(modes=("dense",), n=60, first_rank=1, last_rank=12, duplicates=1, margin=0.0)
    mine_negatives(encoder, store, data, tmp_path / "below.jsonl", below)
    for row in read(tmp_path / "below.jsonl"):
        assert set(row["neg"]) == set(best[10:15])  # less than every positive, the tenth too


def hit(text: str, score: float) -> Hit:
    return Hit(id=text, text=text, metadata={}, score=score, scores={"dense": score})


HITS = [hit("The  QUERY", 0.99), hit("the positive", 0.9), *(hit(f"passage {i} alone", 0.8 - i / 10) for i in range(6))]


def chosen(
    options: MiningOptions, hits: Sequence[Hit] = HITS, limits: Mapping[SearchMode, float] | None = None
) -> list[str]:
    own = ("the query", "The Positive")
    return choose_negatives({"dense": hits}, own, limits or {"dense": np.inf}, options, random.Random(0))


def dense_scores(*values: float) -> M3Scores:
    scores = np.array(values, dtype=np.float32)
    return M3Scores(combined=scores, dense=scores)


def test_ranks_are_counted_without_the_query_and_its_positives() -> None:
    options = MiningOptions(n=9, first_rank=2, last_rank=4, duplicates=1)
    assert sorted(chosen(options)) == ["passage 1 alone", "passage 2 alone", "passage 3 alone"]


def test_a_blank_text_of_a_store_is_no_negative() -> None:
    hits = [hit("", 0.9), hit(" \n", 0.8), hit("a passage", 0.7)]
    assert chosen(MiningOptions(n=9, first_rank=1, last_rank=9, duplicates=1), hits) == ["a passage"]


def test_a_negative_scores_less_than_every_positive_by_the_margin() -> None:
    options = MiningOptions(n=9, first_rank=1, last_rank=9, margin=0.1, duplicates=1)
    scores = dense_scores(0.9, 0.7)
    limits = margin_limits(scores, ["dense"], options)
    assert limits == {"dense": pytest.approx(0.63)}  # 0.7 less a tenth
    assert sorted(chosen(options, limits=limits)) == [f"passage {i} alone" for i in (2, 3, 4, 5)]
    below = dense_scores(-0.5)
    assert margin_limits(below, ["dense"], options) == {"dense": pytest.approx(-0.55)}


def test_the_margin_holds_to_the_scores_of_the_model(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    options = MiningOptions(modes=("dense",), n=60, first_rank=1, last_rank=60, margin=0.2, duplicates=1)
    data = write_pairs(tmp_path / "p.jsonl")
    mine_negatives(encoder, filled(open_store(), encoder), data, tmp_path / "out.jsonl", options)
    for row in read(tmp_path / "out.jsonl"):
        query = encoder.encode([row["query"]], kind="query").dense[0]
        positive = float(encoder.encode(row["pos"]).dense[0] @ query)
        others = [text for text in PASSAGES if text not in row["pos"]]
        values = encoder.encode(others).dense @ query
        limit = positive - 0.2 * abs(positive)
        assert set(row["neg"]) == {text for text, value in zip(others, values, strict=True) if value <= limit}


def test_near_duplicates_of_a_positive_or_of_another_negative_are_left_out() -> None:
    long = "keys are rotated once a year by whoever holds the vault on that day"
    hits = [hit(f"the positive{'!' * i}", 0.9 - i / 100) for i in range(1, 4)]
    hits += [hit(long, 0.8), hit(long.upper() + ".", 0.7), hit("another text", 0.6)]
    options = MiningOptions(n=9, first_rank=1, last_rank=9, duplicates=0.7)
    found = chosen(options, hits)
    # "the positive" has 8 runs of 5 characters; "the positive!" shares 8 of 9, and "...!!!" 8 of 11, which is 0.727.
    assert len(found) == 2
    assert "another text" in found
    strict = chosen(MiningOptions(n=9, first_rank=1, last_rank=9, duplicates=0.75), hits)
    assert sorted(text for text in strict if text.startswith("the")) == ["the positive!!!"]
    assert len(chosen(MiningOptions(n=9, first_rank=1, last_rank=9, duplicates=1), hits)) == 6


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    store, data = filled(open_store(), encoder), write_pairs(tmp_path / "p.jsonl")
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mine_negatives(encoder, store, data, tmp_path / name, MiningOptions(n=4, first_rank=1, last_rank=30, seed=seed))
        found.append((tmp_path / name).read_text())
    assert found[0] == found[1] != found[2]


def test_no_query_is_mined_or_trained_with_none_before_it(tmp_path: Path) -> None:
    """FlagEmbedding trains on "None<query>" where batches hold one data set, no prompt and no instruction."""
    encoder = FakeEncoder()
    rows: list[dict[str, object]] = [
        {"query": "without", "pos": ["a"]},
        {"query": "null", "pos": ["b"], "prompt": None},
        {"query": "own", "pos": ["c"], "prompt": "Find: "},
        {"query": "empty", "pos": ["d"], "prompt": ""},
    ]
    write_jsonl(tmp_path / "p.jsonl", rows)
    store = filled(open_store(), encoder)
    for instruction, expected in (("", ["without", "null"]), ("Ask: ", ["Ask: without", "Ask: null"])):
        encoder.encoded.clear()
        out = tmp_path / f"out{len(instruction)}.jsonl"
        options = MiningOptions(first_rank=1, query_instruction=instruction, margin=0.9)
        mine_negatives(encoder, store, tmp_path / "p.jsonl", out, options)
        asked = {text for kind, text in encoder.encoded if kind == "query"}
        assert asked == {*expected, "Find: own", "empty"}
        assert [{name: row[name] for name in old} for row, old in zip(read(out), rows, strict=True)] == rows
        assert [example.instruction for example in read_examples([out])] == [None, None, "Find: ", ""]


def test_other_keys_stay_and_scores_of_other_texts_go(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    row = {"query": "q é", "pos": ["a"], "neg": ["x"], "pos_scores": [1.0], "neg_scores": [0.5], "type": "t", "id": 7}
    write_jsonl(tmp_path / "p.jsonl", [row])
    mine_negatives(encoder, filled(open_store(), encoder), tmp_path / "p.jsonl", tmp_path / "o", MiningOptions(n=1))
    (found,) = read(tmp_path / "o")
    assert list(found) == ["query", "pos", "neg", "type", "id"]
    assert "x" not in found["neg"]
    assert "é" in (tmp_path / "o").read_text(encoding="utf-8")


def test_a_teacher_scores_every_positive_and_negative(tmp_path: Path) -> None:
    encoder = FakeEncoder()

    def teacher(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [len(query) + len(text) / 1000 for query, text in pairs]

    data = write_pairs(tmp_path / "p.jsonl")
    store = filled(open_store(), encoder)
    mine_negatives(encoder, store, data, tmp_path / "o", MiningOptions(n=3), teacher=teacher)
    for row in read(tmp_path / "o"):
        assert row["pos_scores"] == teacher([(row["query"], text) for text in row["pos"]])
        assert row["neg_scores"] == teacher([(row["query"], text) for text in row["neg"]])
    with pytest.raises(ValueError, match="given 32 pairs and returned 1 scores"):
        mine_negatives(encoder, store, data, tmp_path / "p", MiningOptions(n=3), teacher=lambda _: [0.0])


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.test_mining import OPTIONS, FakeEncoder, filled
from m3_integrations import open_store
from m3_integrations.training.mining import mine_negatives
calls = []
class Killed(FakeEncoder):
    def encode(self, texts, *, kind="document", modes=None):
        calls.append(kind)
        if calls.count("query") == 7:  # three rankings a block
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts, kind=kind, modes=modes)
folder = Path(sys.argv[1])
mine_negatives(Killed(), filled(open_store(), FakeEncoder()), folder / "p.jsonl", folder / "out.jsonl", OPTIONS)
"""
OPTIONS = MiningOptions(n=5, first_rank=1, last_rank=20)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e39])
def test_a_score_that_training_would_refuse_ends_mining_and_what_was_mined_is_kept(
    wrong: float, tmp_path: Path
) -> None:
    encoder, data = FakeEncoder(), write_pairs(tmp_path / "p.jsonl", 100)
    store, calls = filled(open_store(), encoder), []

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        calls.append(len(pairs))
        return [0.5] * (len(pairs) - 1) + [wrong if len(calls) == 2 else 0.5]

    with pytest.raises(
        ValueError, match=r"the teacher's score of 'question 99' with 'passage .* is (nan|inf|1e\+39), and"
    ):
        mine_negatives(encoder, store, data, tmp_path / "out.jsonl", teacher=score, teacher_name="t")
    assert not (tmp_path / "out.jsonl").exists()
    report = mine_negatives(encoder, store, data, tmp_path / "out.jsonl", teacher=score, teacher_name="t")
    assert report.resumed == 64
    assert len(read_examples([tmp_path / "out.jsonl"])) == 100


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "p.jsonl", 200)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    progress = tmp_path / "out.jsonl.progress"
    assert len(progress.read_text().splitlines()) == 1 + 128
    assert not (tmp_path / "out.jsonl").exists()
    lines = progress.read_text().splitlines(keepends=True)
    progress.write_text("".join(lines[:-1]) + '{"query": "cut sho')  # what a full disk leaves
    encoder = FakeEncoder()
    store = filled(open_store(), encoder)
    with pytest.raises(ValueError, match=r"begun with another options: use the earlier settings"):
        mine_negatives(encoder, store, data, tmp_path / "out.jsonl", MiningOptions(n=6))
    encoder.encoded.clear()
    report = mine_negatives(encoder, store, data, tmp_path / "out.jsonl", OPTIONS)
    assert (report.resumed, report.examples) == (64, 200)  # whole blocks
    asked = {text for kind, text in encoder.encoded if kind == "query"}
    assert asked == {f"question {i}" for i in range(64, 200)}
    mine_negatives(encoder, store, data, tmp_path / "whole.jsonl", OPTIONS)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "p.jsonl", "whole.jsonl"]


def test_what_cannot_be_mined_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    encoder, data = FakeEncoder(), write_pairs(tmp_path / "p.jsonl")
    store = filled(open_store(), encoder)
    with pytest.raises(ValueError, match="holds no passages to mine: index some first"):
        mine_negatives(encoder, open_store(), data, tmp_path / "o")
    with pytest.raises(FileExistsError, match="choose another file"):
        mine_negatives(encoder, store, data, data)
    dense_only = FakeEncoder(("dense",))
    with pytest.raises(ValueError, match=r"drawn from mode 'lexical': the checkpoint fake has no heads for lexical"):
        mine_negatives(
            dense_only, filled(open_store(), dense_only), data, tmp_path / "o", MiningOptions(modes=("lexical",))
        )
    lean = filled(open_store(tmp_path / "lean", multi_vector="none"), encoder)
    with lean, pytest.raises(ValueError, match="keeps dense, lexical vectors only"):
        mine_negatives(encoder, lean, data, tmp_path / "o", MiningOptions(modes=("all",)))
    with FileLock(tmp_path / "o.progress.lock"), pytest.raises(BlockingIOError, match="another process writes"):
        mine_negatives(encoder, store, data, tmp_path / "o")
    (tmp_path / "o.progress").write_text("notes of mine\n")
    with pytest.raises(ValueError, match=r"o\.progress, line 1 is not JSON"):
        mine_negatives(encoder, store, data, tmp_path / "o")
    assert (tmp_path / "o.progress").read_text() == "notes of mine\n"
    for wrong in ({"n": 0}, {"first_rank": 0}, {"first_rank": 9, "last_rank": 8}, {"margin": -0.1}, {"duplicates": 0.0},
                  {"modes": ("sparse",)}):  # fmt: skip
        with pytest.raises(ValueError, match=r"must"):
            MiningOptions(**wrong)


def test_a_dense_only_checkpoint_and_a_store_without_token_vectors_are_mined_in_what_there_is(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "p.jsonl")
    dense_only: tuple[Mode, ...] = ("dense",)
    for modes in (dense_only, MODES):
        encoder = FakeEncoder(modes)
        options = MiningOptions(n=60, first_rank=1, last_rank=5, duplicates=1)
        out = tmp_path / f"{len(modes)}.jsonl"
        with open_store(tmp_path / f"store{len(modes)}", multi_vector="none") as store:
            mine_negatives(encoder, filled(store, encoder), data, out, options)
        there: tuple[Mode, ...] = ("dense",) if len(modes) == 1 else ("dense", "lexical")
        for row in read(out):
            ranked = rankings(row["query"], row["pos"], 7)
            assert set(row["neg"]) == {text for mode in there for text in ranked[mode][:5]}


def test_passages_are_read_with_their_titles_and_indexed_once(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"_id": "1", "title": "Keys", "text": "Rotate."},
        {"title": float("nan"), "text": "Vault."},  # as data frames write a missing title
        {"text": "Vault."},
        {"text": " "},
    ]
    write_jsonl(tmp_path / "c.jsonl", rows)
    assert list(read_passages(tmp_path / "c.jsonl")) == ["Keys Rotate.", "Vault.", "Vault.", ""]
    assert next(read_passages(tmp_path / "c.jsonl", titles=False)) == "Rotate."
    encoder = FakeEncoder()
    store = open_store()
    assert index_passages(encoder, store, read_passages(tmp_path / "c.jsonl")) == 2
    assert index_passages(encoder, store, ["Vault.", "Museum."]) == 1
    assert [text for _, text in encoder.encoded] == ["Keys Rotate.", "Vault.", "Museum."]
    write_jsonl(tmp_path / "c.jsonl", [{"_id": "1", "txt": "x"}])
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1: needs an object with"):
        list(read_passages(tmp_path / "c.jsonl"))
    write_jsonl(tmp_path / "c.jsonl", [{"title": {"en": "x"}, "text": "y"}])
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1: \"title\" must be a string or null"):
        list(read_passages(tmp_path / "c.jsonl"))
    (tmp_path / "c.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1: maximum recursion depth"):
        list(read_passages(tmp_path / "c.jsonl"))


@pytest.fixture(scope="module")
def reranker(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random cross-encoder with the small checkpoint's tokenizer."""
    folder = tmp_path_factory.mktemp("reranker")
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130, num_labels=1, pad_token_id=1,
    )  # fmt: skip
    network = XLMRobertaForSequenceClassification(config)
    for parameter in network.parameters():
        parameter.data *= 5  # so that scores differ
    network.save_pretrained(folder)
    for path in small.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_cross_encoder_scores_a_pair_as_transformers_does_alone(reranker: Path) -> None:
    from transformers import AutoTokenizer

    pairs = [("keys", "Keys are rotated " * i) for i in range(1, 18)] + [("", "a"), ("keys", "")]
    scores = CrossEncoder(reranker, device="cpu", max_length=100, batch_size=4)(pairs)
    network = XLMRobertaForSequenceClassification.from_pretrained(reranker).eval()
    tokenizer = AutoTokenizer.from_pretrained(reranker)
    for (query, text), score in zip(pairs, scores, strict=True):
        inputs = tokenizer([query], [text], truncation=True, max_length=100, return_tensors="pt")
        assert score == pytest.approx(network(**inputs).logits.item(), abs=1e-5)
    assert len({round(score, 4) for score in scores}) > 9


def test_what_is_no_cross_encoder_is_refused(reranker: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a cross-encoder: it lacks classifier"):
        CrossEncoder(small, device="cpu")
    config = XLMRobertaConfig.from_pretrained(reranker, num_labels=2)
    XLMRobertaForSequenceClassification(config).save_pretrained(tmp_path)
    for path in reranker.glob("*token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"must return one score, .* returns 2"):
        CrossEncoder(tmp_path, device="cpu")


def test_a_mined_file_trains(write_config: WriteConfig, small: Path, reranker: Path, tmp_path: Path) -> None:
    """The commands as a user has them: pairs, mining from the file's own texts with a reranker, training."""
    config = write_config(train_group_size=4, train_data=["mined.jsonl"])
    pairs = read(tmp_path / "examples.jsonl")
    write_jsonl(tmp_path / "pairs.jsonl", [{"query": row["query"], "pos": row["pos"]} for row in pairs])
    mined = tmp_path / "mined.jsonl"
    line = ["mine", str(tmp_path / "pairs.jsonl"), "--out", str(mined), "--model", str(small), "--ranks", "1-20",
            "-n", "3", "--cross-encoder", str(reranker), "--device", "cpu"]  # fmt: skip
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "72 negatives for 24 queries are in" in result.stdout
    texts = {text for row in pairs for text in row["pos"]}
    for row in read(mined):
        assert len(set(row["neg"])) == len(row["neg_scores"]) == 3
        assert set(row["neg"]) <= texts - set(row["pos"])
    trained = run_training(config, show_progress=False)
    with (
        M3Encoder(trained, shared=False, device="cpu") as after,
        M3Encoder(small, shared=False, device="cpu") as before,
    ):
        assert np.abs(after.encode(["keys"]).dense - before.encode(["keys"]).dense).max() > 1e-4
    again = CliRunner().invoke(app, line)
    assert again.exit_code == 1
    assert "mined.jsonl exists already: choose another file" in again.stderr


def test_the_command_mines_a_store_that_holds_the_passages(small: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "p.jsonl")
    with M3Encoder(small, device="cpu") as encoder, open_store(tmp_path / "store") as store:
        index_passages(encoder, store, PASSAGES)
        options = MiningOptions(modes=("dense", "all"), n=4, first_rank=2, last_rank=9, margin=0.05, seed=3)
        mine_negatives(encoder, store, data, tmp_path / "expected.jsonl", options)
    out = tmp_path / "out.jsonl"
    line = ["mine", str(data), "--out", str(out), "--store", str(tmp_path / "store"), "--model", str(small), "-n", "4",
            "--modes", "dense,all", "--ranks", "2-9", "--margin", "0.05", "--seed", "3", "--device", "cpu"]  # fmt: skip
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    assert sum(len(row["neg"]) for row in read(out)) > 0


def test_the_command_refuses_what_it_cannot_do_in_one_line(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "p.jsonl")
    out = str(tmp_path / "o.jsonl")
    for arguments, said in (
        ([str(tmp_path / "absent"), "--out", out], "no file"),
        ([str(data), "--out", out, "--ranks", "ten"], "--ranks must be two numbers such as 10-100, got 'ten'"),
        ([str(data), "--out", out, "--modes", "sparse"], "modes must be some of dense"),
        ([str(data), "--out", out, "--store", str(tmp_path / "typo")], "no store at"),
        ([str(data), "--out", out, "--corpus", str(data), "--store", "x"], "both name the passages: leave one out"),
        ([str(data), "--out", out, "--margin", "2"], "margin must be a share from 0 to 1, such as 0.05, got 2"),
        ([str(data), "--out", out, "--collection", "c"], "--collection is for a store on a server"),
        ([str(data), "--out", out, "--store", "x", "--work", "w"], "--work is for the vectors of a corpus"),
        ([str(data), "--out", out, "--cross-encoder", str(tmp_path)], "holds no cross-encoder that can be loaded"),
    ):
        result = CliRunner().invoke(app, ["mine", *arguments])
        assert result.exit_code == 1, result.output
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl"]


def test_another_models_store_is_refused_before_a_run_begins(tmp_path: Path, small: Path) -> None:
    data, out = write_pairs(tmp_path / "p.jsonl"), tmp_path / "o.jsonl"
    with M3Encoder(small, device="cpu") as encoder, open_store(tmp_path / "store") as store:
        index_passages(encoder, store, PASSAGES)
    line = ["mine", str(data), "--out", str(out), "--store", str(tmp_path / "store"), "--ranks", "1-9", "-n", "2"]
    wrong = CliRunner().invoke(app, [*line, "--model", "tiny", "--device", "cpu"])
    assert wrong.exit_code == 1
    right = CliRunner().invoke(app, [*line, "--model", str(small), "--device", "cpu"])
    assert right.exit_code == 0, right.output


def test_an_empty_file_of_examples_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"there are no examples in .*empty\.jsonl"):
        mine_negatives(FakeEncoder(), open_store(), tmp_path / "empty.jsonl", tmp_path / "out.jsonl")
