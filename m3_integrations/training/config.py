"""The settings of one stage of training."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from m3_integrations.training.losses import LossSettings
from m3_integrations.training.split import SPLIT_KINDS

STAGES: Final = ("retromae", "contrastive", "unified")
"""The paper's three stages, in their order."""

_COLUMNS: Final = {
    "retromae": ("dense",),
    "contrastive": ("dense",),
    "unified": ("dense", "lexical", "multi_vector", "search:all"),
}
"""The modes that are evaluated in each stage. The last one chooses the best checkpoint, unless `best_by` is set."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrainingConfig:
    """Settings of one stage. Paths in a file are relative to that file. A path may be a string, which becomes a Path.

    Attributes:
        model: A checkpoint folder or a repository of the hub.
        train_data: Files in FlagEmbedding's JSONL, or folders of them; for RetroMAE files that `read_texts` reads. One
            path alone becomes a tuple of it.
        output_dir: The folder for checkpoints, the log and the trained checkpoint (`final`).
        steps: The number of batches to train on.
        stage: "retromae" trains the encoder to put a text into [CLS]. "contrastive" trains only the dense mode, on
            pairs, whatever train_group_size is. "unified" trains all three modes. The first two do not change the heads
            of the checkpoint, and write none if it has none.
        positions: The most tokens that the trained checkpoint reads; 0 for as many as before. See `extend_positions`.
        encoder_mask: RetroMAE: the share of a text's tokens that the encoder does not see; above 0 and below 1.
        decoder_mask: RetroMAE: the share of the other tokens that the decoder does not see when it predicts a token;
            above 0 and below 1. Xiao et al. 2022 have 0.5 to 0.7.
        steps_before_distillation: The number of batches on which the modes learn without the ensemble as their teacher,
            because the lexical head begins at random. The paper has about 6,000 (appendix C).
        eval_data: A folder that `read_dataset` reads. nDCG@10 of every mode that the stage trains is measured on it,
            also before the first step, and `final` is the best of the later checkpoints, even if the start was better:
            a line and the card say so then. None: `final` is the last checkpoint.
        eval_every: Steps between two evaluations.
        best_by: The mode that decides which checkpoint is the best: "dense", "lexical", "multi_vector" or "search:all".
            "auto" is "search:all", or "dense" if only the dense mode is trained.
        early_stop: Training ends after this number of evaluations in a row without a better one; 0 for never.
        batch_size: Queries in a batch; for RetroMAE, texts.
        train_group_size: Passages per query; 1 for the positive alone, with the batch's other passages as negatives,
            which needs in_batch_negatives.
        query_max_length: The most tokens of a query, special tokens included.
        passage_max_length: The most tokens of a passage, or of a text of RetroMAE, special tokens included.
        query_instruction: Put before every query whose example has no prompt.
        learning_rate: The peak of the learning rate.
        warmup_steps: The learning rate rises linearly over this number of steps, then falls linearly to zero.
        weight_decay: The weight decay of AdamW.
        max_grad_norm: Longer gradients are scaled down to this norm; 0 never scales them.
        gradient_accumulation_steps: Batches per update of the weights; negatives are from the same batch only.
        freeze_position_embeddings: Whether the position embeddings are not trained; for training on texts that are much
            shorter than those that will be searched.
        gradient_checkpointing: Whether to compute activations twice instead of keeping them in memory.
        precision: The type of the forward pass: "float32", "bfloat16", or on a GPU "float16". Weights stay float32.
        device: "auto", or "cpu" to use no accelerator.
        seed: The seed of the batches and of dropout, from 0 to 4,294,967,295.
        log_every: Steps between two lines of the log.
        save_every: Steps between two checkpoints.
        keep_checkpoints: The number of the last checkpoints that are kept.
        dead_head_patience: Training stops after this number of batches in a row with a dead head.
        loss: The numbers of the loss. "contrastive" uses temperature, mask_known_answers and false_negative_margin,
            and refuses knowledge_distillation and in_batch_negatives = false; "retromae" uses none.
        batch_size_by_length: The batch size of each length group, instead of batch_size: "1000" = 768 is for the
            examples whose longest passage has at most 1,000 tokens, and more than the group before allows. The README
            has the paper's numbers.
        keep_last_batch: Whether the examples of an epoch that do not fill a batch form a smaller one.
        same_dataset_within_batch: Whether a batch has examples of one file only.
        shuffle_ratio: The share of the passages longer than 100 characters that are cut into three segments and joined
            in another order; the paper has 0.002.
        sub_batch_tokens: The most tokens that are encoded at a time, padding included, in the way of `split_batch`; 0
            for no limit.
        split_batch: "gradient_cache" or "checkpointing": see `Split`. The second needs gradient_checkpointing.
        negatives_cross_device: Whether the passages of all devices are negatives of each query, in all modes.
        free_layers: The number of the backbone's last layers that are trained; 0 for only the heads, which only
            "unified" trains, -1 for everything.
        start_weight: The share of the start's weights in the result, from 0 to below 1. It reduces what the model
            forgets (Xiao et al. 2023, "LM-Cocktail"). Checkpoints before the end are not averaged.
    """

    model: str
    train_data: tuple[Path, ...]
    output_dir: Path
    steps: int
    stage: str = "unified"
    positions: int = 0
    encoder_mask: float = 0.3
    decoder_mask: float = 0.5
    steps_before_distillation: int = 0
    eval_data: Path | None = None
    eval_every: int = 500
    best_by: str = "auto"
    early_stop: int = 0
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
    batch_size_by_length: dict[str, int] = field(default_factory=dict)
    keep_last_batch: bool = False
    same_dataset_within_batch: bool = False
    shuffle_ratio: float = 0.0
    sub_batch_tokens: int = 0
    split_batch: str = "gradient_cache"
    negatives_cross_device: bool = True
    free_layers: int = -1
    start_weight: float = 0.0

    def __repr__(self) -> str:
        """Return the class's name with the settings that differ from their defaults."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.changed().items())})"

    def __post_init__(self) -> None:
        self._make_paths()
        for name in ("steps", "batch_size", "train_group_size", "gradient_accumulation_steps", "log_every",
                     "save_every", "eval_every", "keep_checkpoints", "dead_head_patience"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 3:
                raise ValueError(f"{name} must be at least 3 ([CLS], one token, [SEP]), got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "steps_before_distillation", "positions",
                     "early_stop"):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:  # as numpy has it
            raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")
        if self.precision not in {"float32", "float16", "bfloat16"}:
            raise ValueError(f"precision must be 'float32', 'float16' or 'bfloat16', got {self.precision!r}")
        if self.device not in {"auto", "cpu"}:
            raise ValueError(f"device must be 'auto' or 'cpu', got {self.device!r}")
        if not self.train_data:
            raise ValueError("train_data must name at least one file")
        self._check_stage()
        self._check_batching()
        self._check_something_is_learnt()

    def _make_paths(self) -> None:
        """Turn strings into paths, and one path of training data into a tuple of it."""
        data: object = self.train_data
        paths = {
            "model": os.fspath(self.model),
            "train_data": tuple(map(Path, [data] if isinstance(data, str | os.PathLike) else self.train_data)),
            "output_dir": Path(self.output_dir),
            "eval_data": None if self.eval_data is None else Path(self.eval_data),
        }
        for name, value in paths.items():
            object.__setattr__(self, name, value)

    def _check_batching(self) -> None:
        groups = self.batch_size_by_length
        for name, size in groups.items():
            if not name.isdecimal() or size < 1:
                raise ValueError(f'batch_size_by_length must be as "1000" = 768 has it, got {name!r} = {size}')
        if groups and (longest := max(map(int, groups))) < self.passage_max_length:
            raise ValueError(
                f"batch_size_by_length ends at {longest} tokens, and passage_max_length is {self.passage_max_length}"
            )
        if not 0 <= self.shuffle_ratio <= 1:
            raise ValueError(f"shuffle_ratio must be from 0 to 1, got {self.shuffle_ratio}")
        if self.sub_batch_tokens < 0:
            raise ValueError(f"sub_batch_tokens must be 0 or more, got {self.sub_batch_tokens}")
        if self.split_batch not in SPLIT_KINDS:
            raise ValueError(f"split_batch must be one of {', '.join(SPLIT_KINDS)}, got {self.split_batch!r}")
        if self.sub_batch_tokens and self.split_batch == "checkpointing" and not self.gradient_checkpointing:
            raise ValueError('split_batch = "checkpointing" saves nothing without gradient_checkpointing = true')
        if self.free_layers < -1:
            raise ValueError(f"free_layers must be -1 or more, got {self.free_layers}")
        if not 0 <= self.start_weight < 1:
            raise ValueError(f"start_weight must be 0 or more and below 1, got {self.start_weight}")

    def _check_stage(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        for name in ("encoder_mask", "decoder_mask"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {getattr(self, name)}")
        if self.best_by not in {"auto", *self.columns}:
            raise ValueError(f"best_by must be auto or one of {', '.join(self.columns)}, got {self.best_by!r}")
        if self.stage == "retromae" and (self.sub_batch_tokens or self.batch_size_by_length):
            raise ValueError(
                "retromae has no sub_batch_tokens and no batch_size_by_length: put them into [contrastive] or [unified]"
            )
        if self.stage == "contrastive" and (self.loss.knowledge_distillation or not self.loss.in_batch_negatives):
            raise ValueError(
                "contrastive has no knowledge_distillation, and its only negatives are in_batch_negatives: leave these "
                "settings out, or put them into [unified.loss]"
            )
        if self.early_stop and self.eval_data is None:
            raise ValueError(f"early_stop = {self.early_stop} needs eval_data: there is nothing that could get worse")

    def _check_something_is_learnt(self) -> None:
        if self.stage != "unified" and not self.free_layers:
            raise ValueError(
                f"free_layers = 0 trains only the heads, which the stage {self.stage} does not change: put it into "
                "[unified], or free some layers"
            )
        if self.stage == "unified" and self.train_group_size == 1 and not self.loss.in_batch_negatives:
            raise ValueError(
                "train_group_size = 1 and in_batch_negatives = false leave a query no negatives: change one of them"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The modes that are evaluated in this stage."""
        return _COLUMNS[self.stage]

    @property
    def decisive(self) -> str:
        """The mode that decides which checkpoint is best."""
        return self.columns[-1] if self.best_by == "auto" else self.best_by

    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults."""
        own = {each.name: (getattr(self, each.name), each) for each in dataclasses.fields(self)}
        return {name: value for name, (value, each) in own.items() if value != _default(each)}


def _default(setting: dataclasses.Field[Any]) -> object:
    make = setting.default_factory
    return setting.default if make is dataclasses.MISSING else make()
