"""Write a checkpoint that others read too."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Final

import torch
from torch import nn

from m3_integrations.checkpoint.files import CONFIG, HEADS
from m3_integrations.checkpoint.heads import Heads
from m3_integrations.tokenizer import Tokenizer

_UNFINISHED: Final = ".unfinished"
"""Name of the folder that a checkpoint is written to before its files are moved to their places."""


def save_checkpoint(
    folder: str | os.PathLike[str],
    *,
    backbone: nn.Module,
    heads: Heads | None,
    tokenizer: Tokenizer,
    is_replacing: bool = False,
) -> None:
    """Write a checkpoint that `find_checkpoint`, FlagEmbedding and sentence-transformers read.

    The backbone goes to model.safetensors, the heads to colbert_linear.pt and sparse_linear.pt. modules.json and
    1_Pooling tell sentence-transformers that the dense vector is [CLS] at unit length. All files are written aside and
    then moved, config.json last: what a killed process left without it is no checkpoint and can be replaced.

    Args:
        folder: Is made if absent. Nothing else in it is deleted.
        backbone: A model of transformers, or this package's own.
        heads: None for a dense-only checkpoint.
        tokenizer: Its tokenizer.
        is_replacing: Whether a checkpoint that the folder holds is replaced.

    Raises:
        FileExistsError: If the folder holds a checkpoint already, unless it is to be replaced.
        ValueError: If the backbone's weights are rounded to 8 bits: what was lost would be missing for good.
    """
    if any(buffer.dtype == torch.int8 for buffer in backbone.buffers()):
        raise ValueError("a network in int8 cannot be saved: load it with dtype='float32' to save it")
    target = Path(folder)
    if (target / CONFIG).exists() and not is_replacing:
        raise FileExistsError(f"{target} holds a checkpoint already: choose an empty folder")
    aside = target / _UNFINISHED
    if aside.exists():
        shutil.rmtree(aside)  # what a killed process left
    aside.mkdir(parents=True)
    try:
        # On a CPU weights may lie in oneDNN's own order, which no file format knows.
        state = {name: value.to_dense() if value.is_mkldnn else value for name, value in backbone.state_dict().items()}
        backbone.save_pretrained(aside, state_dict=state)  # type: ignore[operator]
        tokenizer.source.save_pretrained(aside)
        if heads is not None:
            for name, head in zip(HEADS, (heads.multi_vector, heads.lexical), strict=True):
                values = {key: value.detach().cpu() for key, value in head.state_dict().items()}
                torch.save(values, aside / f"{name}.pt")
        _write_modules(aside, backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
        (target / CONFIG).unlink(missing_ok=True)
        written = [path for path in aside.rglob("*") if path.is_file()]
        for path in sorted(written, key=lambda path: path == aside / CONFIG):
            place = target / path.relative_to(aside)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
    finally:
        shutil.rmtree(aside)


def _write_modules(folder: Path, dim: int) -> None:
    """Write how a dense vector is made; without it sentence-transformers would take the mean over the tokens."""
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    pooling = {"word_embedding_dimension": dim, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling").mkdir()
    for name, content in (("modules.json", listed), ("1_Pooling/config.json", pooling)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
