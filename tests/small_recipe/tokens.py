"""Teaching `small`'s last layers to keep words apart, by BGE-M3's loss over all three modes.

The teacher was trained for the mean of its tokens alone, so in its last layers the tokens of a text become alike, and
a linear layer on them tells rare words from frequent ones badly. So the last layers learn, with both heads: the loss of
the paper with self-knowledge distillation, what keeps [CLS] where it was, and in the beginning the roots of the inverse
document frequencies as lexical weights. The layers before do not change; their states, most of a step's work, are
computed once.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.losses import LossSettings, compute_loss
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.scores import TextViews, join_views, score_batch
from tests.small_recipe.distill import rounded
from tests.small_recipe.pairs import TextPair

_logger = logging.getLogger(__name__)

LEXICAL_SCALE: Final = 0.2
"""A lexical weight is this times the root of the inverse document frequency, as in `make_heads`."""

_LENGTHS: Final = (48, 128)
"""The most tokens of a query and of a passage."""

_PASS: Final = 32
_WARMUP_STEPS: Final = 30
_HEAD_RATE: Final = 3.0
_ANCHOR: Final = 10.0
_LOSS: Final = LossSettings(temperature=0.05, lexical_lambda=1.0)


@dataclass(frozen=True, slots=True)
class States:
    """The tokens of texts, and their hidden states after the layers that are not trained.

    Attributes:
        ids: For every text (tokens,) int64.
        hidden: For every text (tokens, width) float16.
    """

    ids: Sequence[torch.Tensor]
    hidden: Sequence[torch.Tensor]


@torch.no_grad()
def read_states(backbone: Any, tokenizer: Tokenizer, texts: Sequence[str], *, layers: int, max_length: int) -> States:
    """Run the first layers over texts."""
    ids = [torch.from_numpy(each.ids.astype(np.int64)) for each in tokenizer(list(texts), max_length=max_length)]
    hidden: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    whole = backbone.encoder.layer
    backbone.encoder.layer = whole[:layers]
    for rows in _by_length(ids):
        padded = nn.utils.rnn.pad_sequence([ids[row] for row in rows], batch_first=True, padding_value=1)
        states = backbone(input_ids=padded, attention_mask=(padded != 1).long()).last_hidden_state
        for row, each in zip(rows, states, strict=True):
            hidden[row] = each[: len(ids[row])].half()
    backbone.encoder.layer = whole
    return States(ids, hidden)


def _by_length(ids: Sequence[torch.Tensor]) -> Iterator[list[int]]:
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for start in range(0, len(order), _PASS):
        yield order[start : start + _PASS]


class LastLayers(nn.Module):
    """The last layers of a network and its heads.

    Args:
        network: Its modules are used, not copied.
        layers: The layers before the last ones.
    """

    def __init__(self, network: TrainingNetwork, layers: int) -> None:
        super().__init__()
        backbone: Any = network.backbone
        self.layers = nn.ModuleList(backbone.encoder.layer[layers:])
        self.lexical, self.multi_vector = network.lexical_head, network.multi_vector_head
        self.ignored_ids = network.ignored_ids

    def forward(self, states: States, rows: Sequence[int]) -> tuple[TextViews, torch.Tensor, torch.Tensor]:
        """Return the views of the texts in these rows, and of all their tokens the id and the lexical weight.

        A weight is what the head says, before negative ones become 0.
        """
        lengths = torch.tensor([len(states.ids[row]) for row in rows])
        ids = nn.utils.rnn.pad_sequence([states.ids[row] for row in rows], batch_first=True, padding_value=1)
        hidden = nn.utils.rnn.pad_sequence([states.hidden[row].float() for row in rows], batch_first=True)
        is_real = torch.arange(ids.shape[1]) < lengths[:, None]
        blocked = torch.zeros(is_real.shape).masked_fill(~is_real, torch.finfo(torch.float32).min)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, blocked)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # transformers before 5
        weights = self.lexical(hidden).squeeze(-1)
        is_word = is_real & ~torch.isin(ids, self.ignored_ids)
        has_vector = is_real.clone()
        has_vector[:, 0] = False
        views = TextViews(
            dense=F.normalize(hidden[:, 0], dim=-1),
            token_ids=ids,
            token_weights=torch.relu(weights).masked_fill(~is_word, 0.0),
            token_vectors=F.normalize(self.multi_vector(hidden), dim=-1),
            vector_mask=has_vector,
        )
        return views, ids[is_word], weights[is_word]


def iterate_batches(
    languages: Sequence[str], lengths: Sequence[int], size: int, *, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield rows of pairs for ever: each batch of one language and of texts of about one length."""
    state = np.random.default_rng(seed)
    members = [np.flatnonzero(np.array(languages) == language) for language in sorted(set(languages))]
    while True:
        batches = []
        for rows in members:
            mixed = state.permutation(rows)
            ordered = mixed[np.argsort(np.array(lengths)[mixed], kind="stable")]
            batches += [ordered[at : at + size] for at in range(0, len(ordered) - size + 1, size)]
        if not batches:
            raise ValueError(f"no language has {size} pairs: take a smaller batch")
        state.shuffle(batches)
        yield from batches


