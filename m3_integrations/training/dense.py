"""The contrastive stage: it trains only the dense mode, on pairs. BGE-M3 was pre-trained so before it had heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from m3_integrations.checkpoint import Heads, load_heads, load_tokenizer, save_checkpoint
from m3_integrations.checkpoint.architectures import load_backbone
from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.gathering import gather_views
from m3_integrations.training.losses import find_allowed
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.scores import TextViews
from m3_integrations.training.trainer import M3Trainer


class DenseNetwork(TrainingNetwork):
    """A network whose backbone is trained in float32; the heads of the checkpoint are not changed.

    Args:
        backbone: A model of transformers that returns `last_hidden_state`.
        heads: The checkpoint's heads; None for a checkpoint without heads, which `save` writes without heads too.
        tokenizer: The checkpoint's tokenizer.
    """

    def __init__(self, backbone: nn.Module, heads: Heads | None, tokenizer: Tokenizer) -> None:
        width = cast("Any", backbone).config.hidden_size
        unused = Heads(multi_vector=nn.Linear(width, width), lexical=nn.Linear(width, 1))
        super().__init__(backbone, heads or unused, tokenizer)
        self._has_heads = heads is not None
        self.multi_vector_head.requires_grad_(False)
        self.lexical_head.requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a checkpoint.

        Raises:
            ValueError: If anything is missing, damaged or mis-shaped.
        """
        backbone: Any = load_backbone(folder, torch.float32)
        heads = load_heads(folder, backbone.config.hidden_size, torch.float32)
        return cls(backbone, heads, load_tokenizer(folder))

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TextViews:
        """Return the views of n texts: the dense one is computed, lexical weights are 0, token vectors have size 0."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return TextViews(
            dense=F.normalize(hidden[:, 0], dim=-1),
            token_ids=input_ids,
            token_weights=hidden.new_zeros(input_ids.shape),
            token_vectors=hidden.new_zeros((*input_ids.shape, 0)),
            vector_mask=attention_mask.bool(),
        )

    def save(self, folder: Path, *, is_replacing: bool = False) -> None:
        """Write the checkpoint in BGE-M3's format, as `save_checkpoint` does.

        Raises:
            FileExistsError: If the folder has a checkpoint already and is_replacing is False.
        """
        heads = Heads(multi_vector=self.multi_vector_head, lexical=self.lexical_head) if self._has_heads else None
        save_checkpoint(
            folder, backbone=self.backbone, heads=heads, tokenizer=self.tokenizer, is_replacing=is_replacing
        )

    def restore(self, folder: Path) -> None:
        """Load the backbone's weights from a checkpoint that `save` wrote.

        Raises:
            ValueError: If its weights do not fit.
        """
        try:
            self.backbone.load_state_dict(load_backbone(folder, torch.float32).state_dict())
        except RuntimeError as error:
            raise ValueError(f"{folder} holds another network than the one in training: {error}") from error


class DenseTrainer(M3Trainer):
    """Trains a `DenseNetwork` by InfoNCE: the texts of the batch's other pairs are a query's negatives."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - the Trainer's signature
    ) -> Any:
        """Encode queries and passages and return the loss of the batch.

        Raises:
            HeadDiedError: If the loss is not finite, or if every query had equal dense scores in too many batches in a
                row.
        """
        queries = model(inputs["query_ids"], inputs["query_mask"])
        passages = model(inputs["passage_ids"], inputs["passage_mask"])
        if self.is_gathered:
            passages = gather_views(passages)
        scores = queries.dense @ passages.dense.T  # (queries, passages)
        logits, positives = scores / self.loss_settings.temperature, inputs["positives"]
        allowed = find_allowed(scores.detach(), positives[:, None], self.loss_settings, inputs["known_answers"])
        loss = F.cross_entropy(logits.masked_fill(~allowed, -torch.inf), positives)
        self.watch.check_dense(scores, loss)
        self.note({"dense": loss * inputs["share"]}, inputs)
        total = loss * inputs["share"]
        return (total, {"scores": scores}) if return_outputs else total
