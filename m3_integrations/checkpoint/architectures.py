"""Load a backbone with transformers: architectures and files that this package's own XLM-RoBERTa cannot load.

Importing transformers' models also imports torch._dynamo and torch.distributed: 2 to 3 s of CPU. BGE-M3 needs neither.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from m3_integrations.checkpoint.files import DAMAGE, read_tensors, weight_files

_DAMAGE: Final = (*DAMAGE, StrictDataclassError)


def load_backbone(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load a checkpoint's encoder with every weight from the files, in evaluation mode, on the CPU.

    Raises:
        ValueError: If the folder has no readable configuration or weights, if weights are missing or have another
            shape.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_architecture(folder, config)
        arguments = {"add_pooling_layer": _has_pooler_weights(folder)} if _takes_pooler(config) else {}
        with nullcontext() if sys.stderr is not None and sys.stderr.isatty() else without_bars():
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                **arguments,
            )
    except _DAMAGE as error:
        raise ValueError(f"the encoder in {folder} cannot be loaded: {error}") from error
    if deeper := sorted(key for key in report["unexpected_keys"] if re.search(r"\blayers?\.\d+\.", key)):
        raise ValueError(
            f"{folder} has {len(deeper)} weights of layers that its config.json does not count, such as {deeper[0]}: "
            "correct num_hidden_layers"
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weights of the network: {', '.join(missing[:5])}")
    if _takes_pooler(config):
        model.pooler = None  # not used: `M3Network` reads the hidden states
    backbone: nn.Module = model.eval()
    return backbone.requires_grad_(False)


@contextmanager
def without_bars() -> Iterator[None]:
    """Turn off transformers' progress bars, such as "Loading weights": in a log every step is a line."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _check_architecture(folder: Path, config: Any) -> None:
    """Raise ValueError unless the model is a bidirectional encoder with a known number of positions."""
    positions = getattr(config, "max_position_embeddings", None)
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    if not is_encoder or not isinstance(positions, int) or positions < 1:
        raise ValueError(
            f"{folder} holds a {config.model_type} model: use an encoder with position embeddings, such as xlm-roberta "
            "or bert"
        )


def _takes_pooler(config: Any) -> bool:
    """Whether the architecture can be loaded with and without a pooling layer."""
    return "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters


def _has_pooler_weights(folder: Path) -> bool:
    """Whether the files hold a pooling layer. If so it is loaded and dropped: transformers reports unused weights."""
    return any(name.rpartition("pooler.")[1] for path in weight_files(folder) for name, _ in read_tensors(path))
