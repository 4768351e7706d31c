"""A bag of token embeddings, learned in minutes, that `tiny` starts from.

A small network that begins at random spends its few steps on finding out that a text is about its rare words. A bag
knows that from the start: a text's vector is the sum of its tokens' unit vectors, each with a share that grows with the
token's rarity. It is so cheap that a batch may hold thousands of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

_TEMPERATURE = 0.05


@dataclass(frozen=True, slots=True)
class Bag:
    """What the bag has learned.

    Attributes:
        vectors: (vocabulary, d) float32, unit length, mean 0: the direction of every token.
        logits: (vocabulary,) float32: a token's share of a text is the softmax of these over the text's tokens.
    """

    vectors: torch.Tensor
    logits: torch.Tensor


class _BagModel(nn.Module):
    def __init__(self, logits: torch.Tensor, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(len(logits), dim, generator=generator) / math.sqrt(dim))
        self.logits = nn.Parameter(logits.clone())

    def unit_vectors(self) -> torch.Tensor:
        return F.normalize(self.vectors - self.vectors.mean(dim=1, keepdim=True), dim=1)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        # The division by the sum of the shares is left out: the vector is brought to unit length in any case.
        chosen, places = torch.unique(ids, return_inverse=True)
        vectors = self.vectors[chosen]
        vectors = F.normalize(vectors - vectors.mean(dim=1, keepdim=True), dim=1)
        shares = self.logits[chosen].exp()[places]
        sums = F.embedding_bag(places, vectors, offsets, mode="sum", per_sample_weights=shares)
        return F.normalize(sums, dim=1)


def inverse_document_frequencies(texts: Sequence[NDArray[np.int32]], vocab_size: int) -> NDArray[np.float64]:
    """Return log((n + 1) / (df + 1)) of every token: (vocabulary,) float64, 0 or more."""
    counts = np.zeros(vocab_size)
    for ids in texts:
        counts[np.unique(ids)] += 1
    return np.asarray(np.log((len(texts) + 1) / (counts + 1)))


def train_bag(
    queries: Sequence[NDArray[np.int32]],
    passages: Sequence[NDArray[np.int32]],
    idf: NDArray[np.float64],
    *,
    dim: int,
    seed: int,
    steps: int,
    batch_size: int = 1024,
    learning_rate: float = 5e-3,
    report: Callable[[int, float, Bag], None] | None = None,
) -> Bag:
    """Learn the bag with InfoNCE over large batches, both from query to passage and from passage to query.

    Args:
        queries: The tokens of every query, without special tokens.
        passages: The tokens of the text that answers it.
        idf: (vocabulary,) from `inverse_document_frequencies`; a token's share starts proportional to it.
        dim: Length of the vectors.
        seed: For the start and the order.
        steps: Batches to learn from.
        batch_size: Pairs in a batch.
        learning_rate: Its peak; it falls to zero on a cosine.
        report: Is called every 100 steps with the step, the loss and the bag so far.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.from_numpy(np.log(np.maximum(idf, 0.05))).float()
    model = _BagModel(start, dim, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    order = torch.cat(
        [torch.randperm(len(queries), generator=generator) for _ in range(1 + steps * batch_size // len(queries))]
    )
    for step in range(steps):
        rate = learning_rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate
        rows = order[step * batch_size : (step + 1) * batch_size].tolist()
        a = model(*_flatten([queries[row] for row in rows]))
        b = model(*_flatten([passages[row] for row in rows]))
        similarities = a @ b.T / _TEMPERATURE
        targets = torch.arange(len(rows))
        loss = (F.cross_entropy(similarities, targets) + F.cross_entropy(similarities.T, targets)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if report and step % 100 == 0:
            report(step, loss.item(), _freeze(model))
    return _freeze(model)


def _freeze(model: _BagModel) -> Bag:
    return Bag(model.unit_vectors().detach(), model.logits.detach().clone())


def _flatten(texts: Sequence[NDArray[np.int32]]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = np.array([len(ids) for ids in texts])
    return torch.from_numpy(np.concatenate(texts).astype(np.int64)), torch.from_numpy(np.cumsum(lengths) - lengths)
