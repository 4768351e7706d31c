"""A training run from start to end, or from where it was killed to its end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from transformers import TrainingArguments, set_seed

from m3_integrations.checkpoint import find_checkpoint, head_files
from m3_integrations.training.config import TrainingConfig, load_config
from m3_integrations.training.data import Example, TrainingBatches, read_examples
from m3_integrations.training.health import HeadWatch
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.plot import plot_losses
from m3_integrations.training.trainer import M3Trainer, find_last_checkpoint

FINAL_FOLDER = "final"
"""Where in the output folder the trained checkpoint lies."""

_SETTINGS_FILE: Final = "settings.json"
_FREE: Final = frozenset({
    "model", "train_data", "output_dir", "gradient_checkpointing", "device", "log_every", "save_every",
    "keep_checkpoints", "dead_head_patience",
})  # fmt: skip
"""Settings that a run may go on with whatever they were: the weights are the checkpoint's, and data are compared."""


def run_training(config_path: str | os.PathLike[str], *, show_progress: bool = True) -> Path:
    """Train as a TOML file says; a run that was killed goes on from its last checkpoint.

    Args:
        config_path: The file; see `TrainingConfig` for its settings.
        show_progress: Whether to show a bar.

    Returns:
        The folder of the trained checkpoint, which `M3Encoder` and FlagEmbedding read. Beside it lies loss.png.

    Raises:
        FileNotFoundError: If the file, the data or the checkpoint is not there.
        FileExistsError: If the run has ended already.
        ValueError: If a setting, the data or the checkpoint is not as it must be, or a run that goes on was begun with
            other settings or data.
        HeadDiedError: If a head dies.
    """
    return train(load_config(config_path), show_progress=show_progress)


def train(config: TrainingConfig, *, show_progress: bool = True) -> Path:
    """Train as the settings say. Returns and raises what `run_training` does."""
    final = config.output_dir / FINAL_FOLDER
    if is_whole(final):
        raise FileExistsError(f"{final} holds this run's result already: choose another output_dir")
    examples, last = read_examples(config.train_data), find_last_checkpoint(config.output_dir)
    _hold_to_settings(config, examples, is_going_on=last is not None)
    set_seed(config.seed)
    network = TrainingNetwork.load(find_checkpoint(config.model))
    if config.freeze_position_embeddings:
        network.freeze_position_embeddings()
    if config.gradient_checkpointing:
        network.backbone.gradient_checkpointing_enable()  # type: ignore[operator]
    batches = TrainingBatches(
        examples,
        network.tokenizer,
        batch_size=config.batch_size,
        group_size=config.train_group_size,
        query_max_length=config.query_max_length,
        passage_max_length=config.passage_max_length,
        instruction=config.query_instruction,
        steps=config.steps,
        seed=config.seed,
    )
    trainer = M3Trainer(
        network,
        batches,
        _arguments(config, show_progress),
        loss_settings=config.loss,
        watch=HeadWatch(config.dead_head_patience),
    )
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    plot_losses(trainer.state.log_history, config.output_dir / "loss.png")
    network.save(final, is_replacing=True)
    return final


def _hold_to_settings(config: TrainingConfig, examples: Sequence[Example], *, is_going_on: bool) -> None:
    """Write down what a run is begun with, or refuse to go on with anything else: it would be neither of two runs."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        digest.update(json.dumps(dataclasses.astuple(example)).encode())
    own = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    own["train_data"] = digest.hexdigest()
    file = config.output_dir / _SETTINGS_FILE
    if not is_going_on:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    elif file.exists():  # not in a folder of an earlier version
        begun = json.loads(file.read_text(encoding="utf-8"))
        if other := [name for name, value in own.items() if begun.get(name) != value]:
            raise ValueError(
                f"the run in {config.output_dir} was begun with another {', '.join(other)}: give it what it had, or "
                "choose another output_dir"
            )


def is_whole(final: Path) -> bool:
    """Whether a run saved its result to the end; one that was killed meanwhile left no config.json or no heads."""
    return (final / "config.json").exists() and len(head_files(final)) == 2


def _arguments(config: TrainingConfig, show_progress: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(config.output_dir),
        max_steps=-(-config.steps // config.gradient_accumulation_steps),
        per_device_train_batch_size=1,  # one item of the data is a whole batch
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        fp16=config.precision == "float16",
        bf16=config.precision == "bfloat16",
        use_cpu=config.device == "cpu",
        seed=config.seed,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        save_steps=config.save_every,
        save_total_limit=config.keep_checkpoints,
        disable_tqdm=not show_progress,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=[],
    )
