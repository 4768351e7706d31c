"""The folder of one stage: one run at a time has it, it holds the settings of this run, and then its result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from m3_integrations.checkpoint import head_files, load_tokenizer, weight_files
from m3_integrations.fingerprint import checkpoint_fingerprint
from m3_integrations.training.config import TrainingConfig
from m3_integrations.training.data import Example
from m3_integrations.training.stages import FINAL_FOLDER

_SETTINGS_FILE: Final = "settings.json"
_LOCK_FILE: Final = "lock"
_FREE: Final = frozenset({
    "model", "train_data", "output_dir", "gradient_checkpointing", "device", "log_every", "save_every",
    "keep_checkpoints", "dead_head_patience", "eval_data", "sub_batch_tokens", "split_batch",
})  # fmt: skip
"""The settings that may differ when a run goes on. Of the model and the data the contents are compared, not the
paths."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make a folder if it does not exist, and keep other runs out of it.

    The lock file stays: if it were deleted, two runs could each lock a file of this name.

    Raises:
        BlockingIOError: If another run holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK_FILE, timeout=0):
            yield
    except Timeout as error:
        raise BlockingIOError(
            f"another run trains in {folder}: wait until it ends, or choose another output_dir"
        ) from error


def hold_to_settings(
    config: TrainingConfig,
    data: Sequence[Example] | Sequence[str],
    eval_data: str | None,
    *,
    base: Path,
    is_going_on: bool,
) -> None:
    """Write the settings of a new run to a file, or raise ValueError if a run would go on with other settings.

    Args:
        config: The settings.
        data: The training data.
        eval_data: A hash of the validation set; None without one.
        base: The checkpoint that the stage begins with.
        is_going_on: Whether the run was begun earlier.
    """
    own = _describe(config, data, eval_data, base)
    file = config.output_dir / _SETTINGS_FILE
    if not is_going_on:
        file.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    elif file.exists():  # not in a folder of an earlier version
        # A setting that the file lacks did not exist when the run began: then the run had the default. An earlier
        # version did not write a hash of the model.
        begun = {name: value for name, value in own.items() if name == "model" or name not in config.changed()}
        try:
            begun |= json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}. Delete it to go on with the settings as they are") from error
        if other := [name for name, value in own.items() if begun.get(name) != value]:
            raise ValueError(
                f"the run in {config.output_dir} was begun with another {', '.join(other)}: use the earlier settings, "
                "or choose another output_dir"
            )


def _describe(
    config: TrainingConfig, data: Sequence[Example] | Sequence[str], eval_data: str | None, base: Path
) -> dict[str, Any]:
    """Return what must be the same when a run goes on, as values for JSON."""
    digest = hashlib.blake2b(digest_size=16)
    for item in data:
        digest.update(json.dumps(item if isinstance(item, str) else dataclasses.astuple(item)).encode())
    own = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    model = checkpoint_fingerprint(base, load_tokenizer(base).vocabulary)
    return own | {"model": model, "train_data": digest.hexdigest(), "eval_data": eval_data}


def has_ended(config: TrainingConfig) -> bool:
    """Return whether the folder of a stage holds its whole result."""
    return is_whole(config.output_dir / FINAL_FOLDER, needs_heads=config.stage == "unified")


def refuse_ended(config: TrainingConfig) -> None:
    """Raise FileExistsError if the folder of a stage holds its whole result."""
    if has_ended(config):
        raise FileExistsError(
            f"{config.output_dir / FINAL_FOLDER} holds this run's result already: choose another output_dir"
        )


def is_whole(final: Path, *, needs_heads: bool = True) -> bool:
    """Return whether a stage saved its whole result; after a kill while saving, config.json or the heads are missing.

    Args:
        final: The folder of the result.
        needs_heads: Whether the result must have heads, because the stage trains them.
    """
    has_network = (final / "config.json").exists() and bool(weight_files(final))
    return has_network and (len(head_files(final)) == 2 or not needs_heads)
