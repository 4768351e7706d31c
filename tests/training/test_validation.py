"""A validation set during training: what is measured, which checkpoint is kept, when a run ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.evaluation import evaluate, read_dataset
from m3_integrations.training import run_training
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.trainer import find_last_checkpoint
from m3_integrations.training.validation import Validation
from tests.evaluation.worlds import write_beir
from tests.golden.texts import TEXTS
from tests.training.conftest import WriteConfig
from tests.training.test_run import log_of, weights_of
from tests.training.test_stages import differing, one_thread  # noqa: F401 - a fixture

COLUMNS = ("dense", "lexical", "multi_vector", "search:all")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    texts = {f"d{i}": text for i, text in enumerate(dict.fromkeys(text[:60] for text in TEXTS if text.strip()))}
    queries = {f"q{i}": text[10:30] for i, text in enumerate(texts.values()) if text[10:30].strip()}
    write_beir(tmp_path / "data", texts, queries, {query: {f"d{query[1:]}": 1} for query in queries})
    return tmp_path / "data"


def script(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the evaluations come out like this, one after another."""
    waiting = iter(values)

    def measured(self: Validation, network: object) -> Mapping[str, float]:
        value = next(waiting)
        return {column: value if column == "search:all" else 1 - value for column in COLUMNS}

    monkeypatch.setattr(Validation, "__call__", measured)


def evaluations_of(run: Path) -> dict[int, float]:
    return {int(line["step"]): line["eval_search:all"] for line in log_of(run) if "eval_dense" in line}


