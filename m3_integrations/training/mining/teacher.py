"""A cross-encoder that scores mined passages as a teacher; the network and the tokenizer are from transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from m3_integrations.checkpoint import find_checkpoint
from m3_integrations.model import find_devices


class CrossEncoder:
    """A network that reads a query and a passage together and returns one score, such as BAAI/bge-reranker-v2-m3.

    The score is the network's output without a sigmoid, because FlagEmbedding's training computes its softmax.

    Args:
        model: A checkpoint folder, or a repository of the hub.
        device: The device, as `M3Encoder` takes it.
        max_length: The most tokens of a pair; the longer of the two texts is cut.
        batch_size: The number of pairs in a forward pass.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it cannot be loaded, lacks weights, or returns another number of scores than one.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, device: str = "auto", max_length: int = 512, batch_size: int = 32
    ) -> None:
        self.model = str(model)
        """The name or folder of the model."""
        self._max_length, self._batch_size = max_length, batch_size
        self._device = find_devices(device)[0]
        self._tokenizer, self._network = _load(find_checkpoint(model))
        self._network.to(self._device)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the score of every pair of a query and a passage, higher is better.

        Pairs of similar length share a forward pass, which saves padding.
        """
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            for i, score in zip(batch, self._score([pairs[i] for i in batch]), strict=True):
                scores[i] = score
        return scores

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        inputs = self._tokenizer(
            [query for query, _ in pairs],
            [text for _, text in pairs],
            padding=True,
            truncation="longest_first",
            max_length=self._max_length,
            return_tensors="pt",
        )
        logits: torch.Tensor = self._network(**inputs.to(self._device)).logits  # (pairs, 1)
        scores: list[float] = logits[:, 0].float().tolist()
        return scores


def _load(folder: Path) -> tuple[Any, Any]:
    """Return the tokenizer and the network of a cross-encoder, in float32 and for inference."""
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        network, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **local
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())  # some messages have several lines
        raise ValueError(f"{folder} holds no cross-encoder that can be loaded: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} is not a cross-encoder: it lacks {', '.join(missing[:3])}")
    if network.config.num_labels != 1:
        raise ValueError(f"a cross-encoder must return one score, {folder} returns {network.config.num_labels}")
    return tokenizer, network.eval().requires_grad_(False)
