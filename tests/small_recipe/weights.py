"""Reader of multilingual-e5-small's weights in the file format E5S1: blocks of 32 weights in 4 bits.

The file holds a header, a tokenizer, a directory of tensors and the tensors. A block is a float16 scale and 16 bytes:
the low halves are weights 0 to 15, the high halves 16 to 31, and a weight is (half - 8) * scale.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import XLMRobertaConfig, XLMRobertaModel

_BLOCK: Final = 32
_BLOCK_BYTES: Final = 2 + _BLOCK // 2
_POSITION_SHIFT: Final = 2
"""XLM-RoBERTa counts positions from its padding id + 1; this BERT counts from 0."""

_NAMES: Final = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""The file's names of a layer's parts, and those of transformers."""


@dataclass(frozen=True, slots=True)
class _Header:
    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float


def read_teacher(path: Path) -> XLMRobertaModel:
    """Return multilingual-e5-small as an XLM-RoBERTa network in float32, in eval mode.

    Raises:
        ValueError: If the file is not of this format.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    if data[:4].tobytes() != b"E5S1":
        raise ValueError(f"{path} is no E5S1 file")
    header = _Header(*struct.unpack_from("<7if", data.data, 8))
    directory = _read_directory(data)
    config = XLMRobertaConfig(
        vocab_size=header.vocabulary,
        hidden_size=header.width,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        intermediate_size=header.inner,
        max_position_embeddings=header.positions + _POSITION_SHIFT,
        type_vocab_size=1,
        layer_norm_eps=header.epsilon,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = XLMRobertaModel(config, add_pooling_layer=False)
    model.load_state_dict(_state(data, directory, header))
    return model.eval()


def _read_directory(data: NDArray[np.uint8]) -> dict[str, tuple[int, int, int]]:
    """Return (type, number of values, offset) of every tensor."""
    view = data.data
    at = 4 + 4 + 8 * 4 + 4  # magic, version, header, size of a block
    (pieces,) = struct.unpack_from("<i", view, at)
    (blob_bytes,) = struct.unpack_from("<Q", view, at + 20)
    at += 28 + 4 * (pieces + 1) + 4 * pieces + blob_bytes
    (map_bytes,) = struct.unpack_from("<I", view, at + 4)
    at += 8 + map_bytes
    (count,) = struct.unpack_from("<i", view, at)
    at += 4
    found = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", view, at)
        name = data[at + 2 : at + 2 + length].tobytes().decode()
        at += 2 + length
        kind, size, offset, _bytes = struct.unpack_from("<BIQQ", view, at)
        at += 21
        found[name] = (kind, size, offset)
    return found


def _state(
    data: NDArray[np.uint8], directory: dict[str, tuple[int, int, int]], header: _Header
) -> dict[str, torch.Tensor]:
    """Return the tensors under transformers' names."""

    def vector(name: str) -> torch.Tensor:
        _, size, offset = directory[name]
        return torch.from_numpy(np.frombuffer(data, "<f4", size, offset).copy())

    def matrix(name: str, width: int) -> torch.Tensor:
        _, size, offset = directory[name]
        return torch.from_numpy(widen(data[offset : offset + size // _BLOCK * _BLOCK_BYTES], width))

    width = header.width
    positions = vector("emb.pos").view(-1, width)
    state = {
        "embeddings.word_embeddings.weight": matrix("emb.word", width),
        "embeddings.position_embeddings.weight": torch.cat([torch.zeros(_POSITION_SHIFT, width), positions]),
        "embeddings.token_type_embeddings.weight": vector("emb.type").view(-1, width)[:1],
        "embeddings.LayerNorm.weight": vector("emb.ln.w"),
        "embeddings.LayerNorm.bias": vector("emb.ln.b"),
    }
    for layer in range(header.layers):
        for short, long in _NAMES.items():
            name, new = f"l{layer}.{short}", f"encoder.layer.{layer}.{long}"
            inputs = header.inner if short == "fo" else width
            state[f"{new}.weight"] = vector(f"{name}.w") if short.endswith("ln") else matrix(f"{name}.w", inputs)
            state[f"{new}.bias"] = vector(f"{name}.b")
    return state


def widen(blocks: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """Return the weights of whole blocks: (rows, width) float32."""
    blocks = blocks.reshape(-1, _BLOCK_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    halves = blocks[:, 2:]
    weights = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) - 8
    return (weights * scales).reshape(-1, width)
