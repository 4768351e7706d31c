"""XLM-RoBERTa, BGE-M3's backbone, as a plain module of torch.

Importing transformers' models takes 2 to 3 s of CPU, twice as long as torch itself, so they are used only for other
architectures, for files that this module cannot read, and for training. Modules and weights have transformers' names:
both load the same files.
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
"""Takes queries, keys and values, each (rows, heads, tokens, width); returns (rows, tokens, heads, width)."""

_SETTINGS: Final = {
    "is_decoder": False,
    "add_cross_attention": False,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "quantization_config": None,
}
"""Settings that must be absent or have these values: this module computes nothing else."""

_OF_A_LAYER: Final = re.compile(r"\blayers?\.\d+\.")


@dataclass(frozen=True, slots=True)
class XlmRobertaConfig:
    """The network's sizes from config.json; absent ones have transformers' defaults.

    Attributes:
        source: The whole content of the file.
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
        """Read config.json; return None if it is absent or damaged, or if this module cannot compute its network."""
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
    """The encoder for inference, without a pooling layer and without dropout.

    Args:
        config: The network's sizes.
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
            attend: Computes the attention within every text.
        """
        states: torch.Tensor = self.embeddings(ids, positions)
        for layer in self.encoder["layer"].children():
            states = layer(states, attend)
        return states

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embeddings.position_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings."""
        return self.embeddings.position_embeddings.weight.dtype

    def save_pretrained(self, folder: Path, *, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Write config.json, and these weights as model.safetensors, in transformers' format."""
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
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]  # every token has type 0
        normed: torch.Tensor = self.LayerNorm(states + self.position_embeddings(positions))
        return normed


def _table(rows: int, width: int, padding: int | None = None) -> nn.Embedding:
    """Return embeddings without random values: drawing them on the meta device imports torch._dynamo, 1 s of CPU."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), padding_idx=padding)  # type: ignore[no-untyped-call]
    return table


class _Residual(nn.Module):
    """A linear layer, the sum with its block's input, and a layer norm."""

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
        ValueError: For the reasons of `load_backbone`, or if a weight is infinite or NaN in this dtype.
    """
    config = XlmRobertaConfig.read(folder)
    backbone, state = None, None
    if config is not None:
        with torch.device("meta"):
            backbone = XlmRoberta(config)
        state = _read_weights(folder, backbone, dtype)
    if state is None:
        # Transformers also reads older names of weights, and raises an error that names the fault in the files.
        from m3_integrations.checkpoint.architectures import load_backbone  # noqa: PLC0415 - see there

        theirs = load_backbone(folder, dtype)
        state = theirs.state_dict()
        if backbone is None:
            _check_finite(folder, state)
            return theirs
    assert backbone is not None  # noqa: S101 - otherwise `theirs` was returned above
    _check_finite(folder, state)
    backbone.load_state_dict(state, assign=True)
    return backbone.eval().requires_grad_(False)


def _check_finite(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError if a weight is infinite or NaN.

    Torch's attention makes finite numbers of NaN in texts of up to 15 tokens, so the results would not show it.
    """
    for name, tensor in state.items():
        # A sum takes a fifth of the time of `isfinite`, and it is not finite if a weight is not.
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
            n = int((~tensor.isfinite()).sum())
            if n:
                raise ValueError(f"{folder} has {n} weights that are infinite or NaN in {tensor.dtype}, in {name}")


def _read_weights(folder: Path, backbone: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """Read the weights of a backbone.

    They are copied: memory that is mapped from a file changes or is lost when the file is rewritten.

    Returns:
        The weights by name; None if one is absent, unreadable or of another shape, or the files have more layers.
    """
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    found: dict[str, torch.Tensor] = {}
    try:
        for path in weight_files(folder):
            for stored, read in read_tensors(path):
                name = stored.removeprefix("roberta.")  # in files of language models
                if name in found:
                    return None  # in two files, of which one is out of date
                if name in shapes:
                    found[name] = read().to(dtype, copy=True)
                elif _OF_A_LAYER.search(name):
                    return None
    except DAMAGE:
        return None
    return found if {name: tensor.shape for name, tensor in found.items()} == shapes else None
