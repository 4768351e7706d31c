"""A training run from its start, or from its last checkpoint after it was killed, to its end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import TrainerState, TrainingArguments, set_seed

from m3_integrations.checkpoint import BUNDLED, find_checkpoint, head_files, weight_files
from m3_integrations.checkpoint.architectures import without_bars
from m3_integrations.model import limit_threads
from m3_integrations.training.averaging import mix_in_start
from m3_integrations.training.card import CARD, describe_stage, extend_record, write_card
from m3_integrations.training.config import TrainingConfig
from m3_integrations.training.data import Example, TrainingBatches, read_examples
from m3_integrations.training.dense import DenseNetwork, DenseTrainer
from m3_integrations.training.health import HeadWatch
from m3_integrations.training.masking import MaskedBatches, read_texts
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.plot import plot_losses, plot_quality
from m3_integrations.training.positions import extend_positions
from m3_integrations.training.progress import Progress
from m3_integrations.training.retromae import RetroMAENetwork, RetroMAETrainer
from m3_integrations.training.split import Split
from m3_integrations.training.stages import FINAL_FOLDER, load_stages
from m3_integrations.training.trainer import M3Trainer, Measure, find_last_checkpoint, is_exhausted, read_state

if TYPE_CHECKING:
    from m3_integrations.training.validation import Validation

_SETTINGS_FILE: Final = "settings.json"
_FREE: Final = frozenset({
    "model", "train_data", "output_dir", "gradient_checkpointing", "device", "log_every", "save_every",
    "keep_checkpoints", "dead_head_patience", "eval_data", "sub_batch_tokens", "split_batch",
})  # fmt: skip
"""The settings that may differ when a run goes on. The weights are the checkpoint's, and the data's contents are
compared, not their paths."""

_KINDS: Final[dict[str, tuple[type[Any], type[M3Trainer]]]] = {
    "retromae": (RetroMAENetwork, RetroMAETrainer),
    "contrastive": (DenseNetwork, DenseTrainer),
    "unified": (TrainingNetwork, M3Trainer),
}
"""The network and the trainer of each stage."""


def run_training(config_path: str | os.PathLike[str], *, show_progress: bool = True) -> Path:
    """Train with the settings of a TOML file; a killed run continues from its last checkpoint, in its stage.

    Args:
        config_path: The file; see `load_stages` for its form and `TrainingConfig` for its settings.
        show_progress: Whether to write a line for every `log_every` steps to standard error.

    Returns:
        The folder of the trained checkpoint, the last stage's, which `M3Encoder`, FlagEmbedding and
        sentence-transformers read, with a model card. Beside it lie loss.png and, with `eval_data`, quality.png.

    Raises:
        FileNotFoundError: If the file, the data or the checkpoint does not exist.
        FileExistsError: If the run has ended already.
        ValueError: If a setting, the data or the checkpoint is invalid, or if a run that goes on was begun with other
            settings or data.
        HeadDiedError: If a head dies.
    """
    stages = load_stages(config_path)
    for config in stages[:-1]:
        if not _has_ended(config):
            train(config, show_progress=show_progress)
            continue
        _hold_to_settings(config, _read_data(config), _digest(_open_validation(config)), is_going_on=True)
        Progress(config.stage, is_shown=show_progress).say(f"is done already, in {config.output_dir / FINAL_FOLDER}")
    return train(stages[-1], show_progress=show_progress)


def train(config: TrainingConfig, *, show_progress: bool = True) -> Path:
    """Train one stage with these settings. The result and the errors are those of `run_training`."""
    with without_bars():  # transformers would draw a bar for each checkpoint that it writes
        return _train(config, show_progress=show_progress)


def _train(config: TrainingConfig, *, show_progress: bool) -> Path:
    final = config.output_dir / FINAL_FOLDER
    if _has_ended(config):
        raise FileExistsError(f"{final} holds this run's result already: choose another output_dir")
    data, validation, last = _read_data(config), _open_validation(config), find_last_checkpoint(config.output_dir)
    arguments = _arguments(config, is_evaluated=validation is not None, is_new=last is None)
    progress = Progress(config.stage, is_shown=show_progress and arguments.should_save)
    if arguments.should_save or last is not None:  # of several processes only the first writes the settings
        _hold_to_settings(config, data, _digest(validation), is_going_on=last is not None)
    set_seed(config.seed)
    base = find_checkpoint(config.model)
    trainer = _open_trainer(config, base, data, progress, validation, arguments=arguments)
    if last is not None:
        trainer.state = read_state(last)
        progress.say(f"continues from {last}, step {trainer.state.global_step:,} of {trainer.args.max_steps:,}")
    if last is None or not is_exhausted(trainer.state, config.eval_every, config.early_stop):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.is_world_process_zero():
        card = _finish(config, base, trainer, examples=len(data))
        if card.name != CARD:
            progress.say(f"{final / CARD} is not this command's and stays as it is; the card is {card}")
    trainer.accelerator.wait_for_everyone()  # no process returns before the first has written the result
    return final


def _read_data(config: TrainingConfig) -> Sequence[Example] | Sequence[str]:
    return read_texts(config.train_data) if config.stage == "retromae" else read_examples(config.train_data)


def _open_validation(config: TrainingConfig) -> Validation | None:
    """Return the validation of the network; None without eval_data."""
    if config.eval_data is None:
        return None
    from m3_integrations.training.validation import Validation  # noqa: PLC0415 - the extra `evaluation` is needed

    return Validation(
        config.eval_data,
        columns=config.columns,
        work=config.output_dir,
        device=config.device,
        dtype=config.precision,
        query_instruction=config.query_instruction,
    )


def _digest(validation: Validation | None) -> str | None:
    return None if validation is None else validation.digest


def _hold_to_settings(
    config: TrainingConfig, data: Sequence[Example] | Sequence[str], eval_data: str | None, *, is_going_on: bool
) -> None:
    """Write the settings of a new run to a file, or raise ValueError if a run would go on with other settings."""
    digest = hashlib.blake2b(digest_size=16)
    for item in data:
        digest.update(json.dumps(item if isinstance(item, str) else dataclasses.astuple(item)).encode())
    own = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    own |= {"train_data": digest.hexdigest(), "eval_data": eval_data}
    file = config.output_dir / _SETTINGS_FILE
    if not is_going_on:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    elif file.exists():  # not in a folder of an earlier version
        # A setting that the file lacks did not exist when the run began: then the run had the default.
        begun = {name: value for name, value in own.items() if name not in config.changed()}
        try:
            begun |= json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}. Delete it to go on with the settings as they are") from error
        if other := [name for name, value in own.items() if begun.get(name) != value]:
            raise ValueError(
                f"the run in {config.output_dir} was begun with another {', '.join(other)}: use the earlier settings, "
                "or choose another output_dir"
            )


def _open_trainer(
    config: TrainingConfig,
    base: Path,
    data: Any,
    progress: Progress,
    measure: Measure | None,
    *,
    arguments: TrainingArguments,
) -> M3Trainer:
    """Return the trainer of a stage, at its first step."""
    network = _load(config, base)
    if config.free_layers >= 0:
        network.freeze_backbone(config.free_layers)
    if config.sub_batch_tokens:
        network.split = Split(max_tokens=config.sub_batch_tokens, kind=config.split_batch)
    if config.freeze_position_embeddings:
        network.freeze_position_embeddings()
    if config.gradient_checkpointing:
        network.checkpoint_activations()
    make_batches = _mask if config.stage == "retromae" else _pair
    return _KINDS[config.stage][1](
        network,
        make_batches(config, data, network, arguments),
        arguments,
        loss_settings=config.loss,
        watch=HeadWatch(config.dead_head_patience),
        progress=progress,
        measure=measure,
        early_stop=config.early_stop,
        steps_before_distillation=config.steps_before_distillation,
        is_gathered=_is_gathered(config),
    )


def _load(config: TrainingConfig, base: Path) -> Any:
    """Return the network of a stage before its first step."""
    limit_threads()
    network = _KINDS[config.stage][0].load(base)
    if config.positions:
        extend_positions(network.backbone, network.tokenizer, config.positions)
    return network


def _is_gathered(config: TrainingConfig) -> bool:
    return config.negatives_cross_device and config.loss.in_batch_negatives


def _mask(
    config: TrainingConfig, texts: Sequence[str], network: RetroMAENetwork, arguments: TrainingArguments
) -> MaskedBatches:
    return MaskedBatches(
        texts,
        network.tokenizer,
        batch_size=config.batch_size,
        max_length=config.passage_max_length,
        encoder_mask=config.encoder_mask,
        decoder_mask=config.decoder_mask,
        steps=config.steps,
        seed=config.seed,
        process=arguments.process_index,
        processes=arguments.world_size,
    )


def _pair(
    config: TrainingConfig,
    examples: Sequence[Example],
    network: DenseNetwork | TrainingNetwork,
    arguments: TrainingArguments,
) -> TrainingBatches:
    return TrainingBatches(
        examples,
        network.tokenizer,
        batch_size={int(most): size for most, size in config.batch_size_by_length.items()} or config.batch_size,
        group_size=1 if config.stage == "contrastive" else config.train_group_size,
        query_max_length=config.query_max_length,
        passage_max_length=config.passage_max_length,
        instruction=config.query_instruction,
        steps=config.steps,
        seed=config.seed,
        one_source=config.same_dataset_within_batch,
        keeps_last=config.keep_last_batch,
        shuffle_ratio=config.shuffle_ratio,
        needs_scores=config.stage == "unified" and config.loss.knowledge_distillation,
        process=arguments.process_index,
        processes=arguments.world_size,
        is_gathered=_is_gathered(config),
    )


def _finish(config: TrainingConfig, base: Path, trainer: M3Trainer, *, examples: int) -> Path:
    """Draw the plots, write the card, then write the checkpoint: the best one, or the last one without eval_data.

    Returns:
        The path of the card.
    """
    state: TrainerState = trainer.state
    network = trainer.accelerator.unwrap_model(trainer.model)
    best = state.best_global_step if config.eval_data is not None else None
    if best is not None:
        network.restore(config.output_dir / f"checkpoint-{best}")
    plot_losses(state.log_history, config.output_dir / "loss.png")
    if config.eval_data is not None:
        plot_quality(state.log_history, config.output_dir / "quality.png")
    if config.start_weight:
        _mix(network, _load(config, base), config.start_weight, has_heads=bool(head_files(base)))
    final = config.output_dir / FINAL_FOLDER
    done = describe_stage(
        config.changed(),
        model=config.model,
        data=config.train_data,
        examples=examples,
        history=state.log_history,
        best_step=best,
    )
    hub_name = None if Path(config.model).is_dir() or config.model in BUNDLED else config.model
    card = write_card(final, extend_record(base, done, hub_name=hub_name))
    network.save(final, is_replacing=True)
    return card


def _mix(network: TrainingNetwork, start: TrainingNetwork, start_weight: float, *, has_heads: bool) -> None:
    """Average the trained weights with the start's; heads that the start did not have are not changed."""
    if has_heads:
        mix_in_start(network, start, start_weight)
    else:
        mix_in_start(network.backbone, start.backbone, start_weight)


