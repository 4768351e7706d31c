"""The three stages: read from one file, run one after another, killed in any of them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m3_integrations import M3Encoder
from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.tokenizer import Tokens
from m3_integrations.training import LossSettings, TrainingConfig, load_config, load_stages, run_training
from m3_integrations.training.config import STAGES
from m3_integrations.training.data import TrainingBatches, read_examples
from m3_integrations.training.trainer import find_last_checkpoint
from tests.training.conftest import WriteConfig, write_examples
from tests.training.test_run import log_of, weights_of

KILL_AT_BATCH = """
import os, signal, sys, torch
from m3_integrations.training import run_training
from m3_integrations.training.trainer import M3Trainer
torch.set_num_threads(1)
note, calls = M3Trainer.note, []
def counted(self, *arguments):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return note(self, *arguments)
M3Trainer.note = counted
run_training(sys.argv[1], show_progress=False)
"""

THREE = """
model = {model}
output_dir = {name}
train_data = "examples.jsonl"
device = "cpu"
steps = 6
batch_size = 4
learning_rate = 1e-3
warmup_steps = 2
log_every = 1
save_every = 3
passage_max_length = 40
[retromae]
decoder_mask = 0.7
[contrastive]
[unified]
train_group_size = 2
steps_before_distillation = 2
"""


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Sums are rounded alike only with the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_three(folder: Path, model: Path | str, name: str = "run") -> Path:
    write_examples(folder / "examples.jsonl")
    path = folder / f"{name}.toml"
    path.write_text(THREE.format(model=json.dumps(str(model)), name=json.dumps(name)))
    return path


def differing(expected: Path, got: Path) -> list[str]:
    a, b = weights_of(expected), weights_of(got)
    assert a.keys() == b.keys()
    return [name for name in a if not a[name].equal(b[name])]


def test_stages_share_what_stands_above_and_each_begins_where_the_one_before_ended(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'model = "some/repository"\noutput_dir = "out"\ntrain_data = "pairs.jsonl"\nseed = 3\n'
        "[loss]\ntemperature = 0.05\nlexical_weight = 0.5\n"
        "[unified]\nsteps = 3\n[unified.loss]\nlexical_weight = 0.2\n"  # the file's order does not matter
        '[retromae]\nsteps = 1\ntrain_data = ["a.txt", "b"]\nseed = 4\n'
    )
    first, second = load_stages(path)
    assert (first.stage, first.model, first.steps, first.seed) == ("retromae", "some/repository", 1, 4)
    assert (second.stage, second.model, second.steps, second.seed) == (
        "unified", str(tmp_path / "out" / "retromae" / "final"), 3, 3,
    )  # fmt: skip
    assert first.train_data == (tmp_path / "a.txt", tmp_path / "b")
    assert second.train_data == (tmp_path / "pairs.jsonl",)
    assert first.output_dir == tmp_path / "out" / "retromae"
    assert first.loss == LossSettings(temperature=0.05, lexical_weight=0.5)
    assert second.loss == LossSettings(temperature=0.05, lexical_weight=0.2)
    with pytest.raises(ValueError, match="has 2 stages: read it with load_stages"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('stage = "unified"\n[retromae]\nsteps = 1', "stage = 'unified' has no effect: leave it out"),
        (
            '[retromae]\nsteps = 1\nmodel = "b"',
            r"\[retromae\] has model, which all stages share: move it above the tables",
        ),
        ("[retromae]\nstep = 1", r"run.toml \[retromae\] has unknown settings: step"),
        ("[contrastive]\nseed = 1", r"run.toml \[contrastive\] lacks steps"),
        ("unified = 3", "unified must be a table"),
        ('steps = 1\nstage = "fine-tuning"', "stage must be one of retromae, contrastive, unified, got 'fine-tuning'"),
        ("steps = 1\nencoder_mask = 1.0", "encoder_mask must be above 0 and below 1, got 1.0"),
        ("steps = 1\ndecoder_mask = 0", "decoder_mask must be above 0 and below 1, got 0"),
        ("steps = 1\nearly_stop = 2", "early_stop = 2 needs eval_data"),
        (
            'steps = 1\nstage = "contrastive"\nbest_by = "lexical"',
            "best_by must be auto or one of dense, got 'lexical'",
        ),
        ("steps = 1\neval_data = ['a']", "eval_data must be of type"),
        ("steps = 1\npositions = -1", "positions must be 0 or more"),
    ],
)
def test_a_wrong_stage_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'model = "a"\noutput_dir = "out"\ntrain_data = "b"\n{text}\n')
    with pytest.raises(ValueError, match=message):
        load_stages(path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    """A folder with the checkpoint with dropout, the data and the run."""
    folder = tmp_path_factory.mktemp("stages")
    shutil.copytree(small, folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_training(write_three(folder, "base"), show_progress=False)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "stage"), [(5, "retromae"), (11, "contrastive"), (17, "unified")])
def test_a_run_killed_in_any_stage_and_resumed_equals_an_uninterrupted_one_bit_for_bit(
    batch: int, stage: str, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_three(tmp_path, uninterrupted / "base")
    process = subprocess.run(
        [sys.executable, "-c", KILL_AT_BATCH, str(config), str(batch)], capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    last = find_last_checkpoint(tmp_path / "run" / stage)
    assert last == tmp_path / "run" / stage / "checkpoint-3"
    final = run_training(config)
    assert final == tmp_path / "run" / "unified" / "final"
    for name in STAGES:
        assert differing(uninterrupted / "run" / name / "final", tmp_path / "run" / name / "final") == []
        assert log_of(tmp_path / "run" / name) == log_of(uninterrupted / "run" / name)
    lines = capsys.readouterr().err.splitlines()
    assert f"{stage}: continues from {last}, step 3 of 6" in lines
    done = [line.partition(":")[0] for line in lines if "is done already, in" in line]
    assert done == list(STAGES[: STAGES.index(stage)])


def test_each_stage_trains_its_own_part(uninterrupted: Path, tmp_path: Path) -> None:
    finals = [uninterrupted / "base", *(uninterrupted / "run" / s / "final" for s in ("retromae", "contrastive"))]
    weights = [weights_of(folder) for folder in finals]
    heads = [name for name in weights[0] if name.startswith(("colbert", "sparse"))]
    assert len(heads) == 4
    for before, after in pairwise(weights):
        assert all(before[name].equal(after[name]) for name in heads)
        layers = [name for name in before if "attention" in name and name.endswith("weight")]
        assert layers
        assert not any(before[name].equal(after[name]) for name in layers)
    unified = weights_of(uninterrupted / "run" / "unified" / "final")
    assert not any(unified[name].equal(weights[-1][name]) for name in heads)


def test_a_stage_in_a_file_of_its_own_gives_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    text = THREE.format(model=json.dumps(str(uninterrupted / "run" / "retromae" / "final")), name='"alone"')
    write_examples(tmp_path / "examples.jsonl")
    (tmp_path / "alone.toml").write_text(text.partition("[retromae]")[0] + 'stage = "contrastive"\n')
    final = run_training(tmp_path / "alone.toml", show_progress=False)
    assert final == tmp_path / "alone" / "final"
    assert differing(uninterrupted / "run" / "contrastive" / "final", final) == []


def test_a_finished_stage_is_not_taken_for_one_with_other_settings(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted / "run" / "retromae", tmp_path / "run" / "retromae")
    config = write_three(tmp_path, uninterrupted / "base")
    config.write_text(config.read_text().replace("decoder_mask = 0.7", "decoder_mask = 0.6"))
    with pytest.raises(ValueError, match="was begun with another decoder_mask"):
        run_training(config, show_progress=False)


def test_a_finished_stage_is_not_taken_for_one_of_another_model(
    uninterrupted: Path, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted / "run" / "retromae", tmp_path / "run" / "retromae")
    shutil.copytree(uninterrupted / "base", tmp_path / "base")
    head = torch.load(small / "sparse_linear.pt", weights_only=True)
    torch.save({"weight": head["weight"], "bias": head["bias"] + 1}, tmp_path / "base" / "sparse_linear.pt")
    with pytest.raises(ValueError, match="was begun with another model"):
        run_training(write_three(tmp_path, tmp_path / "base"), show_progress=False)


def test_a_finished_run_of_stages_says_so(uninterrupted: Path) -> None:
    with pytest.raises(FileExistsError, match="choose another output_dir"):
        run_training(uninterrupted / "run.toml", show_progress=False)


def test_the_contrastive_loss_is_infonce_of_the_dense_vectors(
    write_config: WriteConfig, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(small, tmp_path / "base")
    text = (tmp_path / "base" / "config.json").read_text()
    (tmp_path / "base" / "config.json").write_text(text.replace('_prob": 0.1', '_prob": 0.0'))
    # A size of groups means nothing here.
    config = write_config(model="base", stage="contrastive", train_group_size=8, steps=1)
    run_training(config, show_progress=False)
    settings = load_config(config)
    logits = dense_scores(settings, small) / 0.02
    expected = np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])
    (line,) = [line for line in log_of(settings.output_dir) if "loss" in line]
    assert line["loss"] == pytest.approx(expected, rel=1e-4)
    assert line["dense_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_passage_that_beats_the_positive_by_the_margin_is_no_negative_in_the_contrastive_stage(
    write_config: WriteConfig, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(small, tmp_path / "base")
    text = (tmp_path / "base" / "config.json").read_text()
    (tmp_path / "base" / "config.json").write_text(text.replace('_prob": 0.1', '_prob": 0.0'))
    config = write_config(model="base", stage="contrastive", steps=1, loss={"false_negative_margin": -0.01})
    run_training(config, show_progress=False)
    settings = load_config(config)
    scores = dense_scores(settings, small)
    kept = scores - np.diag(scores)[:, None] <= -0.01
    np.fill_diagonal(kept, val=True)
    assert 4 < kept.sum() < 16
    expected = np.mean([np.log(np.exp(row[kept[i]] / 0.02).sum()) - row[i] / 0.02 for i, row in enumerate(scores)])
    (line,) = [line for line in log_of(settings.output_dir) if "loss" in line]
    assert line["loss"] == pytest.approx(expected, rel=1e-4)


def dense_scores(settings: TrainingConfig, small: Path) -> NDArray[np.float64]:
    """Return the dense scores of the first batch, (4, 4) float64, from the encoder; positives are on the diagonal."""
    batches = TrainingBatches(
        read_examples(settings.train_data), load_tokenizer(small), batch_size=4, group_size=1,
        query_max_length=32, passage_max_length=128, steps=1, seed=0,
    )  # fmt: skip
    queries, passages = ({k: v.numpy() for k, v in batches[0].items() if k.startswith(p)} for p in ("query", "passage"))
    known = {tuple(t.ids.tolist()): text for text in texts_of(settings.train_data) for t in tokens_of(small, text)}
    with M3Encoder(small, shared=False, device="cpu") as encoder:
        a, b = (
            encoder.encode([known[tuple(row[mask == 1])] for row, mask in zip(*side.values(), strict=True)]).dense
            for side in (queries, passages)
        )
    return np.asarray((a @ b.T).astype(np.float64))


def texts_of(paths: tuple[Path, ...]) -> list[str]:
    examples = read_examples(paths)
    return [text for example in examples for text in (example.query, *example.positives)]


def tokens_of(folder: Path, text: str) -> list[Tokens]:
    tokenizer = load_tokenizer(folder)
    return [*tokenizer([text], max_length=32), *tokenizer([text], max_length=128)]


@pytest.mark.slow
def test_a_checkpoint_without_heads_stays_without_until_the_unified_stage(small: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(small, base)
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        (base / name).unlink()
    run_training(write_three(tmp_path, "base"), show_progress=False)
    for stage in STAGES:
        with M3Encoder(tmp_path / "run" / stage / "final", shared=False, device="cpu") as encoder:
            assert encoder.modes == (("dense", "lexical", "multi_vector") if stage == "unified" else ("dense",))


def test_the_modes_learn_alone_before_distillation_begins(write_config: WriteConfig, tmp_path: Path) -> None:
    def train(name: str, **settings: object) -> Path:
        config = write_config(name, save_every=1, keep_checkpoints=9, **settings)
        if name == "alone":
            config.write_text(config.read_text() + "[loss]\nself_distillation = false\n")
        run_training(config, show_progress=False)
        return tmp_path / name

    alone, from_start, later = train("alone"), train("start"), train("later", steps_before_distillation=3)
    assert differing(later / "checkpoint-3", alone / "checkpoint-3") == []
    assert differing(later / "checkpoint-3", from_start / "checkpoint-3") != []
    assert differing(later / "checkpoint-4", alone / "checkpoint-4") != []


def test_epochs_are_passes_over_the_data(write_config: WriteConfig, tmp_path: Path) -> None:
    run_training(write_config(batch_size=8, steps=6), show_progress=False)  # 24 examples: 3 batches are a pass
    lines = [line for line in log_of(tmp_path / "run") if "loss" in line]
    assert [round(line["epoch"], 3) for line in lines] == [0.333, 0.667, 1.0, 1.333, 1.667, 2.0]


def test_a_line_is_written_for_every_group_of_steps(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(write_config(log_every=2), show_progress=True)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("unified: step")]
    assert len(lines) == 3
    number = r"\d+\.\d{3}"
    modes = f"dense {number}, lexical {number}, multi-vector {number}, ensemble {number}"
    for step, line in zip((2, 4, 6), lines, strict=True):
        start = rf"unified: step {step} of 6, epoch {step / 6:.2f}, loss {number} \({modes}\), "
        assert re.fullmatch(start + r"[\d,]+ tokens/s, \d+ s left", line), line
    assert captured.out == ""


def test_nothing_is_written_without_progress(write_config: WriteConfig, capfd: pytest.CaptureFixture[str]) -> None:
    run_training(write_config(steps=2), show_progress=False)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
