"""Small random checkpoints in the format of BGE-M3, the same on every machine and in every version of torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")

_PAD_ID = 1


@dataclass(frozen=True)
class CheckpointShape:
    """The sizes of one checkpoint, and the seed that its weights are drawn with."""

    hidden_size: int
    layers: int
    attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    colbert_dim: int
    seed: int

    @property
    def max_length(self) -> int:
        """Tokens that a text may have: positions start after the padding's, at 2."""
        return self.max_position_embeddings - _PAD_ID - 1


SHAPES: dict[str, CheckpointShape] = {
    "small": CheckpointShape(
        hidden_size=64,
        layers=3,
        attention_heads=4,
        intermediate_size=160,
        max_position_embeddings=130,
        colbert_dim=64,
        seed=16,
    ),
    "wide": CheckpointShape(
        hidden_size=96,
        layers=2,
        attention_heads=6,
        intermediate_size=128,
        max_position_embeddings=66,
        colbert_dim=32,
        seed=17,
    ),
}


def build_checkpoint(folder: Path, shape: str) -> Path:
    """Write a complete random checkpoint and return its folder.

    The backbone is saved without a pooler, which BGE-M3 has no use for. The weights come from `numpy`'s `RandomState`,
    whose stream is frozen, so they never change; torch's generator is neither used nor moved.

    Args:
        folder: Where to write; made if it is missing.
        shape: A key of SHAPES.
    """
    sizes = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TOKENIZER_FILE.read_bytes()
    vocab_size = len(json.loads(tokenizer)["model"]["vocab"])
    weights = _draw(_tensor_shapes(sizes, vocab_size), sizes.seed)

    (folder / "tokenizer.json").write_bytes(tokenizer)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(sizes))
    _write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS)
    _write_json(folder / "config.json", _config(sizes, vocab_size))
    for head in ("colbert_linear", "sparse_linear"):
        state = {name: torch.from_numpy(weights.pop(f"{head}.{name}")) for name in ("weight", "bias")}
        torch.save(state, folder / f"{head}.pt")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_SPECIAL_TOKENS: dict[str, object] = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
}


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tokenizer_config(sizes: CheckpointShape) -> dict[str, object]:
    return {**_SPECIAL_TOKENS, "model_max_length": sizes.max_length, "tokenizer_class": "XLMRobertaTokenizer"}


def _config(sizes: CheckpointShape, vocab_size: int) -> dict[str, object]:
    return {
        "architectures": ["XLMRobertaModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate_size,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": sizes.max_position_embeddings,
        "model_type": "xlm-roberta",
        "num_attention_heads": sizes.attention_heads,
        "num_hidden_layers": sizes.layers,
        "pad_token_id": _PAD_ID,
        "type_vocab_size": 1,
        "vocab_size": vocab_size,
    }


def _tensor_shapes(sizes: CheckpointShape, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape: XLMRobertaModel's without its pooler, then the two heads'."""
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocab_size, hidden),
        "embeddings.position_embeddings.weight": (sizes.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (1, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
        "colbert_linear.weight": (sizes.colbert_dim, hidden),
        "colbert_linear.bias": (sizes.colbert_dim,),
        "sparse_linear.weight": (1, hidden),
        "sparse_linear.bias": (1,),
    }
    linears = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    for layer in range(sizes.layers):
        prefix = f"encoder.layer.{layer}"
        for name, (rows, columns) in linears.items():
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            shapes[f"{prefix}.{name}.bias"] = (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{prefix}.{name}.weight"] = (hidden,)
            shapes[f"{prefix}.{name}.bias"] = (hidden,)
    return shapes


def _draw(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, NDArray[np.float32]]:
    """Normal weights, drawn in the order of the sorted names; the padding rows are drawn like any other."""
    random = np.random.RandomState(seed)  # numpy's only generator with a frozen stream
    weights = {}
    for name in sorted(shapes):
        mean, scale = _distribution(name, shapes[name])
        weights[name] = (mean + scale * random.standard_normal(shapes[name])).astype(np.float32)
    return weights


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of one parameter.

    Far larger than a fresh model's: attention has to be far from uniform, or a wrong mask would hardly show, and the
    attention's values have to outweigh the residual, or the first token of every text would look alike.
    """
    if name.endswith("LayerNorm.weight"):
        return 1.0, 0.1
    if name.endswith(".bias"):
        return 0.0, 0.05
    scale = next((scale for part, scale in _EMBEDDING_SCALES.items() if part in name), None)
    if scale is not None:
        return 0.0, scale
    gain = next((gain for part, gain in _LINEAR_GAINS.items() if part in name), 1.0)
    return 0.0, gain / math.sqrt(shape[-1])


_EMBEDDING_SCALES = {"word_embeddings": 1.0, "position_embeddings": 0.4, "token_type_embeddings": 0.1}
_LINEAR_GAINS = {
    "attention.self.query": 1.6,
    "attention.self.key": 1.6,
    "attention.self.value": 2.0,
    "attention.output.dense": 1.0,  # before output.dense, which is a part of its name
    "output.dense": 0.5,
    "sparse_linear": 0.5,
}
