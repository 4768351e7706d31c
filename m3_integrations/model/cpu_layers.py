"""XLM-RoBERTa's layers over a packed batch on a CPU, in as few calls of torch as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from m3_integrations.model.int8 import Int8Linear
from m3_integrations.model.packing import attend_per_text, runs_of
from m3_integrations.model.prepacked import PrepackedLinear, can_prepack, has_amx
from m3_integrations.model.xlm_roberta import XlmRoberta

_FEW_TOKENS: Final = 64
"""A smaller pass is as cheap in every size: new code for it takes 2 ms, once."""

_STEP: Final = 32
"""Larger passes get a multiple of this many tokens."""


class CpuLayers:
    """The backbone's forward pass, computed from the same modules in fewer calls.

    The linear layers also compute GELU and the residual sums. Queries, keys and values share one prepared input.

    Args:
        backbone: XLM-RoBERTa whose linear layers are `PrepackedLinear` or `Int8Linear`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        modules: Any = backbone
        self._embeddings, self._layers = modules.embeddings, list(modules.encoder.layer)
        self._n_heads: int = modules.config.num_attention_heads

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return the last hidden states of a packed batch, (tokens, hidden).

        Args:
            ids: (tokens,) the token ids of all texts, one text after another.
            positions: (tokens,) the result of `packed_positions`.
            lengths: (n,) the number of tokens of every text.
        """
        n = len(ids)
        if added := _tokens_to_add(n, self._embeddings.LayerNorm.weight.dtype):
            ids, positions, lengths = F.pad(ids, (0, added)), F.pad(positions, (0, added)), [*lengths, added]
        runs, embeddings = runs_of(lengths), self._embeddings
        states: torch.Tensor = embeddings.word_embeddings(ids) + embeddings.token_type_embeddings.weight[0]
        states = embeddings.LayerNorm(states.add_(embeddings.position_embeddings(positions)))
        for layer in self._layers:
            own, after = layer.attention.self, layer.attention.output
            shared = own.query.prepare(states)
            query, key, value = (each.multiply(shared) for each in (own.query, own.key, own.value))
            mixed = attend_per_text(query, key, value, runs, self._n_heads)
            states = after.LayerNorm(after.dense.multiply_add(mixed, states))
            wide = layer.intermediate.dense.multiply_gelu(states)
            states = layer.output.LayerNorm(layer.output.dense.multiply_add(wide, states))
        return states[:n]


def _tokens_to_add(n: int, dtype: torch.dtype) -> int:
    """Return how many tokens of a text that nobody asked for make a pass of a size that is likely to come again.

    For every size oneDNN makes new code. In bfloat16 with AMX that takes up to 40 ms, as long as a layer computes.
    """
    if n < _FEW_TOKENS or dtype != torch.bfloat16 or not has_amx():
        return 0
    return -n % _STEP


def prepare_for_cpu(backbone: Any, dtype: torch.dtype) -> CpuLayers | None:
    """Replace a backbone's linear layers by faster ones for this CPU.

    Args:
        backbone: An `XlmRoberta` or a model of transformers on the CPU; in float32 if dtype is int8.
        dtype: The dtype of its products.

    Returns:
        A faster forward pass over the same modules, or None if the architecture or this CPU allows none.
    """
    kind = Int8Linear if dtype == torch.int8 else PrepackedLinear if can_prepack(dtype) else None
    if kind is None:
        return None
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, kind(child))  # one layer at a time: all weights twice would need twice the memory
    return CpuLayers(backbone) if isinstance(backbone, XlmRoberta) else None
