"""Writing `small` into few bytes: float8 matrices, float16 heads, float32 norms and biases."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from m3_integrations.checkpoint import Heads, save_checkpoint
from m3_integrations.training.network import TrainingNetwork
from tests.small_recipe.distill import is_stored_in_eight_bits


def save_small(folder: Path, network: TrainingNetwork) -> None:
    """Write the checkpoint; transformers widens what is stored in eight bits, as config.json names float32."""
    heads = Heads(multi_vector=network.multi_vector_head.half(), lexical=network.lexical_head.half())
    save_checkpoint(folder, backbone=network.backbone, heads=heads, tokenizer=network.tokenizer)
    path = folder / "model.safetensors"
    state = {
        name: value.to(torch.float8_e4m3fn) if is_stored_in_eight_bits(name, value) else value
        for name, value in load_file(path).items()
    }
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config = folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    pieces = folder / "tokenizer.json"  # half of it is line breaks and spaces
    content = json.loads(pieces.read_text(encoding="utf-8"))
    pieces.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
