"""`m3 diff`: which questions win or lose, and the token that decided, on vectors that are worked by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from m3_integrations import M3Encoder, ModeWeights, Searcher, SearchOptions, open_store
from m3_integrations.cli import app
from m3_integrations.cli.diff import print_diff, read_way
from m3_integrations.evaluation import JudgedQueries, diff_searches, evaluate, read_dataset, read_queries
from m3_integrations.evaluation.diff import score_parts
from m3_integrations.vectors import Kind, M3Vectors
from tests.evaluation.test_xquad import XQUAD
from tests.evaluation.worlds import write_beir
from tests.fakes import FakeEncoder, lexical_of_tokens

WORDS = ["alpha", "beta", "gamma", "delta"]
TEXTS = {"d1": "alpha beta", "d2": "alpha gamma", "d3": "delta"}
QUERY = "alpha beta gamma"
LEXICAL = SearchOptions(weights=ModeWeights(0, 1, 0))


class Weighted(FakeEncoder):
    """Every word has a weight of its own in the lexical mode, wherever it stands."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.word_weights = weights

    def _vectors(self, texts: Sequence[str], kind: Kind) -> M3Vectors:
        random = super()._vectors(texts, kind)
        words = [(row, word) for row, text in enumerate(texts) for word in text.split()]
        lexical = lexical_of_tokens(
            np.array([row for row, _ in words]),
            np.array([WORDS.index(word) for _, word in words]),
            np.array([self.word_weights[word] for _, word in words], np.float32),
            len(texts),
            WORDS,
        )
        return M3Vectors(dense=random.dense, lexical=lexical, multi_vector=random.multi_vector)


def searcher(gamma: float, texts: Mapping[str, str] = TEXTS, options: SearchOptions = LEXICAL) -> Searcher:
    made = Searcher(Weighted({"alpha": 1, "beta": 1, "gamma": gamma, "delta": 1}), open_store(), options)
    made.add(texts.values(), ids=texts)
    return made


def test_a_question_that_lost_is_told_with_the_token_that_decided() -> None:
    """d1 has 1 + 1. d2 has 1 + 0.25 with gamma 0.5, and 1 + 4 with gamma 2: its lead grows by 3.75."""
    questions = JudgedQueries({"q1": QUERY, "q2": "delta"}, {"q1": {"d1": 1, "d3": 0}, "q2": {"d3": 1}}, 0)
    found = diff_searches(searcher(0.5), searcher(2), questions)
    assert found.questions == ["q1", "q2"]
    assert found.old.tolist() == [1, 1]
    assert found.new == pytest.approx([1 / np.log2(3), 1])
    (lost,) = found.lost
    assert (lost.id, lost.text, lost.document, lost.old_rank, lost.new_rank) == ("q1", QUERY, "d1", 1, 2)
    assert lost.decision is not None
    assert (lost.decision.rival, lost.decision.token) == ("d2", "gamma")
    assert lost.decision.amount == pytest.approx(-3.75)
    assert lost.decision.by_mode == pytest.approx({"dense": 0, "lexical": -3.75, "multi_vector": 0}, abs=1e-6)
    assert found.won == []
    back = diff_searches(searcher(2), searcher(0.5), questions)
    (won,) = back.won
    assert (won.old_rank, won.new_rank) == (2, 1)
    assert won.decision is not None
    assert (won.decision.rival, won.decision.token) == ("d2", "gamma")
    assert won.decision.amount == pytest.approx(3.75)
    assert back.compare().difference.mean == pytest.approx(-found.compare().difference.mean)
    assert diff_searches(searcher(2), searcher(0.5), questions, explained=0).won[0].decision is None


def test_a_document_that_one_store_lacks_is_told_without_a_reason() -> None:
    questions = JudgedQueries({"q1": QUERY}, {"q1": {"d1": 1}}, 0)
    found = diff_searches(searcher(0.5), searcher(0.5, {"d2": TEXTS["d2"]}), questions)
    (lost,) = found.lost
    assert (lost.new, lost.old_rank, lost.new_rank, lost.decision) == (0, 1, None, None)


