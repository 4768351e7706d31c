"""`m3 eval`: what it prints and what it writes."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import m3_integrations.evaluation
from m3_integrations import ModeWeights
from m3_integrations.cli.evaluation import EvaluationRequest, parse_weights, run_evaluation
from m3_integrations.evaluation import COLUMNS, EvaluationResult
from m3_integrations.evaluation.statistics import compare_paired
from tests.evaluation.worlds import write_world


@pytest.fixture
def request_(tmp_path: Path, small: Path, wide: Path) -> EvaluationRequest:
    for name, queries in (("one", 6), ("two", 9)):
        write_world(tmp_path / "data" / name, documents=40, queries=queries)
    return EvaluationRequest(
        data=tmp_path / "data", models=[str(small), str(wide)], out=tmp_path / "out", work=None,
        modes=["dense", "all", "bm25"], metrics=[], weights=["mldr"],
        queries_from=None, split=None, titles=True, baseline="dense", rerank_depth=20, pool_size=10,
        encode_candidates=False, tune=True, max_length=64, device="cpu",
    )  # fmt: skip


def run(request: EvaluationRequest) -> tuple[str, list[EvaluationResult]]:
    console = Console(width=250, record=True, file=io.StringIO())
    results = run_evaluation(request, console)
    return console.export_text(), results


def test_the_command_prints_and_writes_the_same_numbers(request_: EvaluationRequest) -> None:
    printed, results = run(request_)
    assert [(Path(r.model).name, r.dataset.name) for r in results] == [
        ("small", "one"), ("small", "two"), ("wide", "one"), ("wide", "two"),
    ]  # fmt: skip
    document = json.loads((request_.out / "results.json").read_text())
    table = (request_.out / "tables.md").read_text()
    for result, written in zip(results, document["results"], strict=True):
        assert written["queries"] == list(result.dataset.queries)
        assert written["weights"] == {"all": {"dense": 0.15, "lexical": 0.5, "multi_vector": 0.35}}
        for column in result.columns:
            estimate = result.estimate(column, "nDCG@10")
            assert written["modes"][column]["nDCG@10"]["mean"] == estimate.mean
            assert written["modes"][column]["MAP"]["per_query"] == pytest.approx(result.values[column]["MAP"], abs=1e-6)
            cell = f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
            assert cell in table
            assert f"{estimate.mean:.3f}" in printed
    assert "two: 9 queries with judgements, 40 documents" in printed
    assert (request_.out / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_modes_and_models_are_compared_in_pairs(request_: EvaluationRequest) -> None:
    _, results = run(request_)
    table = (request_.out / "tables.md").read_text()
    small, wide = results[0], results[2]
    for better, worse in (
        (small.values["all"], small.values["dense"]),
        (wide.values["bm25"], wide.values["dense"]),
        (small.values["dense"], wide.values["dense"]),
    ):
        found = compare_paired(better["nDCG@10"], worse["nDCG@10"])
        difference = found.difference
        cell = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] p={found.p_value:.4f}"
        assert cell in table
    assert "## small: nDCG@10, less that of dense" in table
    assert "## nDCG@10, small less wide" in table


def test_tuned_weights_stand_beside_the_presets(request_: EvaluationRequest) -> None:
    run(request_)
    document = json.loads((request_.out / "results.json").read_text())
    assert [(found["dataset"], Path(found["model"]).name) for found in document["tuned"]] == [
        ("one", "small"), ("two", "small"), ("one", "wide"), ("two", "wide"),
    ]  # fmt: skip
    tuned = document["tuned"][0]
    assert set(tuned["values"]) == {"tuned", "equal", "miracl", "mldr", "mldr_dense_lexical", "readme"}
    assert not set(tuned["found_on"]) & set(tuned["reported_on"])
    row = f"| {tuned['values']['equal']['mean']:.3f} [{tuned['values']['equal']['low']:.3f}"
    assert row in (request_.out / "tables.md").read_text()


def test_every_ranking_is_written_as_a_run_file(request_: EvaluationRequest) -> None:
    _, results = run(replace(request_, tune=False))
    files = sorted(str(path.relative_to(request_.out / "runs")) for path in (request_.out / "runs").rglob("*.trec"))
    assert files == [
        f"{m}/{d}/{c}.trec" for m in ("small", "wide") for d in ("one", "two") for c in ("all", "bm25", "dense")
    ]
    first = (request_.out / "runs/small/one/all.trec").read_text().splitlines()[0].split()
    best = results[0].dataset.corpus.ids[results[0].rankings["all"][0].rows[0]]
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


def test_errors_of_the_command_are_one_line_and_an_exit_status(tmp_path: Path) -> None:
    m3 = Path(sys.executable).parent / "m3"
    data = write_world(tmp_path / "data")
    for arguments, text in (
        ([str(tmp_path / "nowhere")], "corpus.jsonl"),
        ([str(data), "--modes", "dense,sparse"], "modes must be one or more of"),
        ([str(data), "--weights", "all=best"], "unknown weights 'best'"),
        ([str(data), "--model", str(tmp_path / "nowhere")], "no checkpoint folder"),
    ):
        result = subprocess.run(
            [str(m3), "eval", *arguments, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
        )
        assert result.returncode == 1, result.stderr
        assert text in result.stdout + result.stderr
        assert "Traceback" not in result.stdout + result.stderr


def test_the_readmes_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Path(m3_integrations.evaluation.__file__).with_name("README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    for language in ("de", "en"):
        write_world(tmp_path / "DATA" / language, documents=12, queries=4)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["result"].dataset.name == "en→de"
    assert names["result"].columns == COLUMNS