def teach_tokens(
    network: TrainingNetwork,
    pairs: Sequence[TextPair],
    *,
    free_layers: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    frequency_steps: int,
    rounded_share: float,
    seed: int,
) -> None:
    """Train the last layers and the heads.

    Args:
        network: Is changed; its matrices are rounded to float8 before.
        pairs: Texts that belong together.
        free_layers: The last layers, which learn.
        steps: Batches.
        batch_size: Pairs in a batch.
        learning_rate: Its peak, that of the heads is three times it; falls to zero on a line.
        frequency_steps: The first batches, in which the lexical head learns frequencies too.
        rounded_share: Of the steps, the last ones, with weights rounded to float8.
        seed: For the order.
    """
    backbone: Any = network.backbone.eval()
    backbone.set_attn_implementation("eager")  # takes masks that are added to scores
    network.requires_grad_(False)
    layers = len(backbone.encoder.layer) - free_layers
    both = [
        read_states(backbone, network.tokenizer, texts, layers=layers, max_length=length)
        for texts, length in zip(
            ([pair.query for pair in pairs], [pair.passage for pair in pairs]), _LENGTHS, strict=True
        )
    ]
    roots = root_frequencies([*both[0].ids, *both[1].ids], backbone.config.vocab_size) * LEXICAL_SCALE
    last = LastLayers(network, layers).requires_grad_(True)
    before = copy.deepcopy(last).requires_grad_(False)
    heads = [*last.lexical.parameters(), *last.multi_vector.parameters()]
    groups = [{"params": list(last.layers.parameters()), "rate": 1.0}, {"params": heads, "rate": _HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    batches = iterate_batches([pair.language for pair in pairs], [len(i) for i in both[1].ids], batch_size, seed=seed)
    begun = time.monotonic()
    for step in range(steps):
        rate = learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS, (steps - step) / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        rows = next(batches).tolist()
        is_rounded = step >= steps * (1 - rounded_share)
        with rounded(last.layers) if is_rounded else contextlib.nullcontext():
            loss = _loss(last, before, both, rows, roots if step < frequency_steps else None)
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(last.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            _logger.info("step %d of %d: %.2f s a step", step + 1, steps, (time.monotonic() - begun) / (step + 1))
    backbone.set_attn_implementation("sdpa")


def root_frequencies(ids: Sequence[torch.Tensor], vocab_size: int) -> torch.Tensor:
    """Return the root of the logarithm of (texts + 1) / (texts with the token + 1): (vocab_size,) float32."""
    counts = torch.zeros(vocab_size)
    for each in ids:
        counts[torch.unique(each)] += 1
    return torch.log((len(ids) + 1) / (counts + 1)).sqrt()


def _loss(
    last: LastLayers, before: LastLayers, both: Sequence[States], rows: Sequence[int], roots: torch.Tensor | None
) -> torch.Tensor:
    views, added = [], torch.zeros(())
    for states in both:
        found, distance, error = _encode(last, before, states, rows, roots)
        views.append(found)
        added = added + _ANCHOR / 2 * distance + error / 2
    terms = compute_loss(score_batch(*views), torch.arange(len(rows)), _LOSS)
    return terms.total + added


def _encode(
    last: LastLayers, before: LastLayers, states: States, rows: Sequence[int], roots: torch.Tensor | None
) -> tuple[TextViews, torch.Tensor, torch.Tensor]:
    """Return the views, the mean distance of [CLS] from where it was, and the error of the lexical weights."""
    parts, distances, errors = [], [], []
    order = sorted(range(len(rows)), key=lambda place: len(states.ids[rows[place]]))
    for start in range(0, len(order), _PASS):
        chosen = [rows[place] for place in order[start : start + _PASS]]
        found, ids, weights = last(states, chosen)
        with torch.no_grad():
            old, _, _ = before(states, chosen)
        parts.append(found)
        distances.append(1 - (found.dense * old.dense).sum(dim=1))
        errors.append(torch.zeros(1) if roots is None else (weights - roots[ids]).square())
    joined = join_views(parts)
    back = torch.argsort(torch.tensor(order))
    views = TextViews(**{name: getattr(joined, name)[back] for name in TextViews.__slots__})
    return views, torch.cat(distances).mean(), torch.cat(errors).mean() / LEXICAL_SCALE**2 / 0.25
