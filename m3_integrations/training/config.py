"""The settings of one stage of training."""

from __future__ import annotations

import dataclasses
import math
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
"""What is evaluated in each stage; by the last one the best checkpoint is chosen, unless the settings say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrainingConfig:
    """Settings of one stage. Paths in a file are relative to that file.

    Attributes:
        model: A checkpoint folder or a repository of the hub.
        train_data: Files in FlagEmbedding's JSONL, or folders of them; for RetroMAE what `read_texts` reads.
        output_dir: Where checkpoints, the log and the trained checkpoint (`final`) go.
        steps: Batches to train on.
        stage: "retromae" trains the encoder to put a text into [CLS]; "contrastive" trains the dense mode alone on
            pairs, whatever train_group_size is; "unified" trains all three modes. The first two keep the heads of the
            checkpoint as they are, and write none where it has none.
        positions: The most tokens that the trained checkpoint reads; 0 for as many as before. See `extend_positions`.
        encoder_mask: RetroMAE: which part of a text's tokens the encoder does not see; above 0 and below 1.
        decoder_mask: RetroMAE: which part of the other tokens the decoder does not see when it predicts one; Xiao et
            al. 2022 have 0.5 to 0.7.
        steps_before_distillation: Batches on which the modes learn alone before the ensemble teaches them, since the
            lexical head begins at random. The paper has about 6,000 (appendix C).
        eval_data: A folder that `read_dataset` reads. nDCG@10 of every mode that the stage trains is measured on it,
            before the first step as well, and `final` is the best checkpoint, not the last. None: the last.
        eval_every: Steps between two evaluations.
        best_by: Which mode decides what is best: "dense", "lexical", "multi_vector" or "search:all". "auto" is
            "search:all", or "dense" where that alone is trained.
        early_stop: Training ends after so many evaluations in a row without a better one; 0 for never.
        batch_size: Queries in a batch; texts, for RetroMAE.
        train_group_size: Passages per query; 1 for the positive alone, with the batch's others as negatives.
        query_max_length: The most tokens of a query, special tokens included.
        passage_max_length: The same for passages, and for the texts of RetroMAE.
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
        batch_size_by_length: Instead of batch_size, that of each length group: "1000" = 768 for the examples whose
            longest passage has at most 1,000 tokens and more than the group before. See the README for the paper's.
        keep_last_batch: Whether the examples of an epoch that do not fill a batch are one.
        same_dataset_within_batch: Whether a batch holds examples of one file only.
        shuffle_ratio: The part of the passages of more than 100 characters that are cut in three and put together in
            another order; the paper has 0.002.
        sub_batch_tokens: Texts are encoded so many tokens at a time, padding included, by `split_batch`; 0 for all at
            once.
        split_batch: "gradient_cache" or "checkpointing": see `Split`. The second needs gradient_checkpointing.
        negatives_cross_device: Whether the passages of all devices are each query's negatives, in all modes.
        free_layers: How many of the backbone's last layers are trained; 0 for the heads alone, -1 for everything.
        start_weight: How much of the weights that training began with is in the result, from 0 to below 1: against
            forgetting (Xiao et al. 2023, "LM-Cocktail"). A checkpoint on the way has none of it.
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
        """Only what is not the default."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.changed().items())})"

    def __post_init__(self) -> None:
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
        if self.precision not in {"float32", "float16", "bfloat16"}:
            raise ValueError(f"precision must be 'float32', 'float16' or 'bfloat16', got {self.precision!r}")
        if self.device not in {"auto", "cpu"}:
            raise ValueError(f"device must be 'auto' or 'cpu', got {self.device!r}")
        if not self.train_data:
            raise ValueError("train_data must name at least one file")
        self._check_stage()
        self._check_batching()

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
        if self.early_stop and self.eval_data is None:
            raise ValueError(f"early_stop = {self.early_stop} needs eval_data: there is nothing that could get worse")

    @property
    def columns(self) -> tuple[str, ...]:
        """The modes that are evaluated in this stage."""
        return _COLUMNS[self.stage]

    @property
    def decisive(self) -> str:
        """The mode that decides which checkpoint is best."""
        return self.columns[-1] if self.best_by == "auto" else self.best_by

    def changed(self) -> dict[str, Any]:
        """Return the settings that are not the defaults."""
        own = {each.name: (getattr(self, each.name), each) for each in dataclasses.fields(self)}
        return {name: value for name, (value, each) in own.items() if value != _default(each)}


def _default(setting: dataclasses.Field[Any]) -> object:
    make = setting.default_factory
    return setting.default if make is dataclasses.MISSING else make()
