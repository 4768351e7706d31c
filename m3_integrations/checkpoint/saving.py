"""Write a checkpoint that FlagEmbedding and sentence-transformers read too."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from m3_integrations.checkpoint.files import CONFIG, HEADS
from m3_integrations.checkpoint.heads import Heads
from m3_integrations.checkpoint.modules import DensePooling, count_positions, write_modules
from m3_integrations.tokenizer import Tokenizer

_UNFINISHED: Final = ".unfinished"
"""Subfolder in which all files are written before they are moved to their places."""


def save_checkpoint(
    folder: str | os.PathLike[str],
    *,
    backbone: nn.Module,
    heads: Heads | None,
    tokenizer: Tokenizer,
    pooling: DensePooling = "cls",
    max_length: int | None = None,
    is_replacing: bool = False,
) -> None:
    """Write a checkpoint that `find_checkpoint`, FlagEmbedding and sentence-transformers read.

    The backbone goes to model.safetensors, the heads to colbert_linear.pt and sparse_linear.pt. modules.json, 1_Pooling
    and sentence_bert_config.json tell sentence-transformers, and what is built on it, how the dense vector is made and
    where texts are cut. All files are written to a subfolder and then moved, config.json last. If the process is killed
    before that, the folder has no config.json and a later call may write into it.

    Args:
        folder: Created if absent. Other files in it stay.
        backbone: A model of transformers, or an `XlmRoberta`.
        heads: None for a dense-only checkpoint.
        tokenizer: Its tokenizer.
        pooling: How its dense vectors are made.
        max_length: The most tokens of a text; None for as many as there are positions.
        is_replacing: Whether a checkpoint that the folder holds is replaced.

    Raises:
        FileExistsError: If the folder holds a checkpoint and `is_replacing` is false.
        ValueError: If the backbone computes in int8: its weights are rounded to 8 bits.
    """
    if any(buffer.dtype == torch.int8 for buffer in backbone.buffers()):
        raise ValueError(
            "an int8 network cannot be saved because its weights are rounded: load it with dtype='float32'"
        )
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"a checkpoint must be a folder, but {target} is a file: choose another path")
    if (target / CONFIG).exists() and not is_replacing:
        raise FileExistsError(f"{target} holds a checkpoint already: choose an empty folder")
    aside = target / _UNFINISHED
    if aside.exists():
        shutil.rmtree(aside)  # from a killed process
    aside.mkdir(parents=True)
    try:
        # On a CPU weights may be in oneDNN's own layout, which cannot be written to a file.
        state = {name: value.to_dense() if value.is_mkldnn else value for name, value in backbone.state_dict().items()}
        backbone.save_pretrained(aside, state_dict=state)  # type: ignore[operator]
        tokenizer.source.save_pretrained(aside)
        if heads is not None:
            for name, head in zip(HEADS, (heads.multi_vector, heads.lexical), strict=True):
                values = {key: value.detach().cpu() for key, value in head.state_dict().items()}
                torch.save(values, aside / f"{name}.pt")
        config: Any = backbone.config
        limit = count_positions(backbone) if max_length is None else max_length
        write_modules(aside, dim=config.hidden_size, pooling=pooling, limit=limit)
        (target / CONFIG).unlink(missing_ok=True)
        written = [path for path in aside.rglob("*") if path.is_file()]
        for path in sorted(written, key=lambda path: path == aside / CONFIG):
            place = target / path.relative_to(aside)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
    finally:
        shutil.rmtree(aside)
