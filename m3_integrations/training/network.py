"""The network in training: it turns padded batches into the three views, with gradients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from m3_integrations.checkpoint import Heads, load_heads, load_tokenizer, read_pooling, save_checkpoint
from m3_integrations.checkpoint.architectures import load_backbone
from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.scores import TextViews
from m3_integrations.training.split import Split, encode_split


class TrainingNetwork(nn.Module):
    """A backbone and its two heads, with every weight trainable, in float32.

    Args:
        backbone: A model of transformers that returns `last_hidden_state`.
        heads: The multi-vector and the lexical head.
        tokenizer: The checkpoint's tokenizer; its `ignored_ids` have no lexical weight.

    Attributes:
        split: The division of a batch into sub-batches; None to encode it whole.
    """

    ignored_ids: torch.Tensor
    split: Split | None = None

    def __init__(self, backbone: nn.Module, heads: Heads, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(True)
        self.multi_vector_head = heads.multi_vector.requires_grad_(True)
        self.lexical_head = heads.lexical.requires_grad_(True)
        self.tokenizer = tokenizer
        self.register_buffer("ignored_ids", torch.from_numpy(tokenizer.ignored_ids), persistent=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a checkpoint. If it has no heads, such as plain BGE, it gets random ones from torch's generator.

        Raises:
            ValueError: If anything is missing, damaged or mis-shaped, or the checkpoint's dense vector is not [CLS].
        """
        if (pooling := read_pooling(folder)) != "cls":
            raise ValueError(
                f"{folder} was trained with {pooling} pooling, but M3 needs [CLS] pooling: choose another checkpoint"
            )
        backbone: Any = load_backbone(folder, torch.float32)
        width = backbone.config.hidden_size
        heads = load_heads(folder, width, torch.float32)
        heads = heads or Heads(multi_vector=nn.Linear(width, width), lexical=nn.Linear(width, 1))
        return cls(backbone, heads, load_tokenizer(folder))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TextViews:
        """Return the views of n texts.

        Args:
            input_ids: (n, tokens) int64, padded on the right.
            attention_mask: (n, tokens) int64, 1 at real tokens.
        """
        if self.split is None:
            return self._encode(input_ids, attention_mask)
        return encode_split(self._encode, input_ids, attention_mask, self.split)

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TextViews:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        is_real = attention_mask.bool()
        weights = torch.relu(self.lexical_head(hidden)).squeeze(-1)  # (n, tokens)
        carries_weight = is_real & ~torch.isin(input_ids, self.ignored_ids)
        has_vector = is_real.clone()
        has_vector[:, 0] = False  # the [CLS] token's view is the dense vector
        return TextViews(
            dense=F.normalize(hidden[:, 0], dim=-1),
            token_ids=input_ids,
            token_weights=weights.masked_fill(~carries_weight, 0.0),
            token_vectors=F.normalize(self.multi_vector_head(hidden), dim=-1),
            vector_mask=has_vector,
        )

    def checkpoint_activations(self) -> None:
        """Keep only the input of each layer in memory, and compute the other activations again for the gradient."""
        backbone: Any = self.backbone
        new = getattr(backbone, "activation_checkpointing_enable", None)  # its name since transformers 5.24
        (new or backbone.gradient_checkpointing_enable)({"use_reentrant": False})

    def freeze_position_embeddings(self) -> None:
        """Exclude the position embeddings from training."""
        for name, parameter in self.backbone.named_parameters():
            if "position_embeddings" in name:
                parameter.requires_grad_(False)

    def freeze_backbone(self, free_layers: int = 0) -> None:
        """Exclude the backbone from training, except its last layers.

        Args:
            free_layers: The number of layers that are trained; 0 to train only the heads.

        Raises:
            ValueError: If the backbone has fewer layers.
        """
        layers = {name: re.search(r"\blayers?\.(\d+)\.", name) for name, _ in self.backbone.named_parameters()}
        numbers = {name: int(found[1]) for name, found in layers.items() if found}
        count = max(numbers.values(), default=-1) + 1
        if free_layers > count:
            raise ValueError(f"free_layers must be at most {count}, the backbone's layers, got {free_layers}")
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(numbers.get(name, -1) >= count - free_layers)

    def save(self, folder: Path, *, is_replacing: bool = False) -> None:
        """Write the checkpoint in BGE-M3's format, as `save_checkpoint` does.

        Raises:
            FileExistsError: If the folder has a checkpoint already and is_replacing is False.
        """
        heads = Heads(multi_vector=self.multi_vector_head, lexical=self.lexical_head)
        save_checkpoint(
            folder, backbone=self.backbone, heads=heads, tokenizer=self.tokenizer, is_replacing=is_replacing
        )

    def restore(self, folder: Path) -> None:
        """Load the weights of a checkpoint that `save` wrote.

        Raises:
            ValueError: If its weights do not fit.
        """
        saved = TrainingNetwork.load(folder)
        try:
            self.load_state_dict(saved.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{folder} holds another network than the one in training: {error}") from error
