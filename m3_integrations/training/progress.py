"""The lines that the user of a trainer reads: one for every group of steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(TrainerCallback):  # type: ignore[misc]
    """A callback that counts tokens and time, and writes lines such as this to standard error.

        unified: step 20 of 160, epoch 0.25, loss 1.234 (dense 1.1, lexical 2.0), 12,345 tokens/s, 3 min left

    Tokens per second count only the time of training, without evaluations and checkpoints. The time left is estimated
    from the whole time of this process, with evaluations and checkpoints.

    Args:
        stage: The name of the stage.
        is_shown: Whether lines are written; of several processes that train together only one writes them.
    """

    def __init__(self, stage: str, *, is_shown: bool) -> None:
        self._stage, self.is_shown = stage, is_shown
        self._tokens = 0
        self._train_s = 0.0
        self._mark = self._start = time.perf_counter()
        self._first_step = 0

    def say(self, text: str) -> None:
        """Write a line."""
        if self.is_shown:
            tqdm.write(f"{self._stage}: {text}", file=sys.stderr)

    def count(self, tokens: int) -> None:
        """Add the number of tokens of a batch, without padding."""
        self._tokens += tokens

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._mark = self._start = time.perf_counter()
        self._first_step = state.global_step

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Add the time of a step."""
        now = time.perf_counter()
        self._train_s += now - self._mark
        self._mark = now

    def on_save(self, *_: Any, **__: Any) -> None:
        """Exclude the time of a checkpoint."""
        self._mark = time.perf_counter()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Exclude the time of an evaluation."""
        self._mark = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Write the line of a group of steps, or of an evaluation."""
        values = {name: value for name, value in logs.items() if name.startswith("eval_")}
        if values:
            found = ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in values.items())
            self.say(f"step {state.global_step:,}, nDCG@10: {found}")
        elif "loss" in logs:
            self.say(self._describe(state, logs, processes=args.world_size))
            self._tokens, self._train_s = 0, 0.0

    def _describe(self, state: TrainerState, logs: Mapping[str, float], *, processes: int) -> str:
        parts = {name.removesuffix("_loss"): value for name, value in logs.items() if name.endswith("_loss")}
        by_mode = ", ".join(f"{name.replace('_', '-')} {value:.3f}" for name, value in parts.items())
        speed = self._tokens * processes / max(self._train_s, 1e-9)
        done = state.global_step - self._first_step
        left = (time.perf_counter() - self._start) / max(done, 1) * (state.max_steps - state.global_step)
        return (
            f"step {state.global_step:,} of {state.max_steps:,}, epoch {state.epoch or 0:.2f}, "
            f"loss {logs['loss']:.3f} ({by_mode}), {speed:,.0f} tokens/s, {describe_time(left)} left"
        )


def describe_time(seconds: float) -> str:
    """Return a time for people: "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
