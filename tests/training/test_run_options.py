"""Whole runs with the options of batching, teachers and freezing: killed and resumed, on one process and on two."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m3_integrations.checkpoint import find_checkpoint
from m3_integrations.training import run_training
from m3_integrations.training.averaging import mix_in_start
from m3_integrations.training.network import TrainingNetwork
from tests.training.conftest import WriteConfig, write_examples
from tests.training.test_run import KILL_AT_STEP_5, log_of, one_thread, weights_of

__all__ = ["one_thread"]  # a fixture

KILL_ONE_OF_TWO = KILL_AT_STEP_5.replace("== 5", "== 5 and os.environ['RANK'] == '1'")

OPTIONS: dict[str, dict[str, object]] = {
    "by length, one file a batch, gradient cache, taught": {
        "train_data": ["examples.jsonl", "more.jsonl"],
        "batch_size_by_length": {"20": 4, "128": 3},
        "keep_last_batch": True,
        "same_dataset_within_batch": True,
        "shuffle_ratio": 0.5,
        "sub_batch_tokens": 48,
        "loss": {"knowledge_distillation": True, "kd_loss_type": "m3_kd_loss"},
    },
    "last layer free, checkpointing, no in-batch negatives, start mixed in": {
        "sub_batch_tokens": 64,
        "split_batch": "checkpointing",
        "gradient_checkpointing": True,
        "free_layers": 1,
        "start_weight": 0.25,
        "gradient_accumulation_steps": 2,
        "steps": 12,
        "loss": {"in_batch_negatives": False, "false_negative_margin": 0.1, "knowledge_distillation": True},
    },
}


def run_on_two(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a Python program in two processes that find each other."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python",
         sys.executable, *command],
        capture_output=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
def test_a_run_with_every_option_is_killed_and_resumed_bit_for_bit(
    write_config: WriteConfig, tmp_path: Path, options: dict[str, object]
) -> None:
    write_examples(tmp_path / "more.jsonl", count=7)
    expected = weights_of(run_training(write_config("whole", **options), show_progress=False))
    config = write_config("killed", **options)
    process = subprocess.run([sys.executable, "-c", KILL_AT_STEP_5, str(config)], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    got = weights_of(run_training(config, show_progress=False))
    assert [name for name in expected if not expected[name].equal(got[name])] == []
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_resume_bit_for_bit(
    write_config: WriteConfig, without_dropout: Path, tmp_path: Path
) -> None:
    options: dict[str, object] = {
        "model": str(without_dropout), "batch_size": 5, "keep_last_batch": True, "sub_batch_tokens": 64,
        "loss": {"knowledge_distillation": True},
    }  # fmt: skip
    run_training(write_config("one", **options), show_progress=False)
    train = ["-c", "from m3_integrations.cli import app; import torch; torch.set_num_threads(1); app()", "train"]
    both = run_on_two([*train, str(write_config("two", **options))])
    assert both.returncode == 0, both.stderr.decode()
    assert both.stdout.decode().count("The trained checkpoint is in") == 1
    for one, two in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        for name in ("loss", "dense_loss", "lexical_loss", "multi_vector_loss", "ensemble_loss", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name  # Adam makes much of the last bits

    config = write_config("killed", **options)
    killed = run_on_two(["-c", KILL_ONE_OF_TWO, str(config)])
    assert killed.returncode != 0
    assert not (tmp_path / "killed" / "final").exists()
    assert (tmp_path / "killed" / "checkpoint-3" / "rng_state_1.pth").exists()
    resumed = run_on_two([*train, str(config)])
    assert resumed.returncode == 0, resumed.stderr.decode()
    expected, got = (weights_of(tmp_path / name / "final") for name in ("two", "killed"))
    assert [name for name in expected if not expected[name].equal(got[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["retromae", "contrastive"])
def test_two_processes_train_the_early_stages_as_one_does(
    write_config: WriteConfig, without_dropout: Path, tmp_path: Path, stage: str
) -> None:
    options: dict[str, object] = {"model": str(without_dropout), "stage": stage, "batch_size": 5, "steps": 4}
    run_training(write_config("one", **options), show_progress=False)
    train = ["-c", "from m3_integrations.cli import app; import torch; torch.set_num_threads(1); app()", "train"]
    both = run_on_two([*train, str(write_config("two", **options))])
    assert both.returncode == 0, both.stderr.decode()
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    names = {name for name in one[0] if name.endswith("loss") or name == "grad_norm"}
    assert len(names) == {"retromae": 4, "contrastive": 3}[stage]
    for mine, theirs in zip(one, two, strict=True):
        for name in names & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name


def test_only_the_layers_that_are_free_are_trained(write_config: WriteConfig, small: Path) -> None:
    before = weights_of(small)
    for free_layers, layers in ((0, ()), (1, ("2",)), (2, ("1", "2"))):
        name = f"free{free_layers}"
        after = weights_of(run_training(write_config(name, free_layers=free_layers, steps=2), show_progress=False))
        changed = {key for key, value in after.items() if not value.equal(before[key])}
        in_layers = {key.split(".")[2] for key in changed if key.startswith("encoder.layer.")}
        assert in_layers == set(layers)
        assert {key for key in changed if not key.startswith("encoder.layer.")} == {
            f"{head} {kind}" for head in ("colbert_linear", "sparse_linear") for kind in ("weight", "bias")
        }
    with pytest.raises(ValueError, match="free_layers must be at most 3, the backbone's layers, got 4"):
        run_training(write_config("free4", free_layers=4), show_progress=False)


def test_float16_on_a_cpu_is_refused_before_anything_is_written(write_config: WriteConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='precision = "float16" needs a GPU, and this run is on a CPU: use "bfloat16"'):
        run_training(write_config(precision="float16"), show_progress=False)
    assert not (tmp_path / "run").exists()
    run_training(write_config(precision="bfloat16", steps=1), show_progress=False)


def test_the_result_is_the_average_of_the_trained_weights_and_the_starts(
    write_config: WriteConfig, small: Path
) -> None:
    before = weights_of(small)
    trained = weights_of(run_training(write_config("plain"), show_progress=False))
    mixed = weights_of(run_training(write_config("mixed", start_weight=0.3), show_progress=False))
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.7 * trained[name] + 0.3 * before[name], rtol=1e-5, atol=1e-6)
        assert not trained[name].equal(before[name])


def test_heads_that_the_start_did_not_have_are_not_averaged(
    write_config: WriteConfig, small: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(small, bare)
    for head in ("colbert_linear", "sparse_linear"):
        (bare / f"{head}.pt").unlink()
    results = [
        weights_of(run_training(write_config(name, model=str(bare), start_weight=weight), show_progress=False))
        for name, weight in (("plain", 0.0), ("mixed", 0.9))
    ]
    for name, value in results[0].items():
        assert value.equal(results[1][name]) == ("linear" in name), name


def test_networks_with_other_weights_have_no_average(small: Path, wide: Path) -> None:
    networks = [TrainingNetwork.load(find_checkpoint(str(folder))) for folder in (small, wide)]
    with pytest.raises(ValueError, match="the start checkpoint has other weights"):
        mix_in_start(networks[0], networks[1], 0.5)
