"""The model card: what it says, and what it leaves alone."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from m3_integrations.training import run_training
from m3_integrations.training.card import describe_stage, extend_record, write_card
from tests.training.conftest import WriteConfig

HISTORY = [
    {"step": 0, "epoch": 0.0, "eval_dense": 0.25},
    {"step": 5, "epoch": 0.5, "loss": 3.0, "dense_loss": 2.0, "learning_rate": 0.1},
    {"step": 5, "epoch": 0.5, "eval_dense": 0.75},
    {"step": 10, "epoch": 1.0, "loss": 1.5, "dense_loss": 1.25, "learning_rate": 0.0},
    {"step": 10, "epoch": 1.0, "eval_dense": 0.5},
    {"step": 10, "epoch": 1.0, "train_runtime": 3.0},
]


def stage(name: str = "contrastive") -> dict[str, object]:
    return describe_stage(
        {"stage": name, "steps": 10, "batch_size": 7, "output_dir": Path("out"), "eval_data": Path("b/asked")},
        model="some/repository", data=[Path("a/pairs.jsonl")], examples=1234, history=HISTORY, best_by="dense",
        best_step=5,
    )  # fmt: skip


def test_the_card_tells_data_steps_settings_numbers_and_versions(tmp_path: Path) -> None:
    folder = tmp_path / "ours" / "contrastive" / "final"
    card = write_card(folder, extend_record(tmp_path, stage(), hub_name="some/repository"))
    assert card == folder / "README.md"
    read = ModelCard.load(card)
    assert read.data.base_model == "some/repository"
    assert read.data.library_name == "sentence-transformers"
    assert "sentence-similarity" in read.data.tags
    lines = card.read_text().splitlines()
    for line in (
        "# ours",
        "Data: `pairs.jsonl` (1,234 examples).",
        "10 steps, 1.00 epochs.",
        "At the end: dense loss 1.250, loss 1.500.",
        "nDCG@10 on `asked`, the validation set:",
        "| step | dense |",
        "| 0 | 0.2500 |",
        "| 5 (kept) | 0.7500 |",
        "| 10 | 0.5000 |",
        "| batch_size | `7` |",
    ):
        assert line in lines, line
    assert f"torch {version('torch')}" in card.read_text()
    assert "out" not in card.read_text().split()


def test_a_card_tells_that_the_start_was_better_than_what_was_kept(tmp_path: Path) -> None:
    sentence = (
        "**No checkpoint was as good as the start: nDCG@10 of dense is 0.7500 at step 5, and was 0.7600 before the "
        "first step.**"
    )
    for start, is_said in ((0.76, True), (0.75, False)):
        history = [{"step": 0, "epoch": 0.0, "eval_dense": start}, *HISTORY[1:]]
        described = describe_stage(
            {"stage": "contrastive", "eval_data": Path("asked")}, model="some/repository", data=[], examples=1,
            history=history, best_by="dense", best_step=5,
        )  # fmt: skip
        card = write_card(tmp_path / "final", extend_record(tmp_path, described, hub_name=None))
        assert (sentence in card.read_text().splitlines()) == is_said


def test_the_stages_of_an_earlier_version_are_in_the_card(tmp_path: Path) -> None:
    older = {name: value for name, value in stage("retromae").items() if name != "best_by"}
    card = write_card(tmp_path / "final", extend_record(tmp_path, older, hub_name=None))
    assert "| 5 (kept) | 0.7500 |" in card.read_text().splitlines()


def test_a_later_stage_tells_of_the_earlier_ones(tmp_path: Path) -> None:
    write_card(tmp_path / "first", extend_record(tmp_path, stage("retromae"), hub_name="some/repository"))
    record = extend_record(tmp_path / "first", stage("unified"), hub_name=None)
    card = write_card(tmp_path / "second", record)
    titles = [line for line in card.read_text().splitlines() if line.startswith("## ")]
    assert titles == ["## 1. RetroMAE pre-training", "## 2. Unified training of all three modes"]
    assert "Trained from `some/repository` in 2 stages" in card.read_text()
    assert [each["stage"] for each in record["stages"]] == ["retromae", "unified"]


def test_a_card_of_the_user_stays(
    tmp_path: Path, write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    (final / "README.md").write_text("mine")
    (final / "TRAINING.md").write_text("mine too")
    run_training(write_config(steps=1))
    assert (final / "README.md").read_text() == "mine"
    assert (final / "TRAINING.md").read_text() == "mine too"
    assert "## 1. Unified training" in (final / "TRAINING-2.md").read_text()
    said = f"unified: {final / 'README.md'} is not this command's and stays as it is; the card is {final}"
    assert said in capsys.readouterr().err


def test_a_card_of_this_command_is_written_anew_until_somebody_makes_it_theirs(tmp_path: Path) -> None:
    record = extend_record(tmp_path, stage(), hub_name=None)
    card = write_card(tmp_path / "final", record)
    card.write_text(card.read_text() + "a line from a killed run")
    assert write_card(tmp_path / "final", record) == card
    assert "killed" not in card.read_text()
    card.write_text("\n".join(line for line in card.read_text().splitlines() if not line.startswith("<!--")))
    assert write_card(tmp_path / "final", record) == tmp_path / "final" / "TRAINING.md"


def test_a_foreign_file_of_the_records_name_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "m3_training.json").write_text(json.dumps({"stages": [1, 2]}))
    assert extend_record(tmp_path, stage(), hub_name=None)["stages"] == [stage()]


def test_settings_of_the_loss_are_in_the_card(tmp_path: Path, write_config: WriteConfig) -> None:
    threads = torch.get_num_threads()
    config = write_config(steps=1)
    config.write_text(config.read_text() + "[loss]\ntemperature = 0.5\n")
    card = (run_training(config, show_progress=False) / "README.md").read_text()
    assert '"temperature": 0.5' in card
    assert torch.get_num_threads() == threads
