"""The network `small` starts from: the teacher's layers, fewer word pieces, and one more layer that makes [CLS] a mean.

multilingual-e5-small's vector of a text is the mean of its tokens' last hidden states; BGE-M3's format reads [CLS]. The
layer that is added turns the one into the other, and leaves the tokens as they are for the other two heads:

- A direction u with u . h + b = 1 at [CLS] and 0 at other tokens is found by least squares.
- Keys are u . h + b, queries 1 - 2 (u . h + b). So a token attends to [CLS] alone, and [CLS] to all but itself.
- Values are the hidden states; [CLS]'s own value is set to cancel the output's bias, so that tokens get nothing.
- The output is multiplied by 4 against what [CLS] itself brings, and its bias takes the mean of all texts away:
  the teacher's vectors lie in a narrow cone (cosines of .7 to 1), without it unrelated texts have cosines near 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from m3_integrations.checkpoint import Heads
from m3_integrations.tokenizer import Tokenizer

_LOGIT: Final = 9.0
"""Of the added layer's attention: 1 in e^9 of a token's attention goes elsewhere than to [CLS]."""

_MEAN_WEIGHT: Final = 4.0
_NOISE: Final = 0.02
_RIDGE: Final = 1e-3
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Measurements of the layer before the added one, over many texts.

    Attributes:
        direction: (width,) float32, u of the module's docstring.
        bias: Its b.
        cls_mean: (width,) float32: mean of [CLS]'s hidden states.
        text_mean: (width,) float32: mean of the texts' means of the other tokens.
    """

    direction: torch.Tensor
    bias: float
    cls_mean: torch.Tensor
    text_mean: torch.Tensor


@torch.no_grad()
def prune(teacher: Any, rows: NDArray[np.int64]) -> Any:
    """Return the teacher with one more layer, untouched so far, and these rows of its table of word embeddings."""
    config = XLMRobertaConfig(**{
        **teacher.config.to_dict(), "vocab_size": len(rows), "num_hidden_layers": teacher.config.num_hidden_layers + 1
    })  # fmt: skip
    network: Any = XLMRobertaModel(config, add_pooling_layer=False).eval()
    state = teacher.state_dict()
    name = "embeddings.word_embeddings.weight"
    state[name] = state[name][torch.from_numpy(rows)]
    network.load_state_dict(state, strict=False)
    return network


@torch.no_grad()
def add_mean(network: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Set the last layer so that [CLS] becomes the mean of the tokens, less that of all texts.

    Args:
        network: Of `prune`.
        tokenizer: Of its pieces.
        texts: A few thousand, of all languages.
    """
    found = _measure(network, tokenizer, texts)
    layer = network.encoder.layer[-1]
    attention, output = layer.attention.self, layer.attention.output
    width, size = attention.query.in_features, attention.attention_head_size
    first = torch.arange(0, width, size)  # one row of every head
    scale = math.sqrt(_LOGIT * math.sqrt(size))  # query and key each; the attention divides by the root of the size
    for part, slope, offset in ((attention.query, -2.0, 1.0), (attention.key, 1.0, 0.0)):
        part.weight.normal_(std=_NOISE / math.sqrt(width), generator=torch.Generator().manual_seed(0))
        part.bias.zero_()
        part.weight[first] = scale * slope * found.direction
        part.bias[first] = scale * (offset + slope * found.bias)
    shift = found.text_mean + found.cls_mean / _MEAN_WEIGHT
    attention.value.weight.copy_(torch.eye(width) + torch.outer(shift - found.cls_mean, found.direction))
    attention.value.bias.copy_((shift - found.cls_mean) * found.bias)
    output.dense.weight.copy_(torch.eye(width) * _MEAN_WEIGHT)
    output.dense.bias.copy_(-shift * _MEAN_WEIGHT)
    layer.output.dense.weight.zero_()
    layer.output.dense.bias.zero_()
    for norm in (output.LayerNorm, layer.output.LayerNorm):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)


def _measure(network: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> _Statistics:
    last = network.encoder.layer
    network.encoder.layer = last[:-1]
    width = network.config.hidden_size
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    target = torch.zeros(width + 1, dtype=torch.float64)
    first, means = [], []
    for states in iterate_hidden(network, tokenizer, texts):
        ones = torch.ones(len(states), 1, dtype=torch.float64)
        rows = torch.cat([states.double(), ones], dim=1)  # (tokens, width + 1)
        rows = torch.cat([rows[:1] * math.sqrt(len(states)), rows[1:]])  # as much weight for [CLS] as for the others
        gram += rows.T @ rows
        target += rows[0] * math.sqrt(len(states))
        first.append(states[0])
        means.append(states[1:].mean(dim=0))
    network.encoder.layer = last
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(width + 1, dtype=torch.float64)
    solution = torch.linalg.solve(gram + ridge, target).float()
    return _Statistics(
        solution[:-1], solution[-1].item(), torch.stack(first).mean(dim=0), torch.stack(means).mean(dim=0)
    )


@torch.no_grad()
def iterate_hidden(network: Any, tokenizer: Tokenizer, texts: Sequence[str], max_length: int = 128) -> Any:
    """Yield the last hidden states of every text, without padding: (tokens, width) float32."""
    for start in range(0, len(texts), _BATCH):
        tokens = [
            torch.from_numpy(t.ids.astype(np.int64))
            for t in tokenizer(list(texts[start : start + _BATCH]), max_length=max_length)
        ]
        ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=1)
        states = network(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
        for row, each in zip(states, tokens, strict=True):
            yield row[: len(each)]


@torch.no_grad()
def make_heads(network: Any, tokenizer: Tokenizer, texts: Sequence[str], lexical_scale: float = 0.2) -> Heads:
    """Return heads to start from: token vectors without what all tokens share, and weights that grow with rarity.

    The lexical head is least squares of the root of the inverse document frequency; the multi-vector head takes the
    mean away and divides by the root of the covariance, which is what makes cosines of unrelated tokens small.
    """
    width, vocabulary = network.config.hidden_size, network.config.vocab_size
    ids = [t.ids for t in tokenizer(list(texts), max_length=128)]
    counts = np.zeros(vocabulary)
    for each in ids:
        counts[np.unique(each)] += 1
    roots = torch.from_numpy(np.sqrt(np.log((len(ids) + 1) / (counts + 1))))
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    target = torch.zeros(width + 1, dtype=torch.float64)
    for states, each in zip(iterate_hidden(network, tokenizer, texts), ids, strict=True):
        rows = torch.cat([states.double(), torch.ones(len(states), 1, dtype=torch.float64)], dim=1)[1:-1]
        gram += rows.T @ rows
        target += rows.T @ roots[each[1:-1].astype(np.int64)]
    solution = torch.linalg.solve(gram + _RIDGE * gram.diagonal().mean() * torch.eye(width + 1), target)
    lexical, multi_vector = nn.Linear(width, 1), nn.Linear(width, width)
    lexical.weight.copy_(solution[None, :-1] * lexical_scale)
    lexical.bias.fill_(solution[-1].item() * lexical_scale)
    count = gram[-1, -1]
    mean = gram[-1, :-1] / count
    values, vectors = torch.linalg.eigh(gram[:-1, :-1] / count - torch.outer(mean, mean))
    floor = values.mean() * 0.1  # directions of little variance are noise: they are not blown up
    whitening = vectors @ torch.diag((values + floor).rsqrt()) @ vectors.T
    multi_vector.weight.copy_(whitening)
    multi_vector.bias.copy_(-whitening @ mean)
    return Heads(multi_vector=multi_vector, lexical=lexical)
