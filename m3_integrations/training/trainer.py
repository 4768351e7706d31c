"""transformers' `Trainer` with BGE-M3's loss: checkpoints in BGE-M3's format, a log of every mode, dead heads found."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments

from m3_integrations.training.data import TrainingBatches
from m3_integrations.training.health import HeadWatch
from m3_integrations.training.losses import LossSettings, compute_loss
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.scores import score_batch

_LOGGED = ("dense", "lexical", "multi_vector", "ensemble")
_STATE_FILE = "trainer_state.json"  # the Trainer writes it last, so a folder that has it is whole


class M3Trainer(Trainer):  # type: ignore[misc]
    """Trains a network on batches that are planned for the whole run.

    Args:
        network: What is trained.
        batches: All batches of the run.
        arguments: The Trainer's; its batch size must be 1, as one item is a whole batch.
        loss_settings: Numbers of the loss.
        watch: Stops the run when a head dies.
    """

    def __init__(
        self,
        network: TrainingNetwork,
        batches: TrainingBatches,
        arguments: TrainingArguments,
        *,
        loss_settings: LossSettings,
        watch: HeadWatch,
    ) -> None:
        super().__init__(model=network, args=arguments, train_dataset=batches)
        self._loss_settings = loss_settings
        self._watch = watch
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches in the order they were planned."""
        batches = self.train_dataset
        loader = DataLoader(batches, batch_size=1, sampler=SequentialSampler(batches), collate_fn=_only)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - the Trainer's signature
    ) -> Any:
        """Encode queries and passages and give the loss of the batch.

        Raises:
            HeadDiedError: If a head has died.
        """
        queries = model(inputs["query_ids"], inputs["query_mask"])
        passages = model(inputs["passage_ids"], inputs["passage_mask"])
        scores = score_batch(queries, passages)
        group_size = len(inputs["passage_ids"]) // len(inputs["query_ids"])
        positives = torch.arange(len(inputs["query_ids"]), device=scores.dense.device) * group_size
        terms = compute_loss(scores, positives, self._loss_settings)
        self._watch.check(queries, passages, scores, terms)
        for name in _LOGGED:
            self._sums[name] += getattr(terms, name).item()
        self._count += 1
        return (terms.total, {"scores": scores}) if return_outputs else terms.total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of every mode since the last log."""
        if self._count and "loss" in logs:
            logs |= {f"{name}_loss": self._sums[name] / self._count for name in _LOGGED}
            self._sums.clear()
            self._count = 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Write the checkpoint, over what a killed run may have left half written."""
        network: TrainingNetwork = self.accelerator.unwrap_model(self.model)
        network.save(Path(output_dir or self.args.output_dir), is_replacing=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        network: TrainingNetwork = self.accelerator.unwrap_model(model or self.model)
        network.restore(Path(resume_from_checkpoint))


def find_last_checkpoint(folder: Path) -> Path | None:
    """Return the last whole checkpoint of a run, or None."""
    steps = {
        int(path.name.rpartition("-")[2]): path
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and (path / _STATE_FILE).is_file()
    }
    return steps[max(steps)] if steps else None


def _only(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the one item, which is a whole batch already."""
    (item,) = items
    return item
