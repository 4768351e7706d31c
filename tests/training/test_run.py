"""Whole runs of a very small network: resumed, stopped by a dead head, saved."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from m3_integrations import M3Encoder
from m3_integrations.model import threads
from m3_integrations.training import HeadDiedError, run_training
from m3_integrations.training.folder import hold_folder
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.trainer import M3Trainer, find_last_checkpoint
from tests.training.conftest import WriteConfig

KILL_AT_STEP_5 = """
import os, signal, sys, torch
from m3_integrations.training import run_training
from m3_integrations.training.health import HeadWatch
torch.set_num_threads(1)
calls = []
def check(self, *arguments):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
HeadWatch.check = check
run_training(sys.argv[1], show_progress=False)
"""

KILL_WHILE_SAVING_FINAL = """
import os, signal, sys, torch
from m3_integrations.training import run_training
torch.set_num_threads(1)
save = torch.save
def killed(state, path, *arguments, **settings):
    if "final" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return save(state, path, *arguments, **settings)
torch.save = killed
run_training(sys.argv[1], show_progress=False)
"""


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Sums are rounded alike only with the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def with_dropout(small: Path, tmp_path: Path) -> Path:
    """The small checkpoint with dropout, so that a resumed run needs the random state as well."""
    folder = tmp_path / "with_dropout"
    shutil.copytree(small, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    heads = {
        f"{name} {key}": value
        for name in ("colbert_linear", "sparse_linear")
        for key, value in torch.load(folder / f"{name}.pt", weights_only=True).items()
    }
    return load_file(folder / "model.safetensors") | heads


def log_of(run: Path) -> list[dict[str, float]]:
    last = find_last_checkpoint(run)
    assert last is not None
    history: list[dict[str, float]] = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return history


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    write_config: WriteConfig, with_dropout: Path, tmp_path: Path
) -> None:
    whole = run_training(write_config("whole", model=str(with_dropout)), show_progress=False)
    config = write_config("killed", model=str(with_dropout))
    process = subprocess.run([sys.executable, "-c", KILL_AT_STEP_5, str(config)], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    last = find_last_checkpoint(tmp_path / "killed")
    assert last is not None
    assert last.name == "checkpoint-3"
    resumed = run_training(config, show_progress=False)

    before, expected, got = weights_of(with_dropout), weights_of(whole), weights_of(resumed)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not expected[name].equal(got[name])] == []
    assert [name for name in before if name in expected and expected[name].equal(before[name])] == []
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_half_written_checkpoint_is_passed_over_and_written_again(write_config: WriteConfig, tmp_path: Path) -> None:
    expected = weights_of(run_training(write_config("whole"), show_progress=False))
    run = tmp_path / "half"
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", run / "checkpoint-3")
    (run / "checkpoint-6").mkdir()
    (run / "checkpoint-6" / "config.json").write_text("{")
    got = weights_of(run_training(write_config("half"), show_progress=False))
    assert [name for name in expected if not expected[name].equal(got[name])] == []


def test_a_run_does_not_go_on_with_other_settings_or_data(write_config: WriteConfig, tmp_path: Path) -> None:
    whole = run_training(write_config(), show_progress=False)
    expected = weights_of(whole)
    shutil.rmtree(whole)
    for settings, named in (
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"batch_size": 3, "steps": 7}, "steps, batch_size"),
    ):
        with pytest.raises(ValueError, match=f"was begun with another {named}: use the earlier settings"):
            run_training(write_config(**settings), show_progress=False)
    config = write_config(log_every=2, save_every=2, keep_checkpoints=1)
    text = (tmp_path / "examples.jsonl").read_text()
    (tmp_path / "examples.jsonl").write_text(text + text.splitlines()[0])
    with pytest.raises(ValueError, match="was begun with another train_data"):
        run_training(config, show_progress=False)
    (tmp_path / "examples.jsonl").write_text(text)
    got = weights_of(run_training(config, show_progress=False))
    assert [name for name in expected if not expected[name].equal(got[name])] == []


@pytest.mark.slow
def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    whole = run_training(write_config(), show_progress=False)
    expected = weights_of(whole)
    shutil.rmtree(whole)
    file = tmp_path / "run" / "settings.json"
    settings = json.loads(file.read_text())
    for name in ("stage", "steps_before_distillation", "eval_data"):
        del settings[name]
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="was begun with another steps_before_distillation"):
        run_training(write_config(steps_before_distillation=3), show_progress=False)
    got = weights_of(run_training(write_config(), show_progress=False))
    assert [name for name in expected if not expected[name].equal(got[name])] == []


def test_a_run_logs_every_mode_draws_the_loss_and_saves_what_the_encoder_loads(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    final = run_training(write_config(), show_progress=False)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in log_of(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert min(line[f"{mode}_loss"] for mode in ("dense", "lexical", "multi_vector", "ensemble")) > 0

    network = TrainingNetwork.load(final).eval()
    texts = ["Nobody in the village remembers.", "salt and water, salt and water"]
    ids = [tokens.ids.astype(np.int64) for tokens in network.tokenizer(texts, max_length=126)]
    with M3Encoder(final, shared=False, device="cpu") as encoder, torch.no_grad():
        vectors = encoder.encode(texts)
        for row, text_ids in enumerate(ids):
            batch = torch.from_numpy(text_ids)[None]
            views = network(batch, torch.ones_like(batch))
            np.testing.assert_allclose(views.dense[0].numpy(), vectors.dense[row], atol=1e-5)
            np.testing.assert_allclose(views.token_vectors[0, 1:].numpy(), vectors.multi_vector[row], atol=1e-5)
            lexical = vectors.lexical[row]
            for index, value in zip(lexical.indices, lexical.values, strict=True):
                assert views.token_weights[0][batch[0] == int(index)].max().item() == pytest.approx(value, abs=1e-5)


def test_training_stops_when_the_lexical_head_dies_although_the_ensemble_lives(
    write_config: WriteConfig, small: Path, tmp_path: Path
) -> None:
    dead = tmp_path / "dead"
    shutil.copytree(small, dead)
    head = torch.load(dead / "sparse_linear.pt", weights_only=True)
    torch.save({"weight": head["weight"] * 0, "bias": head["bias"] * 0 - 1}, dead / "sparse_linear.pt")
    config = write_config(model=str(dead), dead_head_patience=3)
    with pytest.raises(HeadDiedError, match=r"lexical head has died.*3 batches in a row"):
        run_training(config, show_progress=False)


def test_training_stops_when_the_dense_vectors_collapse(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    forward = TrainingNetwork.forward

    def collapsed(self: TrainingNetwork, ids: torch.Tensor, mask: torch.Tensor) -> object:
        views = forward(self, ids, mask)
        return dataclasses.replace(views, dense=views.dense[:1].expand_as(views.dense))

    monkeypatch.setattr(TrainingNetwork, "forward", collapsed)
    with pytest.raises(HeadDiedError, match="dense head has died"):
        run_training(write_config(dead_head_patience=2), show_progress=False)


@pytest.mark.slow
def test_a_run_killed_while_it_saves_its_result_goes_on(write_config: WriteConfig, tmp_path: Path) -> None:
    expected = weights_of(run_training(write_config("whole"), show_progress=False))
    config = write_config("killed")
    process = subprocess.run(
        [sys.executable, "-c", KILL_WHILE_SAVING_FINAL, str(config)], capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    final = run_training(config, show_progress=False)
    got = weights_of(final)
    assert [name for name in expected if not expected[name].equal(got[name])] == []
    assert sorted(path.name for path in final.iterdir()) == sorted(
        path.name for path in (tmp_path / "whole" / "final").iterdir()
    )


def test_a_result_without_its_heads_is_written_again(write_config: WriteConfig, tmp_path: Path) -> None:
    final = run_training(write_config(), show_progress=False)
    expected = weights_of(final)
    for path in final.iterdir():
        if path.is_file() and path.name != "config.json":
            path.unlink()
    got = weights_of(run_training(write_config(), show_progress=False))
    assert [name for name in expected if not expected[name].equal(got[name])] == []


def test_a_finished_run_is_not_overwritten(write_config: WriteConfig, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "run" / "final")
    with pytest.raises(FileExistsError, match="choose another output_dir"):
        run_training(write_config(), show_progress=False)


def test_a_run_has_its_folder_for_itself_until_it_ends(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, note, calls = tmp_path / "run", M3Trainer.note, []

    def begin_another(self: M3Trainer, *arguments: Any) -> None:
        with pytest.raises(BlockingIOError), hold_folder(folder):
            raise AssertionError("two runs have the folder")
        calls.append(1)
        note(self, *arguments)

    monkeypatch.setattr(M3Trainer, "note", begin_another)
    with (
        hold_folder(folder),
        pytest.raises(BlockingIOError, match=r"another run trains in .*run: wait until it ends, or choose another"),
    ):
        run_training(write_config(), show_progress=False)
    assert [path.name for path in folder.iterdir()] == ["lock"]
    run_training(write_config(), show_progress=False)
    assert len(calls) == 6


def test_a_result_that_appeared_during_the_run_is_not_overwritten(
    write_config: WriteConfig, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, note = tmp_path / "run" / "final", M3Trainer.note

    def save_another(self: M3Trainer, *arguments: Any) -> None:
        shutil.copytree(small, final, dirs_exist_ok=True)
        note(self, *arguments)

    monkeypatch.setattr(M3Trainer, "note", save_another)
    with pytest.raises(FileExistsError, match="holds this run's result already: choose another output_dir"):
        run_training(write_config(), show_progress=False)
    assert sorted(path.name for path in final.iterdir()) == sorted(path.name for path in small.iterdir())
    expected, got = weights_of(small), weights_of(final)
    assert [name for name in expected if not expected[name].equal(got[name])] == []


def test_a_run_without_torchrun_keeps_to_one_of_several_gpus_and_names_torchrun(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Splitting(torch.nn.Module):
        def __init__(self, *_: object, **__: object) -> None:
            raise AssertionError("the Trainer splits a batch among GPUs")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # the network itself is on the CPU
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.nn.DataParallel", Splitting)
    run_training(write_config(device="auto", steps=1))
    said = "unified: trains on one of 2 GPUs: torchrun --nproc-per-node 2 --no-python m3 train CONFIG uses all"
    assert said in capsys.readouterr().err.splitlines()


def test_a_run_does_not_go_on_with_another_model_but_from_anywhere_with_the_same(
    write_config: WriteConfig, small: Path, tmp_path: Path
) -> None:
    whole = run_training(write_config(), show_progress=False)
    expected = weights_of(whole)
    file = tmp_path / "run" / "settings.json"
    settings = json.loads(file.read_text())
    shutil.copytree(small, tmp_path / "moved")
    shutil.copytree(small, tmp_path / "other")
    head = torch.load(small / "sparse_linear.pt", weights_only=True)
    torch.save({"weight": head["weight"], "bias": head["bias"] + 1}, tmp_path / "other" / "sparse_linear.pt")

    shutil.rmtree(whole)
    with pytest.raises(ValueError, match="was begun with another model: use the earlier settings"):
        run_training(write_config(model="other"), show_progress=False)
    for text in (settings, {name: value for name, value in settings.items() if name != "model"}):
        file.write_text(json.dumps(text))  # the second as an earlier version wrote it
        shutil.rmtree(whole, ignore_errors=True)
        got = weights_of(run_training(write_config(model="moved"), show_progress=False))
        assert [name for name in expected if not expected[name].equal(got[name])] == []


def test_training_keeps_to_a_containers_cpus(write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(threads, "cpu_limit", lambda: 2.0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threads.limit_threads.cache_clear()
        run_training(write_config(steps=1), show_progress=False)
        assert torch.get_num_threads() == 2
    finally:
        threads.limit_threads.cache_clear()
        torch.set_num_threads(before)


@pytest.mark.parametrize("damage", ["", '{"global_step": 3, "log_hist'])
def test_a_checkpoint_that_a_power_cut_shortened_is_passed_over(
    damage: str, write_config: WriteConfig, with_dropout: Path, tmp_path: Path
) -> None:
    config = write_config("cut", model=str(with_dropout))
    run_training(config, show_progress=False)
    steps = sorted((tmp_path / "cut").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (steps[-1] / "trainer_state.json").write_text(damage)
    assert find_last_checkpoint(tmp_path / "cut") == steps[-2]


def test_damaged_settings_of_a_run_are_named(write_config: WriteConfig, with_dropout: Path, tmp_path: Path) -> None:
    config = write_config("cut", model=str(with_dropout))
    final = run_training(config, show_progress=False)
    shutil.rmtree(final)
    (tmp_path / "cut" / "settings.json").write_text('{"steps": ')
    with pytest.raises(ValueError, match=r"settings\.json is damaged: .*Delete it to go on"):
        run_training(config, show_progress=False)


def test_a_checkpoint_that_finds_no_room_says_so(
    write_config: WriteConfig, with_dropout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9920 vs 9812")

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", fail)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        run_training(write_config("roomy", model=str(with_dropout)), show_progress=False)
    usage = type("Usage", (), {"free": 3 << 20})()
    monkeypatch.setattr("m3_integrations.training.trainer.shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        OSError, match=r"the disk is full \(3 MB are free\), so no checkpoint was saved: .*unexpected pos"
    ):
        run_training(write_config("full", model=str(with_dropout)), show_progress=False)
