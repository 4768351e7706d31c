"""The fingerprint of a checkpoint: it depends on the model, and not on its name or its file format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

import torch

from m3_integrations.checkpoint import (
    BUNDLED,
    find_checkpoint,
    head_files,
    load_tokenizer,
    read_pooling,
    read_tensors,
    weight_files,
)

_SAMPLE: Final = 4096
"""The most values used from each tensor, evenly spaced: fine-tuning changes all of them, and all 2 GB take seconds."""

_CONFIG_KEYS: Final = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
)


def checkpoint_fingerprint(folder: Path, vocabulary: Sequence[str]) -> str:
    """Return 32 hexadecimal digits of a checkpoint's configuration, vocabulary, pooling, heads and weights.

    They are the same for weights in safetensors or in a `.bin`, in float32 or rounded to float16.

    Args:
        folder: The checkpoint.
        vocabulary: The token of every id.
    """
    digest = blake2b(digest_size=16)
    config = json.loads((folder / "config.json").read_bytes())
    digest.update(json.dumps({key: config.get(key) for key in _CONFIG_KEYS}).encode())
    digest.update("\0".join(vocabulary).encode())
    if (pooling := read_pooling(folder)) != "cls":
        digest.update(pooling.encode())  # the same weights give other vectors
    seen: dict[str, bytes] = {}
    for path in [*weight_files(folder), *head_files(folder)]:
        prefix = path.stem if path.stem.endswith("_linear") else ""
        for name, read in read_tensors(path):
            tensor = read()
            seen.setdefault(f"{prefix}/{name} {tuple(tensor.shape)}", _sample(tensor))
    for name in sorted(seen):
        if "pooler." not in name and "position_ids" not in name:  # the network uses neither
            digest.update(name.encode() + seen[name])
    return digest.hexdigest()


def bundled_checkpoint(fingerprint: str) -> str | None:
    """Return the name of the checkpoint in this package that has a fingerprint; None if neither has it."""
    for name in BUNDLED:
        folder = find_checkpoint(name)
        if checkpoint_fingerprint(folder, load_tokenizer(folder).vocabulary) == fingerprint:
            return name
    return None


def _sample(tensor: torch.Tensor) -> bytes:
    flat = tensor.reshape(-1)
    step = max(len(flat) // _SAMPLE, 1)
    return flat[::step][:_SAMPLE].to(torch.float16).contiguous().numpy().tobytes()