def _has_ended(config: TrainingConfig) -> bool:
    return is_whole(config.output_dir / FINAL_FOLDER, needs_heads=config.stage == "unified")


def is_whole(final: Path, *, needs_heads: bool = True) -> bool:
    """Return whether a stage saved its whole result; after a kill while saving, config.json or the heads are missing.

    Args:
        final: The folder of the result.
        needs_heads: Whether the result must have heads, because the stage trains them.
    """
    has_network = (final / "config.json").exists() and bool(weight_files(final))
    return has_network and (len(head_files(final)) == 2 or not needs_heads)


def _arguments(config: TrainingConfig, *, is_evaluated: bool, is_new: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(config.output_dir),
        max_steps=-(-config.steps // config.gradient_accumulation_steps),
        per_device_train_batch_size=1,  # each item of the dataset is a whole batch
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
        eval_strategy="steps" if is_evaluated else "no",
        eval_steps=config.eval_every if is_evaluated else None,
        eval_on_start=is_evaluated and is_new,
        metric_for_best_model=f"eval_{config.decisive}" if is_evaluated else None,
        greater_is_better=True if is_evaluated else None,
        save_steps=config.save_every,
        save_total_limit=config.keep_checkpoints,
        disable_tqdm=True,  # `Progress` writes lines instead
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # no buffer changes, and a write between two passes breaks the backward pass
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=[],
    )
