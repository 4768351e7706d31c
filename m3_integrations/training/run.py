"""A training run from its start, or from its last checkpoint after it was killed, to its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import TrainerState, TrainingArguments, set_seed

from m3_integrations.checkpoint import BUNDLED, find_checkpoint, head_files
from m3_integrations.checkpoint.architectures import without_bars
from m3_integrations.model import limit_threads
from m3_integrations.training.averaging import mix_in_start
from m3_integrations.training.card import CARD, compare_with_start, describe_stage, extend_record, write_card
from m3_integrations.training.config import TrainingConfig
from m3_integrations.training.data import Example, TrainingBatches, read_examples
from m3_integrations.training.dense import DenseNetwork, DenseTrainer
from m3_integrations.training.folder import has_ended, hold_folder, hold_to_settings, refuse_ended
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
        BlockingIOError: If another run trains in the same folder.
        ValueError: If a setting, the data or the checkpoint is invalid, or if a run that goes on was begun with other
            settings or data, or with another checkpoint.
        HeadDiedError: If a head dies.
    """
    stages = load_stages(config_path)
    for config in stages[:-1]:
        if not has_ended(config):
            train(config, show_progress=show_progress)
            continue
        eval_data = _digest(_open_validation(config))
        hold_to_settings(config, _read_data(config), eval_data, base=find_checkpoint(config.model), is_going_on=True)
        Progress(config.stage, is_shown=show_progress).say(f"is done already, in {config.output_dir / FINAL_FOLDER}")
    return train(stages[-1], show_progress=show_progress)


def train(config: TrainingConfig, *, show_progress: bool = True) -> Path:
    """Train one stage with these settings. The result and the errors are those of `run_training`."""
    with without_bars():  # transformers would draw a bar for each checkpoint that it writes
        return _train(config, show_progress=show_progress)


def _train(config: TrainingConfig, *, show_progress: bool) -> Path:
    refuse_ended(config)
    data, validation, base = _read_data(config), _open_validation(config), find_checkpoint(config.model)
    arguments = _arguments(config, is_evaluated=validation is not None)
    _check_precision(config.precision, arguments.device)
    progress = Progress(config.stage, is_shown=show_progress and arguments.should_save)
    _keep_to_one_gpu(arguments, progress)
    # Of several processes only the first writes into the folder.
    with hold_folder(config.output_dir) if arguments.should_save else nullcontext():
        last = find_last_checkpoint(config.output_dir)
        if arguments.should_save:
            refuse_ended(config)  # another run may have ended since
        if arguments.should_save or last is not None:
            hold_to_settings(config, data, _digest(validation), base=base, is_going_on=last is not None)
        arguments.eval_on_start = validation is not None and last is None
        set_seed(config.seed)
        trainer = _open_trainer(config, base, data, progress, validation, arguments=arguments)
        _run(trainer, config, last, progress)
        if trainer.is_world_process_zero():
            _finish(config, base, trainer, progress, examples=len(data))
        trainer.accelerator.wait_for_everyone()  # no process returns before the first has written the result
    return config.output_dir / FINAL_FOLDER


def _run(trainer: M3Trainer, config: TrainingConfig, last: Path | None, progress: Progress) -> None:
    """Train from the first step or from the last checkpoint to the end."""
    if last is not None:
        trainer.state = read_state(last)
        progress.say(f"continues from {last}, step {trainer.state.global_step:,} of {trainer.args.max_steps:,}")
    if last is None or not is_exhausted(trainer.state, config.eval_every, config.early_stop):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))


def _check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError for float16 on a CPU, where the forward pass would be in float32 without a word."""
    if precision == "float16" and device.type == "cpu":
        raise ValueError('precision = "float16" needs a GPU, and this run is on a CPU: use "bfloat16" or "float32"')


def _keep_to_one_gpu(arguments: TrainingArguments, progress: Progress) -> None:
    """Keep a process without torchrun to one GPU: the Trainer would split each batch, and with it the negatives."""
    if (count := arguments.n_gpu) > 1:
        arguments._n_gpu = 1
        progress.say(
            f"trains on one of {count} GPUs: torchrun --nproc-per-node {count} --no-python m3 train CONFIG uses all"
        )


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


def _finish(config: TrainingConfig, base: Path, trainer: M3Trainer, progress: Progress, *, examples: int) -> None:
    """Draw the plots, write the card, then write the checkpoint: the best one, or the last one without eval_data."""
    refuse_ended(config)  # the lock does not reach a process on another machine if its file system has none
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
        best_by=config.decisive,
        best_step=best,
    )
    hub_name = None if Path(config.model).is_dir() or config.model in BUNDLED else config.model
    card = write_card(final, extend_record(base, done, hub_name=hub_name))
    network.save(final, is_replacing=True)
    if card.name != CARD:
        progress.say(f"{final / CARD} is not this command's and stays as it is; the card is {card}")
    if (sentence := compare_with_start(done)) is not None:
        progress.say(f"warning: {sentence}")


def _mix(network: TrainingNetwork, start: TrainingNetwork, start_weight: float, *, has_heads: bool) -> None:
    """Average the trained weights with the start's; heads that the start did not have are not changed."""
    if has_heads:
        mix_in_start(network, start, start_weight)
    else:
        mix_in_start(network.backbone, start.backbone, start_weight)


def _arguments(config: TrainingConfig, *, is_evaluated: bool) -> TrainingArguments:
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
