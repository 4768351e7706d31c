"""The lines that a trainer's user reads."""

from __future__ import annotations

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from m3_integrations.training import progress
from m3_integrations.training.progress import Progress, describe_time


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_speed_is_of_training_alone_and_what_is_left_of_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    arguments, control = TrainingArguments(report_to=[]), TrainerControl()
    state = TrainerState(max_steps=120, global_step=100)
    lines = Progress("contrastive", is_shown=True)
    lines.on_train_begin(arguments, state, control)  # resumed at step 100
    for _ in range(2):
        for _ in range(2):
            lines.count(150)
            clock.now += 1.5
            lines.on_step_end(arguments, state, control)
        clock.now += 50  # an evaluation, then a checkpoint
        lines.on_evaluate(arguments, state, control)
        clock.now += 7
        lines.on_save(arguments, state, control)
    state.global_step, state.epoch = 104, 1.5
    lines.on_log(arguments, state, control, logs={"loss": 1.2345, "dense_loss": 1.5, "multi_vector_loss": 0.25})
    # 600 tokens in 6 s; 4 steps in 120 s, so 16 more in 480 s
    assert capsys.readouterr().err == (
        "contrastive: step 104 of 120, epoch 1.50, loss 1.234 (dense 1.500, multi-vector 0.250), "
        "100 tokens/s, 8 min left\n"
    )
    lines.on_log(arguments, state, control, logs={"eval_dense": 0.5, "eval_search:all": 0.75})
    lines.on_log(arguments, state, control, logs={"train_runtime": 3.0})
    assert capsys.readouterr().err == "contrastive: step 104, nDCG@10: dense 0.5000, search:all 0.7500\n"


def test_times_are_for_people() -> None:
    assert [describe_time(seconds) for seconds in (0.4, 59.4, 60, 3_540, 3_570, 11_100)] == [
        "0 s", "59 s", "1 min", "59 min", "1 h 00 min", "3 h 05 min",
    ]  # fmt: skip