def test_parts_of_files_are_the_documents_that_are_judged() -> None:
    """In the first store beta's part is first (1 + 1 of d1), in the second gamma's (1 + 4 of d2)."""
    parts = {"c.jsonl#d1#0": "alpha beta", "c.jsonl#d1#1": "delta", "c.jsonl#d2#0": "alpha gamma"}

    def indexed(gamma: float) -> Searcher:
        made = Searcher(Weighted({"alpha": 1, "beta": 1, "gamma": gamma, "delta": 1}), open_store(), LEXICAL)
        made.add(parts.values(), ids=parts, metadatas=[{"m3_file": "c.jsonl"}] * len(parts))
        return made

    questions = JudgedQueries({"q1": QUERY}, {"q1": {"d1": 1, "d2": 0}}, 0)
    (changed,) = diff_searches(indexed(0.5), indexed(2), questions).lost
    assert (changed.document, changed.old_rank, changed.new_rank) == ("d1", 1, 2)
    assert changed.decision is not None
    assert (changed.decision.rival, changed.decision.token) == ("d2", "gamma")
    assert changed.decision.amount == pytest.approx(-3.75)


def test_a_judged_name_of_several_files_is_warned_of_and_other_entries_are_kept_apart() -> None:
    """Three entries "line 1" rank before d3: as one document they would put it on place 2."""
    texts = {"a.jsonl#line 1#0": "alpha beta", "b.jsonl#line 1#0": "alpha beta", "c.jsonl#line 1#0": "alpha beta",
             "a.jsonl#d3#0": "alpha", "b.jsonl#d3#0": "delta", "a.jsonl#d4#0": "delta"}  # fmt: skip
    made = Searcher(Weighted({"alpha": 1, "beta": 1, "gamma": 1, "delta": 1}), open_store(), LEXICAL)
    made.add(texts.values(), ids=texts, metadatas=[{"m3_file": id_.partition("#")[0]} for id_ in texts])
    questions = JudgedQueries({"q1": QUERY}, {"q1": {"d3": 1}}, 0)
    said = r"'d3' stands for records of 2 files, such as 'a\.jsonl#d3#0' and 'b\.jsonl#d3#0', .*: name the full ids"
    with pytest.warns(UserWarning, match=said):
        found = diff_searches(made, made, questions)
    assert found.old == pytest.approx([1 / np.log2(5)])
    full = JudgedQueries({"q1": QUERY}, {"q1": {"a.jsonl#d3#0": 1}}, 0)
    assert diff_searches(made, made, full).old == pytest.approx([1 / np.log2(5)])  # without a warning


def test_judgements_that_name_no_record_are_an_error() -> None:
    questions = JudgedQueries({"q1": QUERY}, {"q1": {"p1": 1}}, 0)
    with pytest.raises(ValueError, match="qrels must name records of the store, such as 'd1'"):
        diff_searches(searcher(0.5), searcher(0.4), questions)


@pytest.mark.parametrize("mode", ["all", "dense", "lexical", "dense+lexical", "multi_vector"])
def test_what_tokens_add_sums_up_to_the_score(mode: Any) -> None:
    options = SearchOptions(mode=mode, weights="miracl", k=9)
    with searcher(0.7, options=options) as made:
        hits = made.search(QUERY)
        assert hits
        for hit in hits:
            parts = score_parts(made.explain(QUERY, hit.id), options)
            assert sum(parts.values()) == pytest.approx(hit.score, abs=1e-5)
        decided = diff_searches(made, searcher(2, options=LEXICAL), JudgedQueries({"q": QUERY}, {"q": {"d1": 1}}, 0))
        assert all(each.decision is not None for each in decided.changed if each.new_rank != each.old_rank)


@pytest.mark.parametrize(
    ("text", "model", "settings"),
    [
        ("tiny", "tiny", {}),
        ("tiny,weights=1/0.3/1,mode=all", "tiny", {"weights": "1/0.3/1", "mode": "all"}),
        ("http://h:1,store=./idx", "http://h:1", {"store": "./idx"}),
    ],
)
def test_a_way_to_search_is_read(text: str, model: str, settings: dict[str, str]) -> None:
    way = read_way(text)
    assert (way.model, way.settings) == (model, settings)


