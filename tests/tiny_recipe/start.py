"""The network `tiny` starts from: XLM-RoBERTa's architecture, set so that it computes the learned bag.

Three coordinates of the hidden state carry facts about a token, and the rest its direction in the bag:

- 0 marks [CLS]. Keys read it, so that no token attends to [CLS]; the first layer's norm then removes it, and [CLS] is
  left with nothing but the bag of the text.
- 1 carries the bag's logit. Queries are constant and keys read it, so that the softmax of the attention is the bag's.
- 2 carries the square root of the inverse document frequency, which the lexical head reads.

Everything else begins small and random, the later layers as near-identities. Nothing is fixed: all of it learns.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from m3_integrations.checkpoint import Heads, load_tokenizer, save_checkpoint
from tests.tiny_recipe.bag import Bag

FACTS: Final = 3
"""Coordinates that are not the bag's."""

_CLS, _LOGIT, _IDF = range(FACTS)
_CONTEXT: Final = 1.5
"""How much of the text's bag is added to each token; [CLS] keeps nothing else in any case."""

_LEXICAL_SCALE: Final = 0.2
"""Makes the lexical score of a short query and its answer about 1, the size of the other two."""

_NOISE: Final = 0.02
_SEPARATOR_LOGIT: Final = -8.0


def make_config(vocab_size: int, *, hidden_size: int, layers: int, max_length: int) -> Any:
    """Return the configuration of the network."""
    return XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=hidden_size * 3,
        max_position_embeddings=max_length + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def save_random_start(folder: Path, tokenizer_folder: Path, config: Any, *, seed: int) -> None:
    """Write the network as transformers and torch initialise it: what the trained one is compared with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = XLMRobertaModel(config, add_pooling_layer=False)
        width = config.hidden_size
        heads = Heads(multi_vector=nn.Linear(width, width), lexical=nn.Linear(width, 1))
    tokenizer = load_tokenizer(tokenizer_folder)
    save_checkpoint(folder, backbone=backbone, heads=heads, tokenizer=tokenizer, is_replacing=True)


@torch.no_grad()
def save_bag_start(
    folder: Path, tokenizer_folder: Path, config: Any, bag: Bag, idf: NDArray[np.float64], *, seed: int
) -> None:
    """Write the network that computes the bag."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: Any = XLMRobertaModel(config, add_pooling_layer=False)
    mean, deviation = bag.logits.mean().item(), bag.logits.std().item()
    roots = torch.from_numpy(np.sqrt(idf)).float()
    _set_embeddings(backbone.embeddings, bag, (bag.logits - mean) / deviation, _standardize(roots))
    _set_pooling_layer(backbone.encoder.layer[0], deviation)
    for layer in backbone.encoder.layer:
        layer.output.dense.weight.mul_(0.1)
    for layer in backbone.encoder.layer[1:]:
        layer.attention.output.dense.weight.mul_(0.1)
    heads = _heads(config.hidden_size, roots)
    tokenizer = load_tokenizer(tokenizer_folder)
    save_checkpoint(folder, backbone=backbone, heads=heads, tokenizer=tokenizer, is_replacing=True)


def _standardize(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean()) / values.std()


def _set_embeddings(embeddings: Any, bag: Bag, logits: torch.Tensor, roots: torch.Tensor) -> None:
    """Fill the tables; positions and types begin at 0, as the bag knows neither."""
    words = embeddings.word_embeddings.weight
    length = math.sqrt(words.shape[1])  # the norm after the embeddings has this length, so it changes next to nothing
    words[:, _CLS] = 0.0
    words[:, _LOGIT] = logits
    words[:, _IDF] = roots
    words[:, FACTS:] = bag.vectors * length
    words[0] = 0.0
    words[0, _CLS] = length
    words[1] = 0.0
    words[2, _LOGIT] = _SEPARATOR_LOGIT
    embeddings.position_embeddings.weight.zero_()
    embeddings.token_type_embeddings.weight.zero_()


def _set_pooling_layer(layer: Any, deviation: float) -> None:
    """Make the first layer's attention the bag: equal in all heads, values and output the identity."""
    attention = layer.attention.self
    width = attention.query.in_features
    first = torch.arange(0, width, width // attention.num_attention_heads)  # one row of every head
    attention.query.bias[first] = math.sqrt(attention.attention_head_size)  # undone by the attention's scaling
    attention.key.weight[first] = 0.0
    attention.key.weight[first, _LOGIT] = deviation
    attention.key.weight[first, _CLS] = -1.0  # [CLS] has 16 there
    identity = torch.eye(width)
    identity[:FACTS] = 0.0
    attention.value.weight.mul_(0.1).add_(identity)
    layer.attention.output.dense.weight.mul_(0.1).add_(identity * _CONTEXT)
    layer.attention.output.LayerNorm.weight[_CLS] = 0.0


def _heads(width: int, roots: torch.Tensor) -> Heads:
    multi_vector, lexical = nn.Linear(width, width), nn.Linear(width, 1)
    multi_vector.weight.copy_(torch.eye(width))
    multi_vector.weight[:, :FACTS] = 0.0
    multi_vector.bias.zero_()
    lexical.weight.zero_()
    lexical.weight[0, _IDF] = _LEXICAL_SCALE * roots.std()
    lexical.bias.fill_(_LEXICAL_SCALE * roots.mean().item())
    return Heads(multi_vector=multi_vector, lexical=lexical)