def test_what_is_measured_is_what_the_package_finds_for_the_checkpoint(
    write_config: WriteConfig, data: Path, small: Path, tmp_path: Path
) -> None:
    run_training(write_config(eval_data="data", eval_every=3, keep_checkpoints=9), show_progress=False)
    found = {line["step"]: line for line in log_of(tmp_path / "run") if "eval_dense" in line}
    assert sorted(found) == [0, 3, 6]
    for step, folder in ((0, small), (3, tmp_path / "run" / "checkpoint-3"), (6, tmp_path / "run" / "checkpoint-6")):
        with M3Encoder(folder, shared=False, device="cpu") as encoder:
            result = evaluate(encoder, read_dataset(data), modes=COLUMNS, metrics=["nDCG@10"])
        expected = [result.values[column]["nDCG@10"].mean() for column in result.columns]
        got = [found[step][f"eval_{column}"] for column in result.columns]
        np.testing.assert_allclose(got, expected, atol=1e-9)
        assert len(got) == 4
    assert (tmp_path / "run" / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_the_first_two_stages_measure_the_dense_mode_alone(
    write_config: WriteConfig, data: Path, tmp_path: Path
) -> None:
    for stage in ("retromae", "contrastive"):
        run_training(write_config(stage, stage=stage, eval_data="data", eval_every=3), show_progress=False)
        lines = [line for line in log_of(tmp_path / stage) if "eval_dense" in line]
        assert len(lines) == 3
        assert all([name for name in line if name.startswith("eval_")] == ["eval_dense"] for line in lines)


@pytest.mark.slow
def test_measuring_changes_nothing_that_is_trained(
    write_config: WriteConfig, data: Path, small: Path, tmp_path: Path
) -> None:
    run_training(write_config("without"), show_progress=False)
    run_training(write_config("with", eval_data="data", eval_every=1, keep_checkpoints=9), show_progress=False)
    for step in (3, 6):  # the small checkpoint has dropout
        assert differing(tmp_path / "without" / f"checkpoint-{step}", tmp_path / "with" / f"checkpoint-{step}") == []
    state = torch.random.get_rng_state()
    Validation(data, columns=COLUMNS, work=tmp_path, device="cpu", dtype="float32")(TrainingNetwork.load(small))
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize("best_by", ["auto", "lexical"])
def test_the_best_checkpoint_is_kept_and_is_the_result(
    best_by: str, write_config: WriteConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"auto": 4, "lexical": 2}[best_by]
    script(monkeypatch, [0.9, 0.4, 0.8, 0.8])  # before the first step does not count: it is no checkpoint of this run
    config = write_config(eval_data="data", eval_every=2, save_every=6, keep_checkpoints=2, best_by=best_by)
    final = run_training(config, show_progress=False)
    assert evaluations_of(tmp_path / "run") == {0: 0.9, 2: 0.4, 4: 0.8, 6: 0.8}
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-6"}
    assert differing(tmp_path / "run" / f"checkpoint-{best}", final) == []
    assert differing(tmp_path / "run" / "checkpoint-6", final) != []
    record = json.loads((final / "m3_training.json").read_text())
    assert record["stages"][0]["best_step"] == best
    assert f"| {best} (kept) |" in (final / "README.md").read_text()


def test_a_line_says_that_the_start_was_better_than_every_checkpoint(
    write_config: WriteConfig, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = (
        "unified: warning: No checkpoint was as good as the start: nDCG@10 of search:all is 0.8000 at step 4, and was "
        "0.9000 before the first step."
    )
    for name, start, is_said in (("worse", 0.9, True), ("as good", 0.8, False)):
        script(monkeypatch, [start, 0.4, 0.8, 0.8])
        final = run_training(write_config(name, eval_data="data", eval_every=2))
        assert (warning in capsys.readouterr().err.splitlines()) == is_said
        assert (warning.partition("warning: ")[2] in (final / "README.md").read_text()) == is_said


def test_a_run_ends_early_when_it_gets_no_better_and_also_when_it_was_killed_then(
    write_config: WriteConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(eval_data="data", eval_every=1, early_stop=2, steps=9, save_every=4)
    script(monkeypatch, [0.1, 0.5, 0.6, 0.6, 0.3])
    final = run_training(config, show_progress=False)
    assert evaluations_of(tmp_path / "run") == {0: 0.1, 1: 0.5, 2: 0.6, 3: 0.6, 4: 0.3}
    last = find_last_checkpoint(tmp_path / "run")
    assert last is not None
    assert last.name == "checkpoint-4"
    expected = weights_of(final)
    card = (final / "README.md").read_text()
    assert differing(tmp_path / "run" / "checkpoint-2", final) == []

    shutil.rmtree(final)  # as if it had been killed before it saved its result
    script(monkeypatch, [])
    got = weights_of(run_training(config, show_progress=False))
    assert [name for name in expected if not expected[name].equal(got[name])] == []
    assert (final / "README.md").read_text() == card


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_best_checkpoint_known(
    write_config: WriteConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"eval_data": "data", "eval_every": 1, "steps": 6, "save_every": 2, "keep_checkpoints": 1}
    script(monkeypatch, [0.1, 0.2, 0.7, 0.3, 0.4, 0.5, 0.6])
    whole = run_training(write_config("whole", **settings), show_progress=False)

    script(monkeypatch, [0.1, 0.2, 0.7, 0.3, 0.4])  # and then an error, as nothing is left
    config = write_config("killed", **settings)
    with pytest.raises(StopIteration):
        run_training(config, show_progress=False)
    script(monkeypatch, [0.5, 0.6])
    resumed = run_training(config, show_progress=False)
    assert evaluations_of(tmp_path / "killed") == evaluations_of(tmp_path / "whole")
    assert differing(whole, resumed) == []
    assert differing(tmp_path / "killed" / "checkpoint-2", resumed) == []


def test_a_run_does_not_go_on_with_another_validation_set(
    write_config: WriteConfig, data: Path, tmp_path: Path
) -> None:
    config = write_config(eval_data="data", eval_every=3)
    final = run_training(config, show_progress=False)
    shutil.rmtree(final)
    with (data / "queries.jsonl").open() as file:
        lines = file.readlines()
    (data / "queries.jsonl").write_text("".join([lines[0].replace('"text": "', '"text": "x'), *lines[1:]]))
    with pytest.raises(ValueError, match="was begun with another eval_data"):
        run_training(config, show_progress=False)
