"""The recipe of `small`: the weights that it reads, and the layer that makes [CLS] a mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from m3_integrations.checkpoint import find_checkpoint, load_tokenizer
from tests.small_recipe.distill import is_stored_in_eight_bits, rounded
from tests.small_recipe.start import add_mean, iterate_hidden, prune
from tests.small_recipe.weights import widen

TEXTS = [f"{word} number {n} lies on the table" for n, word in enumerate(("Salt", "bread", "A key", "snow") * 10)]


def random_network(vocab_size: int) -> Any:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=130,
        type_vocab_size=1,
    )
    return XLMRobertaModel(config, add_pooling_layer=False).eval()


def test_a_block_of_4_bits_is_widened_as_worked_by_hand() -> None:
    halves = np.arange(16, dtype=np.uint8) | (np.uint8(9) << 4)  # low: 0 to 15, high: 9 everywhere
    block = np.concatenate([np.frombuffer(np.float16(0.5).tobytes(), np.uint8), halves])
    expected = [(n - 8) * 0.5 for n in range(16)] + [0.5] * 16
    np.testing.assert_array_equal(widen(block, 32), [expected])


def test_the_added_layer_makes_cls_the_centred_mean_and_leaves_the_tokens() -> None:
    tokenizer = load_tokenizer(find_checkpoint("tiny"))
    teacher = random_network(20_000)
    network = prune(teacher, np.arange(20_000))
    add_mean(network, tokenizer, TEXTS)
    before = list(iterate_hidden(teacher, tokenizer, TEXTS))
    after = list(iterate_hidden(network, tokenizer, TEXTS))
    means = torch.stack([states[1:].mean(dim=0) for states in before])
    centred = means - means.mean(dim=0)
    cls = torch.stack([states[0] for states in after])
    assert torch.cosine_similarity(cls, centred).mean() > 0.9  # what [CLS] itself brings is a fourth
    tokens = [torch.cosine_similarity(a[1:], b[1:]).mean() for a, b in zip(before, after, strict=True)]
    assert torch.stack(tokens).mean() > 0.95


def test_weights_are_rounded_for_a_while_and_then_their_own_again() -> None:
    network = random_network(50)
    kept = {name: value.clone() for name, value in network.named_parameters()}
    with rounded(network):
        for name, value in network.named_parameters():
            wanted = kept[name].to(torch.float8_e4m3fn).float() if is_stored_in_eight_bits(name, value) else kept[name]
            assert torch.equal(value, wanted), name
    assert all(torch.equal(value, kept[name]) for name, value in network.named_parameters())
