"""XLM-RoBERTa, BGE-M3's backbone, as a plain module of torch.

Transformers has it too, and is asked for every other architecture, for files that do not fit, and for training.
But importing its models takes 2 to 3 s of CPU, twice what torch itself takes, and its forward pass asks in every layer
for things that are not used here. Modules and weights have its names, so that files go both ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.torch import save_file
from torch import nn

from m3_integrations.checkpoint import read_tensors, weight_files
from m3_integrations.checkpoint.files import CONFIG, DAMAGE, XLM_ROBERTA

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From queries, keys and values, each (rows, heads, tokens, width), to their mixture: (rows, tokens, heads, width)."""

_SETTINGS: Final = {
    "is_decoder": False,
    "add_cross_attention": False,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "quantization_config": None,
}
"""Settings for which this module is right only if they are absent or have these values."""

_OF_A_LAYER: Final = re.compile(r"\blayers?\.\d+\.")


@dataclass(frozen=True, slots=True)
class XlmRobertaConfig:
    """What config.json says of the network, with the defaults that transformers has.

    Attributes:
        source: All that the file holds.
    """

    source: Mapping[str, Any]
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    model_type: str = XLM_ROBERTA

    @classmethod
    def read(cls, folder: Path) -> XlmRobertaConfig | None:
        """Read config.json; None if it is absent, damaged, or of what this module does not compute."""
        try:
            source = json.loads((folder / CONFIG).read_bytes())
            config = cls(source, **{f.name: source[f.name] for f in fields(cls)[1:] if f.name in source})
        except (OSError, ValueError, TypeError):
            return None
        numbers = [getattr(config, f.name) for f in fields(cls)[1:] if f.name not in {"layer_norm_eps", "model_type"}]
        is_known = (
            source.get("model_type") == XLM_ROBERTA
            and all(source.get(name, value) == value for name, value in _SETTINGS.items())
            and all(type(number) is int and number > 0 for number in numbers)
            and isinstance(config.layer_norm_eps, float)
            and config.hidden_size % config.num_attention_heads == 0
            and config.pad_token_id < min(config.vocab_size, config.max_position_embeddings)
        )
        return config if is_known else None


class XlmRoberta(nn.Module):
    """The encoder, without a pooling layer and without dropout: for inference.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: XlmRobertaConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attention) -> torch.Tensor:
        """Return the last hidden states: (rows, tokens, hidden).

        Args:
            ids: (rows, tokens) int64.
            positions: (rows, tokens) int64, see `packed_positions`.
            attend: Mixes the tokens of a text.
        """
        states: torch.Tensor = self.embeddings(ids, positions)
        for layer in self.encoder["layer"].children():
            states = layer(states, attend)
        return states

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embeddings.position_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the embeddings."""
        return self.embeddings.position_embeddings.weight.dtype

    def save_pretrained(self, folder: Path, *, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Write config.json and, with these weights, model.safetensors, as transformers has them."""
        source = {name: value for name, value in self.config.source.items() if name != "torch_dtype"}
        changed = {"architectures": ["XLMRobertaModel"], "dtype": str(self.dtype).removeprefix("torch.")}
        (folder / CONFIG).write_text(json.dumps(source | changed, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class _Embeddings(nn.Module):
    def __init__(self, config: XlmRobertaConfig) -> None:
        super().__init__()
        width, padding = config.hidden_size, config.pad_token_id
        self.word_embeddings = _table(config.vocab_size, width, padding)
        self.position_embeddings = _table(config.max_position_embeddings, width, padding)
        self.token_type_embeddings = _table(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]  # every token is of the first type
        normed: torch.Tensor = self.LayerNorm(states + self.position_embeddings(positions))
        return normed


def _table(rows: int, width: int, padding: int | None = None) -> nn.Embedding:
    """Return embeddings that are not drawn at random: on the meta device that imports torch._dynamo, 1 s of CPU."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), padding_idx=padding)  # type: ignore[no-untyped-call]
    return table


class _Residual(nn.Module):
    """A linear layer whose outputs are added to what came in earlier, and normed."""

    def __init__(self, inputs: int, config: XlmRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.LayerNorm(self.dense(states) + before)
        return normed


class _Layer(nn.Module):
    def __init__(self, config: XlmRobertaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self._head_width = width // config.num_attention_heads
        own = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": own, "output": _Residual(width, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.intermediate_size)})
        self.output = _Residual(config.intermediate_size, config)

    def forward(self, states: torch.Tensor, attend: Attention) -> torch.Tensor:
        heads = (*states.shape[:-1], -1, self._head_width)
        q, k, v = (layer(states).view(heads).transpose(1, 2) for layer in self.attention["self"].values())  # type: ignore[operator]
        states = self.attention["output"](attend(q, k, v).reshape(states.shape), states)
        normed: torch.Tensor = self.output(F.gelu(self.intermediate["dense"](states)), states)
        return normed


def load_encoder(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load a checkpoint's encoder with every weight from the files, in evaluation mode, on the CPU.

    Returns:
        An `XlmRoberta`, or a model of transformers for other architectures.

    Raises:
        ValueError: As `load_backbone`.
    """
    config = XlmRobertaConfig.read(folder)
    backbone, state = None, None
    if config is not None:
        with torch.device("meta"):
            backbone = XlmRoberta(config)
        state = _read_weights(folder, backbone, dtype)
    if state is None:
        # It knows older names of weights too, and says what is wrong with the files.
        from m3_integrations.checkpoint.architectures import load_backbone  # noqa: PLC0415 - see there

        theirs = load_backbone(folder, dtype)
        if backbone is None:
            return theirs
        state = theirs.state_dict()
    assert backbone is not None  # noqa: S101 - or there would be no weights
    backbone.load_state_dict(state, assign=True)
    return backbone.eval().requires_grad_(False)


def _read_weights(folder: Path, backbone: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """Read the weights of a backbone; None if one is absent, unreadable or of another size, or a layer is too many.

    They are copied: what is mapped from a file changes, or is gone, when somebody writes the file anew.
    """
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    found: dict[str, torch.Tensor] = {}
    try:
        for path in weight_files(folder):
            for stored, read in read_tensors(path):
                name = stored.removeprefix("roberta.")  # a language model's files have it
                if name in shapes:
                    found[name] = read().to(dtype, copy=True)
                elif _OF_A_LAYER.search(name):
                    return None
    except DAMAGE:
        return None
    return found if {name: tensor.shape for name, tensor in found.items()} == shapes else None
