"""The settings of a training run, read from a TOML file."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3_integrations.training.losses import LossSettings


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrainingConfig:
    """Settings of one run. Paths in a file are relative to that file.

    Attributes:
        model: A checkpoint folder or a repository of the hub.
        train_data: Files in FlagEmbedding's JSONL, or folders of them.
        output_dir: Where checkpoints, the log and the trained checkpoint (`final`) go.
        steps: Batches to train on.
        batch_size: Queries in a batch.
        train_group_size: Passages per query; 1 for the positive alone, with the batch's others as negatives.
        query_max_length: The most tokens of a query, special tokens included.
        passage_max_length: The same for passages.
        query_instruction: Put before every query whose example has no prompt.
        learning_rate: Its peak.
        warmup_steps: It rises over so many steps and falls to zero on a line.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are cut to this length; 0 leaves them as they are.
        gradient_accumulation_steps: Batches per update of the weights; each is its own set of negatives.
        freeze_position_embeddings: Whether positions stay as they are; for training on texts much shorter than those
            that will be searched.
        gradient_checkpointing: Whether to compute activations twice and save their memory.
        precision: "float32", "float16" or "bfloat16": what the forward pass is computed in. Weights stay float32.
        device: "auto", or "cpu" to leave an accelerator alone.
        seed: Of the batches and of dropout.
        log_every: Steps between two lines of the log.
        save_every: Steps between two checkpoints.
        keep_checkpoints: How many of the last ones stay.
        dead_head_patience: Batches in a row with a dead head before training stops.
        loss: Numbers of the loss.
    """

    model: str
    train_data: tuple[Path, ...]
    output_dir: Path
    steps: int
    batch_size: int = 32
    train_group_size: int = 8
    query_max_length: int = 32
    passage_max_length: int = 128
    query_instruction: str = ""
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    freeze_position_embeddings: bool = False
    gradient_checkpointing: bool = False
    precision: str = "float32"
    device: str = "auto"
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    keep_checkpoints: int = 2
    dead_head_patience: int = 20
    loss: LossSettings = field(default_factory=LossSettings)

    def __repr__(self) -> str:
        """Only what is not the default."""
        own = [(each.name, getattr(self, each.name), each) for each in dataclasses.fields(self)]
        shown = ", ".join(f"{name}={value!r}" for name, value, each in own if value != _default(each))
        return f"{type(self).__name__}({shown})"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "train_group_size", "gradient_accumulation_steps", "log_every",
                     "save_every", "keep_checkpoints", "dead_head_patience"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 3:
                raise ValueError(f"{name} must be at least 3 ([CLS], one token, [SEP]), got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        if self.precision not in {"float32", "float16", "bfloat16"}:
            raise ValueError(f"precision must be 'float32', 'float16' or 'bfloat16', got {self.precision!r}")
        if self.device not in {"auto", "cpu"}:
            raise ValueError(f"device must be 'auto' or 'cpu', got {self.device!r}")
        if not self.train_data:
            raise ValueError("train_data must name at least one file")


def load_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Read the settings of a run: the names of `TrainingConfig`, and a table [loss] with those of `LossSettings`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML, misses a setting, has an unknown one, or one of the wrong type or range.
    """
    file = Path(path)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also of text that is not UTF-8
        raise ValueError(f"{file} is not TOML: {error}") from error
    loss = values.pop("loss", {})
    if not isinstance(loss, dict):
        raise ValueError(f"{file}: loss must be a table, [loss], got {loss!r}")  # noqa: TRY004 - the file's content
    _check(file, values, TrainingConfig)
    _check(file, loss, LossSettings)
    data = values.get("train_data", [])
    values["train_data"] = tuple(file.parent / each for each in ([data] if isinstance(data, str) else data))
    values["output_dir"] = file.parent / values["output_dir"]
    if (file.parent / values["model"]).is_dir():
        values["model"] = str(file.parent / values["model"])
    return TrainingConfig(**values, loss=LossSettings(**loss))


def _check(file: Path, values: dict[str, Any], kind: type) -> None:
    fields = {each.name: each for each in dataclasses.fields(kind) if each.name != "loss"}
    if unknown := sorted(set(values).difference(fields)):
        raise ValueError(f"{file} has unknown settings: {', '.join(unknown)}. Known: {', '.join(sorted(fields))}")
    required = {name for name, each in fields.items() if _is_required(each)}
    if missing := sorted(required.difference(values)):
        raise ValueError(f"{file} lacks {', '.join(missing)}")
    for name, value in values.items():
        _check_type(file, name, value, str(fields[name].type))


def _default(setting: dataclasses.Field[Any]) -> object:
    make = setting.default_factory
    return setting.default if make is dataclasses.MISSING else make()


def _is_required(setting: dataclasses.Field[Any]) -> bool:
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING


def _check_type(file: Path, name: str, value: object, kind: str) -> None:
    """Hold a value of the file to the annotation of its setting."""
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    types = accepted.get(kind, (str, list))
    is_misplaced_flag = isinstance(value, bool) and kind != "bool"
    is_misfilled_list = isinstance(value, list) and not all(isinstance(each, str) for each in value)
    if not isinstance(value, types) or is_misplaced_flag or is_misfilled_list:
        raise ValueError(f"{file}: {name} must be of type {kind}, got {value!r}")
