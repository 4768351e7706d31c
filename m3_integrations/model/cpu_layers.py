"""XLM-RoBERTa's layers over a packed batch on a CPU, in few calls: what lies around the products costs as little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from m3_integrations.model.int8 import Int8Linear
from m3_integrations.model.packing import attend_per_text, runs_of
from m3_integrations.model.prepacked import PrepackedLinear, can_prepack
from m3_integrations.model.xlm_roberta import XlmRoberta


class CpuLayers:
    """Computes what a backbone's own forward pass does, from the same modules.

    GELU and the residual sums are done within the products, and what several products read is prepared once.

    Args:
        backbone: XLM-RoBERTa whose linear layers are `PrepackedLinear` or `Int8Linear`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        modules: Any = backbone
        self._embeddings, self._layers = modules.embeddings, list(modules.encoder.layer)
        self._n_heads: int = modules.config.num_attention_heads

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return the last hidden states of texts that lie one after another, (tokens, hidden).

        Args:
            ids: (tokens,) the tokens of all texts.
            positions: (tokens,) what `packed_positions` returns.
            lengths: (n,) the tokens of every text.
        """
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
        return states


def prepare_for_cpu(backbone: Any, dtype: torch.dtype) -> CpuLayers | None:
    """Replace a backbone's linear layers by the ones that are fast on this CPU.

    Args:
        backbone: An `XlmRoberta` or a model of transformers on the CPU, in float32 where it is to compute in int8.
        dtype: What it is to compute in.

    Returns:
        A quicker way through the same modules, or None where the architecture or this CPU allows none.
    """
    kind = Int8Linear if dtype == torch.int8 else PrepackedLinear if can_prepack(dtype) else None
    if kind is None:
        return None
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, kind(child))  # one by one, so that the weights never exist twice
    return CpuLayers(backbone) if isinstance(backbone, XlmRoberta) else None
