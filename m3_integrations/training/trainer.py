"""transformers' `Trainer` with BGE-M3's loss and checkpoints, a log of every mode, and a stop for dead heads."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState, TrainingArguments

from m3_integrations.training.data import TrainingBatches
from m3_integrations.training.gathering import from_first, gather_views, is_distributed, sum_over_processes
from m3_integrations.training.health import HeadWatch
from m3_integrations.training.losses import LossSettings, compute_loss
from m3_integrations.training.masking import MaskedBatches
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.progress import Progress
from m3_integrations.training.scores import score_batch

_LOGGED = ("dense", "lexical", "multi_vector", "ensemble")
_FULL_BYTES = 256 << 20  # with less free space than this, a checkpoint that cannot be written had too little
_STATE_FILE = "trainer_state.json"  # the Trainer writes it last, so a folder with it is a whole checkpoint


Measure = Callable[[TrainingNetwork], Mapping[str, float]]
"""A function that measures a network on a validation set: nDCG@10 of each mode, from 0 to 1."""


class M3Trainer(Trainer):  # type: ignore[misc]
    """A trainer for batches that are planned for the whole run.

    Args:
        network: The network to train.
        batches: All batches of the run.
        arguments: The Trainer's arguments; the batch size must be 1, because one item is a whole batch.
        loss_settings: The numbers of the loss.
        watch: Stops the run if a head dies.
        progress: Counts the tokens of every batch, and writes the lines that a user reads.
        measure: Measures the network at every evaluation; None if the arguments ask for no evaluations.
        early_stop: Training ends after this number of evaluations in a row without a better one; 0 for never.
        steps_before_distillation: The number of batches on which the modes learn without the ensemble as teacher.
        is_gathered: Whether queries are scored with the passages of all processes; batches must have the same value.
    """

    def __init__(
        self,
        network: TrainingNetwork,
        batches: TrainingBatches | MaskedBatches,
        arguments: TrainingArguments,
        *,
        loss_settings: LossSettings,
        watch: HeadWatch,
        progress: Progress,
        measure: Measure | None = None,
        early_stop: int = 0,
        steps_before_distillation: int = 0,
        is_gathered: bool = True,
    ) -> None:
        evaluated = None if measure is None else batches  # the Trainer needs a dataset; `measure` uses another one
        super().__init__(
            model=network, args=arguments, train_dataset=batches, eval_dataset=evaluated, callbacks=[progress]
        )
        for own in (PrinterCallback, ProgressCallback):
            self.remove_callback(own)
        self.loss_settings, self.watch = loss_settings, watch
        self._progress, self._measure = progress, measure
        self._early_stop, self._steps_before_distillation = early_stop, steps_before_distillation
        self.is_gathered = is_gathered and is_distributed()
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches in the planned order; each has only this process's share."""
        batches = self.train_dataset
        return DataLoader(batches, batch_size=1, sampler=SequentialSampler(batches), collate_fn=_only)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - the Trainer's signature
    ) -> Any:
        """Encode queries and passages and return the loss of the batch.

        On several devices the loss is scaled by this process's share of the batch: the mean of the gradients over the
        processes, which the Trainer computes, is then the gradient of the joined batch.

        Raises:
            HeadDiedError: If a head has died.
        """
        queries = model(inputs["query_ids"], inputs["query_mask"])
        passages = model(inputs["passage_ids"], inputs["passage_mask"])
        if self.is_gathered:
            passages = gather_views(passages)
        scores = score_batch(queries, passages)
        terms = compute_loss(
            scores,
            inputs["positives"],
            self._settings_now(),
            group_size=len(inputs["passage_ids"]) // len(inputs["query_ids"]),
            known_answers=inputs["known_answers"],
            teacher_scores=inputs.get("teacher_scores"),
        )
        self.watch.check(queries, passages, scores, terms)
        self.note({name: getattr(terms, name) * inputs["share"] for name in _LOGGED}, inputs)
        total = terms.total * inputs["share"]
        return (total, {"scores": scores}) if return_outputs else total

    def _settings_now(self) -> LossSettings:
        """Return the loss settings of this step; the first ones are without self-distillation."""
        batches = self.state.global_step * self.args.gradient_accumulation_steps
        is_alone = batches < self._steps_before_distillation
        return dataclasses.replace(self.loss_settings, self_distillation=False) if is_alone else self.loss_settings

    def note(self, terms: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> None:
        """Add the terms of a batch's loss (their means over the processes) and its tokens to the next log entry."""
        sums = sum_over_processes(torch.stack([term.detach() for term in terms.values()]))
        for name, total in zip(terms, sums.tolist(), strict=True):
            self._sums[name] += total / self.args.world_size
        self._count += 1
        self._progress.count(sum(int(mask.sum()) for name, mask in inputs.items() if name.endswith("_mask")))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean loss of every mode since the last entry, and the passes over the data as the epoch."""
        if self._count and "loss" in logs:
            logs |= {f"{name}_loss": total / self._count for name, total in self._sums.items()}
            self._sums.clear()
            self._count = 0
        batches = self.state.global_step * self.args.gradient_accumulation_steps
        self.state.epoch = batches / self.train_dataset.batches_per_epoch
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the network on the validation set, log the metrics and return them."""
        if self._measure is None:
            raise RuntimeError("this trainer has nothing to measure with")
        network: TrainingNetwork = self.accelerator.unwrap_model(self.model)
        found = from_first(partial(self._measure, network))
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Save the best checkpoint, and end the run if `early_stop` evaluations in a row were no better."""
        is_best: bool = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= is_best
        if is_exhausted(self.state, self.args.eval_steps, self._early_stop):
            self.control.should_training_stop = self.control.should_save = True
        return is_best

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Write the checkpoint, on the first process only; it replaces one that a killed run left incomplete."""
        if not self.args.should_save:
            return
        network: TrainingNetwork = self.accelerator.unwrap_model(self.model)
        network.save(Path(output_dir or self.args.output_dir), is_replacing=True)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint; an error of torch's writer, which says nothing of the disk, names the folder."""
        try:
            super()._save_checkpoint(model, trial)
        except RuntimeError as error:
            free = shutil.disk_usage(self.args.output_dir).free
            if free > _FULL_BYTES:
                raise
            message = f"the disk is full ({free >> 20} MB are free), so no checkpoint was saved: {error}"
            raise OSError(errno.ENOSPC, message, self.args.output_dir) from error

    def _save_rng_state(self, output_dir: str) -> None:
        """Write each process's random state, all of them before the file that marks the checkpoint as whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        network: TrainingNetwork = self.accelerator.unwrap_model(model or self.model)
        network.restore(Path(resume_from_checkpoint))


def read_state(checkpoint: Path) -> TrainerState:
    """Return the Trainer's state at a checkpoint: the step, the log, and the best checkpoint so far."""
    return TrainerState.load_from_json(str(checkpoint / _STATE_FILE))


def is_exhausted(state: TrainerState, eval_steps: float, early_stop: int) -> bool:
    """Return whether a run ends early: `early_stop` evaluations in a row were no better than the best before."""
    if not early_stop or state.best_global_step is None:
        return False
    return bool(state.global_step - state.best_global_step >= early_stop * eval_steps)


def find_last_checkpoint(folder: Path) -> Path | None:
    """Return the last whole checkpoint of a run, or None."""
    steps = {
        int(path.name.rpartition("-")[2]): path
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and _is_whole(path)
    }
    return steps[max(steps)] if steps else None


def _is_whole(checkpoint: Path) -> bool:
    """Return whether the file that is written last is there, and whole: a power cut may have shortened it."""
    try:
        read_state(checkpoint)
    except (OSError, ValueError, TypeError):
        return False
    return True


def _only(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the only item, which is a whole batch."""
    (item,) = items
    return item
