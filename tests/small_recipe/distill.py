"""Teaching `small`'s [CLS] the teacher's dense vectors: the cut vocabulary is repaired and the prefixes are unlearned.

The teacher reads "query: " before every text, the student reads the text. Its vectors are centred: the mean of many
texts is taken away. Two losses are added: 1 - cosine to the teacher's vector, and the divergence of the student's
similarities from the teacher's, of every query to all passages of a batch and back (both at a temperature of .05).
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from m3_integrations.tokenizer import Tokenizer
from tests.small_recipe.pairs import TextPair as Pair

_logger = logging.getLogger(__name__)

PREFIX: Final = "query: "
_TEMPERATURE: Final = 0.05
_POOL: Final = 2048
_PASS: Final = 24
_WARMUP_STEPS: Final = 100
_EMBEDDING_RATE: Final = 5.0
"""The word embeddings learn so many times faster: a batch touches each row seldom."""


@dataclass(frozen=True, slots=True)
class Coder:
    """A network with its tokenizer.

    Attributes:
        network: XLM-RoBERTa.
        tokenizer: Its tokenizer.
        is_mean: Whether a text's vector is the mean of its hidden states, instead of [CLS]'s.
        prefix: Put before every text.
        centre: (width,) float32: what is taken from a unit vector before it is brought to unit length again.
    """

    network: Any
    tokenizer: Tokenizer
    is_mean: bool = False
    prefix: str = ""
    centre: torch.Tensor | None = None

    def encode(self, texts: Sequence[str], max_length: int) -> torch.Tensor:
        """Return the vectors of texts: (texts, width) float32, unit length. In bfloat16 on the way."""
        tokens = self.tokenizer([self.prefix + text for text in texts], max_length=max_length)
        rows = [torch.from_numpy(each.ids.astype(np.int64)) for each in tokens]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # texts of one length share a pass
        parts = [self._pass([rows[row] for row in order[at : at + _PASS]]) for at in range(0, len(rows), _PASS)]
        vectors = torch.cat(parts)[torch.argsort(torch.tensor(order))]
        vectors = F.normalize(vectors, dim=1)
        return vectors if self.centre is None else F.normalize(vectors - self.centre, dim=1)

    def _pass(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the vectors of a few texts, before they are brought to unit length."""
        ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=1)
        mask = ids != 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        kept = mask[..., None].float()
        vectors: torch.Tensor = (states.float() * kept).sum(dim=1) / kept.sum(dim=1) if self.is_mean else states[:, 0]
        return vectors.float()


@torch.no_grad()
def find_centre(teacher: Coder, texts: Sequence[str], max_length: int) -> torch.Tensor:
    """Return the mean of the teacher's unit vectors: (width,) float32."""
    ordered = sorted(texts, key=len)
    parts = [teacher.encode(ordered[start : start + 64], max_length) for start in range(0, len(ordered), 64)]
    return torch.cat(parts).mean(dim=0)


def iterate_batches(pairs: Sequence[Pair], size: int, *, seed: int) -> Iterator[list[Pair]]:
    """Yield every pair once, in batches of texts of about one length: by turns of one language and of all mixed.

    Batches of one language have the harder negatives, mixed ones bring the languages together.
    """
    state = random.Random(seed)
    order = list(pairs)
    state.shuffle(order)
    batches = []
    for number, start in enumerate(range(0, len(order), _POOL)):
        pool = order[start : start + _POOL]
        pool.sort(key=lambda pair: (pair.language if number % 2 else "", len(pair.passage.encode())))
        batches += [pool[at : at + size] for at in range(0, len(pool), size)]
    state.shuffle(batches)
    yield from (batch for batch in batches if len(batch) == size)


def distill(
    student: Coder,
    teacher: Coder,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    max_length: int,
    learning_rate: float,
    rounded_share: float,
    seed: int,
    report: Any = None,
) -> None:
    """Train the student on every pair once.

    Args:
        student: Is changed.
        teacher: Is not.
        pairs: Texts that belong together.
        batch_size: Pairs in a batch.
        max_length: Tokens of a text.
        learning_rate: Its peak, that of the word embeddings is five times it; falls to zero on a line.
        rounded_share: In this last share of the steps the student computes with weights rounded to float8, as they are
            stored in the end, so that it learns to do with them.
        seed: For the order.
        report: Is called every 250 steps with the step.
    """
    network = student.network.train()
    words = network.embeddings.word_embeddings.weight
    others = [p for p in network.parameters() if p is not words]
    groups = [{"params": others, "rate": 1.0}, {"params": [words], "rate": _EMBEDDING_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    batches = list(iterate_batches(pairs, batch_size, seed=seed))
    begun, losses = time.monotonic(), []
    for step, batch in enumerate(batches):
        rate = learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS, (len(batches) - step) / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        is_rounded = step >= len(batches) * (1 - rounded_share)
        with rounded(network) if is_rounded else contextlib.nullcontext():
            loss = _loss(student, teacher, batch, max_length)
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 25 == 24:
            rate_s = (time.monotonic() - begun) / (step + 1)
            _logger.info(
                "step %d of %d: loss %.4f, %.2f s a step", step + 1, len(batches), sum(losses) / len(losses), rate_s
            )
            losses = []
        if report and step % 250 == 1:
            report(step)
    network.eval()


def _loss(student: Coder, teacher: Coder, batch: Sequence[Pair], max_length: int) -> torch.Tensor:
    texts = [pair.query for pair in batch] + [pair.passage for pair in batch]
    with torch.no_grad():
        theirs = torch.chunk(teacher.encode(texts, max_length), 2)
    ours = torch.chunk(student.encode(texts, max_length), 2)
    distance = torch.stack([1 - (a * b).sum(dim=1) for a, b in zip(ours, theirs, strict=True)]).mean()
    mine, wanted = (a @ b.T / _TEMPERATURE for a, b in (ours, theirs))
    divergence = sum(
        F.kl_div(F.log_softmax(m, dim=1), F.log_softmax(w, dim=1), log_target=True, reduction="batchmean")
        for m, w in ((mine, wanted), (mine.T, wanted.T))
    )
    return distance + divergence / 2


def is_stored_in_eight_bits(name: str, value: torch.Tensor) -> bool:
    """Whether a weight is stored in float8: the matrices, not the norms and biases."""
    return value.dim() == 2 and not name.endswith("bias")


@contextlib.contextmanager
def rounded(network: nn.Module) -> Iterator[None]:
    """Round the matrices to float8 for a while; gradients are those of the rounded ones (straight through)."""
    kept = {}
    with torch.no_grad():
        for name, value in network.named_parameters():
            if is_stored_in_eight_bits(name, value):
                kept[name] = value.data
                value.data = value.data.to(torch.float8_e4m3fn).to(value.dtype)
    try:
        yield
    finally:
        for name, value in network.named_parameters():
            if name in kept:
                value.data = kept[name]


@torch.no_grad()
def round_matrices(network: nn.Module) -> None:
    """Round the matrices to float8 for good; the dtype stays."""
    for name, value in network.named_parameters():
        if is_stored_in_eight_bits(name, value):
            value.copy_(value.to(torch.float8_e4m3fn).to(value.dtype))
