"""`m3 eval`: what it prints and what it writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from m3_integrations import M3Encoder, ModeWeights, evaluation
from m3_integrations.cli import app
from m3_integrations.cli.evaluation import parse_weights
from m3_integrations.evaluation import COLUMNS, Dataset, EvaluationResult, report
from m3_integrations.evaluation.statistics import compare_paired
from tests.evaluation.worlds import write_beir, write_jsonl, write_world


@dataclass(frozen=True)
class Evaluated:
    """What a run of the command printed, where it wrote, and what it had computed."""

    printed: str
    out: Path
    results: list[EvaluationResult]


@pytest.fixture(scope="module")
def evaluated(small: Path, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Two models on two datasets, with tuning."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name, queries in (("one", 6), ("two", 9)):
        write_world(folder / "data" / name, documents=40, queries=queries)
    computed: list[EvaluationResult] = []
    write_report = report.write_report

    def write(results: Sequence[EvaluationResult], *args: Any, **kwargs: Any) -> None:
        computed.extend(results)
        write_report(results, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", write)
        models = ["--model", str(small), "--model", str(wide)]
        options = "--modes dense,all,bm25 --weights mldr --rerank-depth 20 --pool-size 10 --tune --max-length 64"
        paths = [str(folder / "data"), "--out", str(folder / "out"), "--device", "cpu"]
        result = CliRunner().invoke(app, ["eval", *paths, *models, *options.split()])
    assert result.exit_code == 0, result.output
    return Evaluated(result.stdout, folder / "out", computed)


def test_the_command_prints_and_writes_the_same_numbers(evaluated: Evaluated) -> None:
    assert [(Path(r.model).name, r.dataset.name) for r in evaluated.results] == [
        ("small", "one"), ("small", "two"), ("wide", "one"), ("wide", "two"),
    ]  # fmt: skip
    document = json.loads((evaluated.out / "results.json").read_text())
    table = (evaluated.out / "tables.md").read_text()
    for result, written in zip(evaluated.results, document["results"], strict=True):
        assert written["queries"] == list(result.dataset.queries)
        assert written["weights"] == {"all": {"dense": 0.15, "lexical": 0.5, "multi_vector": 0.35}}
        for column in result.columns:
            estimate = result.estimate(column, "nDCG@10")
            assert written["modes"][column]["nDCG@10"]["mean"] == estimate.mean
            assert written["modes"][column]["MAP"]["per_query"] == pytest.approx(result.values[column]["MAP"], abs=1e-6)
            cell = f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
            assert cell in table
            assert f"{estimate.mean:.3f}" in evaluated.printed
    assert "two: 9 queries with judgements, 40 documents" in evaluated.printed
    assert (evaluated.out / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_modes_and_models_are_compared_in_pairs(evaluated: Evaluated) -> None:
    table = (evaluated.out / "tables.md").read_text()
    small, wide = evaluated.results[0], evaluated.results[2]
    for heading, row, better, worse in (
        ("small on one: nDCG@10, less that of dense", "all", small.values["all"], small.values["dense"]),
        ("wide on one: nDCG@10, less that of dense", "bm25", wide.values["bm25"], wide.values["dense"]),
        ("one: nDCG@10, wide less small", "dense", wide.values["dense"], small.values["dense"]),
    ):
        found = compare_paired(better["nDCG@10"], worse["nDCG@10"])
        part = table.split(f"## {heading}\n")[1].split("\n## ")[0]
        difference = found.difference
        interval = f"[{difference.low:+.3f}, {difference.high:+.3f}]"
        assert f"| {row} | {difference.mean:+.3f} | {interval} | {found.p_value:.4f} |" in part


def test_tuned_weights_stand_beside_the_presets(evaluated: Evaluated) -> None:
    document = json.loads((evaluated.out / "results.json").read_text())
    assert [(found["dataset"], Path(found["model"]).name) for found in document["tuned"]] == [
        ("one", "small"), ("two", "small"), ("one", "wide"), ("two", "wide"),
    ]  # fmt: skip
    tuned = document["tuned"][0]
    assert set(tuned["values"]) == {"tuned", "equal", "miracl", "mldr", "mldr_dense_lexical", "readme"}
    assert not set(tuned["found_on"]) & set(tuned["reported_on"])
    row = f"| equal | 1 / 1 / 1 | {tuned['values']['equal']['mean']:.3f} [{tuned['values']['equal']['low']:.3f}"
    assert row in (evaluated.out / "tables.md").read_text()


def test_every_ranking_is_written_as_a_run_file(evaluated: Evaluated) -> None:
    runs = evaluated.out / "runs"
    files = sorted(str(path.relative_to(runs)) for path in runs.rglob("*.trec"))
    assert files == [
        f"{m}/{d}/{c}.trec" for m in ("small", "wide") for d in ("one", "two") for c in ("all", "bm25", "dense")
    ]
    first = (runs / "small" / "one" / "all.trec").read_text().splitlines()[0].split()
    dataset = evaluated.results[0].dataset
    best = dataset.corpus.ids[evaluated.results[0].rankings["all"][0].rows[0]]
    assert [first[0], first[2], first[3], first[5]] == ["q0", best, "1", "all"]


def test_weights_are_read_as_they_are_typed() -> None:
    assert parse_weights(["mldr"]) == {"dense+lexical": "mldr", "all": "mldr", "search:all": "mldr"}
    assert parse_weights(["equal", "all=1,0.3,2", "dense+lexical=mldr_dense_lexical"]) == {
        "dense+lexical": "mldr_dense_lexical",
        "all": ModeWeights(1, 0.3, 2),
        "search:all": "equal",
    }
    with pytest.raises(ValueError, match="three numbers"):
        parse_weights(["all=1,2"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["NOWHERE"], "corpus.jsonl"),
        (["DATA", "--modes", "dense,sparse"], "modes must be one or more of"),
        (["DATA", "--baseline", "sparse"], "modes must be one or more of"),
        (
            ["DATA", "--baseline", "all", "--modes", "dense,bm25"],
            "--baseline all is for all, but only dense, bm25 would",
        ),
        (
            ["DATA", "--model", "DENSE", "--baseline", "lexical"],
            "--baseline lexical is for lexical, but only dense, bm25",
        ),
        (["DATA", "--weights", "all=best"], "unknown weights 'best'"),
        (["DATA", "--weights", "all=mldr", "--modes", "dense"], "--weights all=mldr is for all, but only dense would"),
        (["DATA", "--weights", "mldr", "--modes", "bm25"], "is for all or dense+lexical or search:all, but only bm25"),
        (["DATA", "--metrics", "nDCG@10,Recall"], "cannot compute 'Recall'"),
        (["GRADES", "--metrics", "MAP,ERR@5"], "ERR@5 is for gains of at most 4, and query 'q' has the gain 7 for 'a'"),
        (["DATA", "--metrics", "nDCG(gains={1:5},judged_only=True)@10,R"], "cannot compute 'R'"),
        (["DATA", "--model", "NOWHERE"], "no checkpoint folder"),
        (["DATA", "--model", "tiny", "--model", "NOWHERE"], "no checkpoint folder"),
        (["DATA", "--model", "tiny", "--model", "DENSE", "--modes", "all"], "has no heads for lexical"),
        (["DATA", "--model", "DENSE", "--tune"], "has no heads for lexical"),
        (["DATA", "--queries-from", "QUESTIONS", "--tune"], "questions→data has answers instead"),
        (["DATA", "--queries-from", "QUESTIONS", "--metrics", "nDCG@10"], "only Success@k can be measured"),
        (["ONE", "--tune"], "two halves need two different queries"),
        (["SPACES"], "cannot hold the id 'd 1' of spaces"),
        (["ALIKE"], "two data sets, 'a b' and 'a-b', would be in one folder, 'a-b': rename one"),
        (["DATA", "--model", "M 1", "--model", "M-1"], "two models, 'm 1' and 'm-1', would be in one folder, 'm-1'"),
        (["DATA", "--out", "FILE"], "questions.jsonl exists and is a file: name a folder"),
    ],
)
def test_errors_are_one_line_and_an_exit_status_before_anything_is_encoded(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.setattr(M3Encoder, "encode_batches", None)
    answered = [{"id": i, "question": f"question {i}", "answers": ["word"]} for i in range(4)]
    write_jsonl(tmp_path / "questions.jsonl", answered)
    places = {
        "DATA": write_world(tmp_path / "data"),
        "NOWHERE": tmp_path / "nowhere",
        "QUESTIONS": tmp_path / "questions.jsonl",
        "ONE": write_world(tmp_path / "one", queries=1),
        "SPACES": write_beir(tmp_path / "spaces", {"d 1": "x"}, {"q": "y"}, {"q": {"d 1": 1}}),
        "GRADES": write_beir(tmp_path / "grades", {"a": "x"}, {"q": "y"}, {"q": {"a": 7}}),
        "DENSE": without_heads(small, tmp_path / "dense"),
        "FILE": tmp_path / "questions.jsonl",
        "ALIKE": tmp_path / "alike",
        "M 1": tmp_path / "m 1",
        "M-1": tmp_path / "m-1",
    }
    for name in ("a b", "a-b"):
        write_world(tmp_path / "alike" / name)
    for name in ("m 1", "m-1"):
        shutil.copytree(small, tmp_path / name)
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    model = [] if "--model" in arguments else ["--model", "tiny"]
    result = CliRunner().invoke(app, ["eval", *arguments, *model, *out, "--device", "cpu"])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stdout.splitlines()
    assert line.startswith("error: ")
    assert text in line


def test_judged_documents_that_are_absent_are_warned_of_in_one_line(small: Path, tmp_path: Path) -> None:
    texts = {"a": "rotate the keys", "b": "make tea"}
    data = write_beir(tmp_path / "data", texts, {"q": "keys"}, {"q": {"a": 1, "gone": 1}})
    code = "from m3_integrations.cli import app; app()"
    options = ["--model", str(small), "--modes", "dense", "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", str(data), *options], capture_output=True, text=True, check=True
    )
    (line,) = [line for line in done.stderr.splitlines() if "judged" in line]
    assert line == f"warning: 1 of 2 judged documents are not in {data / 'corpus.jsonl'} and count as not found"


def test_data_sets_that_are_links_have_the_links_names_and_a_folder_of_two_names_is_one_model(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, name in enumerate(("one", "two"), start=1):
        source = write_world(tmp_path / "versions" / name / "1.0", documents=9, queries=i)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(source)
    shutil.copytree(small, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    models = ["--model", "model", "--model", "./model", "--modes", "dense"]
    result = CliRunner().invoke(
        app, ["eval", str(tmp_path / "data"), *models, "--out", str(tmp_path / "out"), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [(each["dataset"], len(each["queries"])) for each in written] == [("one", 1), ("two", 2)]
    runs = {path.parent.name: path.read_text() for path in (tmp_path / "out" / "runs").rglob("dense.trec")}
    assert {name: len({line.split()[0] for line in run.splitlines()}) for name, run in runs.items()} == {
        "one": 1,
        "two": 2,
    }


def test_a_report_of_two_data_sets_of_one_name_is_refused(evaluated: Evaluated, tmp_path: Path) -> None:
    one = evaluated.results[0]
    with pytest.raises(ValueError, match="run files of two data sets, 'one' and 'one', would be in one folder, 'one'"):
        report.write_report([one, one], tmp_path / "out", tables=[], verdicts=[], baseline="dense")
    assert not (tmp_path / "out").exists()


def without_heads(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*_linear.pt"))
    return folder


def test_models_with_and_without_heads_are_compared_in_what_both_can_do(small: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "data", documents=9, queries=3)
    models = ["--model", str(small), "--model", str(without_heads(small, tmp_path / "dense")), "--model", str(small)]
    paths = [str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, ["eval", *paths, *models])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [(Path(each["model"]).name, list(each["modes"])) for each in written] == [
        ("small", ["dense", "bm25", "bm25:words"]),
        ("dense", ["dense", "bm25", "bm25:words"]),
    ]


def test_what_was_measured_before_a_later_dataset_failed_is_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        write_world(tmp_path / "data" / name, documents=9, queries=3)
    tune_weights = evaluation.tune_weights

    def fail(encoder: Any, dataset: Dataset, **kwargs: Any) -> Any:
        if dataset.name == "two":
            raise OSError("the disk is full")
        return tune_weights(encoder, dataset, **kwargs)

    monkeypatch.setattr(evaluation, "tune_weights", fail)
    arguments = ["eval", str(tmp_path / "data"), "--model", str(small), "--tune", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "error: the disk is full")
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [each["dataset"] for each in written["results"]] == ["one", "two"]
    assert [each["dataset"] for each in written["tuned"]] == ["one"]
    assert written["results"][1]["modes"]["dense"]["nDCG@10"]["per_query"]


def test_the_readmes_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Path(evaluation.__file__).with_name("README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    for language in ("de", "en"):
        write_world(tmp_path / "DATA" / language, documents=12, queries=4)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["result"].dataset.name == "en→de"
    assert names["result"].columns == COLUMNS