@pytest.mark.parametrize("text", ["", ",mode=all", "tiny,mode", "tiny,k=3", "tiny,mode=all,mode=dense", "tiny,"])
def test_what_is_no_way_to_search_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a way to search is a model with settings after it.*got"):
        read_way(text)


def test_settings_that_cannot_be_are_refused_before_anything_is_opened(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3_integrations.cli.diff.open_model", None)
    for b, said in (
        ("tiny,store=./x,multi_vector=none", "an existing store has its own multi_vector"),
        ("tiny,token_pooling=two", "token_pooling must be a whole number, got 'two'"),
        ("tiny,mode=sparse", "mode must be one of"),
        ("tiny,weights=best", "unknown weights 'best'"),
        ("tiny,weights=1/2", "weights must be three numbers, dense/lexical/multi-vector, got '1/2'"),
        ("tiny,weights=1/x/2", "weights must be three numbers, dense/lexical/multi-vector, got '1/x/2'"),
    ):
        result = CliRunner().invoke(app, ["diff", "tiny", b, str(data)])
        assert (result.exit_code, said in result.stderr) == (1, True), result.output
    result = CliRunner().invoke(app, ["diff", "tiny", "tiny", str(data), "--metric", "Best"])
    assert (result.exit_code, "unknown metric 'Best'" in result.stderr) == (1, True), result.output


def test_a_mistake_in_the_second_way_is_told_before_a_corpus_is_encoded_for_the_first(
    data: Path, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with M3Encoder(small, device="cpu") as encoder, open_store(tmp_path / "other") as opened:
        Searcher(encoder, opened).add(["Keys."], ids=["a"])
    monkeypatch.setattr(Searcher, "add", None)
    for setting, said in (
        (f"store={tmp_path / 'absent'}", "no store at"),
        (f"store={tmp_path / 'other'}", "this store holds vectors of the model"),
        ("dtype=int3", "dtype must be"),
        ("token_pooling=0", "token_pooling must be a whole number of 1 or more, got 0"),
        ("multi_vector=turbo3", "multi_vector must be one of"),
        ("multi_vector=none,mode=multi_vector", "multi_vector"),
    ):
        result = CliRunner().invoke(app, ["diff", "tiny", f"tiny,{setting}", str(data), "--device", "cpu"])
        assert (result.exit_code, said in result.stderr) == (1, True), result.output
        assert "encoding the corpus" not in result.stderr


def test_a_question_without_a_relevant_document_changes_by_a_metric_of_judged_ones() -> None:
    questions = JudgedQueries({"q1": QUERY, "q2": "delta"}, {"q1": {"d2": 0}, "q2": {"d3": 1}}, 0)
    found = diff_searches(searcher(0.5), searcher(2), questions, metric="Judged@1")
    (won,) = found.won  # d2 is the first with gamma 2
    assert (won.id, won.old, won.new) == ("q1", 0, 1)
    assert (won.document, won.old_rank, won.new_rank, won.decision) == (None, None, None, None)
    console = Console(width=80)
    with console.capture() as capture:
        print_diff(found, "a", "b", 5, console)
    assert capture.get().splitlines()[0] == f"won  +1.000  q1: {QUERY}"
    assert capture.get().splitlines()[1].startswith("Judged@1 0.500 with a, 1.000 with b: +0.500 [")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    texts = {"a": "Keys are replaced once a year.", "b": "Backups run at night.", "c": "The museum is closed.",
             "d": "Trains leave at noon.", "e": "Tea is served cold."}  # fmt: skip
    questions = {"1": "when do backups run?", "2": "is the museum closed?", "3": "when do trains leave?",
                 "4": "how is tea served?", "5": "how often are keys replaced?"}  # fmt: skip
    right = dict(zip(questions, ("b", "c", "d", "e", "a"), strict=True))
    return write_beir(tmp_path / "data", texts, questions, {q: {d: 1} for q, d in right.items()})


def test_the_exit_status_says_whether_b_is_worse(data: Path, small: Path) -> None:
    """`small` has random weights."""
    common = [str(data), "--device", "cpu", "--json"]
    worse = CliRunner().invoke(app, ["diff", "tiny", str(small), *common, "--max-loss", "0.05"])
    assert worse.exit_code == 3, worse.output
    document = json.loads(worse.stdout)
    assert document["is_worse"]
    loss = document["mean_a"] - document["mean_b"]
    assert loss > 0.05
    assert document["b_less_a"]["difference"]["mean"] == pytest.approx(-loss)
    for each in document["changed"]:
        with M3Encoder("tiny", device="cpu") as encoder, Searcher(encoder, open_store()) as made:
            dataset = read_dataset(data)
            made.add(list(dataset.corpus.texts()), ids=dataset.corpus.ids)
            ranked = [hit.id for hit in made.search(each["text"], k=10)]
        assert ranked.index(each["document"]) + 1 == each["old_rank"]
    allowed = CliRunner().invoke(app, ["diff", "tiny", str(small), *common, "--max-loss", "1"])
    assert allowed.exit_code == 0, allowed.output
    better = CliRunner().invoke(app, ["diff", str(small), "tiny", *common, "--max-loss", "0"])
    assert better.exit_code == 0, better.output


def test_stores_and_storages_are_compared_without_a_corpus(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with M3Encoder("tiny", device="cpu") as encoder, open_store(tmp_path / "store") as opened:
        dataset = read_dataset(data)
        Searcher(encoder, opened).add(list(dataset.corpus.texts()), ids=dataset.corpus.ids)
    pooled = CliRunner().invoke(app, ["diff", "tiny", "tiny,token_pooling=2,multi_vector=turbo8", str(data)])
    assert pooled.exit_code == 0, pooled.output
    (data / "corpus.jsonl").unlink()
    place = f"store={tmp_path / 'store'}"
    for setting in ("mode=dense", "dtype=bfloat16"):  # one folder, opened once
        same = CliRunner().invoke(app, ["diff", f"tiny,{place}", f"tiny,{place},{setting}", str(data)])
        assert same.exit_code == 0, same.output
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("store")
    for store in ("store", "./store/", "link"):  # the same folder, and still opened once
        alike = CliRunner().invoke(app, ["diff", f"tiny,{place}", f"tiny,store={store},mode=dense", str(data)])
        assert alike.exit_code == 0, alike.output
    assert read_queries(data).texts["1"] == "when do backups run?"
    for arguments, said in (
        (["tiny", f"tiny,{place}"], "corpus.jsonl is not there"),
        ([f"tiny,{place}", f"tiny,store={tmp_path / 'absent'}"], "no store at"),
        ([f"tiny,{place}", "tiny,k=2"], "a way to search is a model"),
    ):
        wrong = CliRunner().invoke(app, ["diff", *arguments, str(data)])
        assert (wrong.exit_code, said in wrong.stderr) == (1, True), wrong.output


@pytest.mark.slow
@pytest.mark.skipif(not XQUAD.is_dir(), reason=f"XQuAD in BEIR's layout is not at {XQUAD}")
@pytest.mark.filterwarnings("ignore:.*longer than")
def test_on_xquad_both_sides_have_the_values_of_evaluation(tmp_path: Path) -> None:
    """The same questions, by `Searcher` over a store and by evaluation's own ranking of the corpus."""
    dataset = read_dataset(XQUAD / "en", titles=False)
    with M3Encoder("tiny", device="cpu") as encoder, open_store() as store:
        Searcher(encoder, store).add(list(dataset.corpus.texts()), ids=dataset.corpus.ids)
        sides = [Searcher(encoder, store, SearchOptions(weights=weights)) for weights in ("equal", "miracl")]
        found = diff_searches(sides[0], sides[1], read_queries(XQUAD / "en"), explained=5)
        for values, weights in ((found.old, "equal"), (found.new, "miracl")):
            expected = evaluate(
                encoder, dataset, modes=["search:all"], metrics=["nDCG@10"], weights={"search:all": weights},
                work=tmp_path,
            )  # fmt: skip
            assert np.abs(values - expected.values["search:all"]["nDCG@10"]).max() < 1e-6
    assert (len(found.won), len(found.lost)) == (19, 47)
    assert all(each.decision for each in found.changed[:5])
