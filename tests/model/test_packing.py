"""Packed batches equal padded ones and single texts; and three mistakes that raise no error change the numbers."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

from m3_integrations import tokenizer as tokenizer_module
from m3_integrations.checkpoint.architectures import load_backbone
from m3_integrations.model import M3Network, packing, varlen
from m3_integrations.model.prepacked import can_prepack
from m3_integrations.tokenizer import Pooling, Tokenizer, Tokens
from tests.golden.texts import TEXTS
from tests.model.conftest import Load, assert_same, encode


def tokens_of(tokenizer: Tokenizer, network: M3Network, pooling: Pooling = "cls") -> list[Tokens]:
    """Texts from 2 tokens (an empty text) to as many as there are positions; some contain special tokens."""
    return tokenizer(["the", *TEXTS], max_length=network.max_positions, pooling=pooling)


@pytest.mark.parametrize("pooling", ["cls", "mcls"])
def test_packed_equals_padded_equals_alone(
    load: Load, tokenizer: Tokenizer, pooling: Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "MCLS_INTERVAL", 20)  # 64 positions then hold several [CLS]
    packed, padded = load(is_packed=True), load(is_packed=False)
    texts = tokens_of(tokenizer, packed, pooling)
    lengths = [len(text) for text in texts]
    assert min(lengths) == 2
    assert 3 in lengths
    assert max(lengths) >= packed.max_positions - 1
    assert (max(text.n_cls for text in texts) > 1) == (pooling == "mcls")
    together = encode(packed, texts)
    assert_same(together, encode(padded, texts))
    assert_same(together, encode(load(is_packed=True, is_plain=True), texts))
    for i, text in enumerate(texts):
        alone = encode(padded, [text])
        assert together.multi_vector is not None
        assert alone.multi_vector is not None
        np.testing.assert_allclose(together.dense[i], alone.dense[0], atol=1e-5)
        np.testing.assert_allclose(together.multi_vector[i], alone.multi_vector[0], atol=1e-5)
    random = np.random.default_rng(0)
    for size in (1, 2, 7):
        some = [texts[i] for i in random.choice(len(texts), size)]
        assert_same(encode(packed, some), encode(padded, some))


def test_only_those_who_ask_get_token_vectors(load: Load, tokenizer: Tokenizer) -> None:
    texts = tokens_of(tokenizer, load())[:6]
    asked = [False, True, False, True, True, False]
    for network in (load(is_packed=True), load(is_packed=False)):
        everything, some = encode(network, texts), encode(network, texts, asked)
        assert everything.multi_vector is not None
        assert some.multi_vector is not None
        for wanted, one, other in zip(asked, some.multi_vector, everything.multi_vector, strict=True):
            np.testing.assert_allclose(one, other if wanted else other[:0], atol=1e-6)
        assert encode(network, texts, [False] * 6).multi_vector is None


def test_a_text_does_not_see_its_neighbours(load: Load, tokenizer: Tokenizer) -> None:
    network = load(is_packed=True)
    one, other = tokenizer(["the same text twice", "the other text twice"], max_length=60)
    neighbours = tokenizer(["what stands before", "something else entirely"], max_length=60)
    first, second = (encode(network, [neighbour, one, other]) for neighbour in neighbours)
    np.testing.assert_allclose(first.dense[1:], second.dense[1:], atol=1e-6)
    assert np.abs(first.dense[0] - second.dense[0]).max() > 0.05


def attend_to_all(query: Any, key: Any, value: Any, **_: object) -> Any:
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@pytest.mark.parametrize("mistake", ["attention across texts", "positions from 0", "positions through the pack"])
def test_a_mistake_in_packing_would_show(
    load: Load, tokenizer: Tokenizer, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mistake raises: `test_packed_equals_padded_equals_alone` must find it, so it must change the vectors."""
    network = load(is_packed=True, is_plain=True)
    texts = tokenizer(["rotate the keys", "why do bridges have joints", "how long should tea steep"], max_length=60)
    right = encode(network, texts).dense
    if mistake == "attention across texts":
        monkeypatch.setattr(packing, "_attend_per_text", attend_to_all)
    elif mistake == "positions from 0":
        correct = packing.packed_positions
        monkeypatch.setattr("m3_integrations.model.network.packed_positions", lambda *args: correct(*args) - 2)
    else:
        monkeypatch.setattr(
            "m3_integrations.model.network.packed_positions",
            lambda ids, lengths, first: np.arange(len(ids)) + first + 1,
        )
    cosines = (encode(network, texts).dense * right).sum(axis=1)
    assert cosines[1:].max() < 0.95
    if mistake == "positions through the pack":
        assert cosines[0] > 0.9999


def test_positions_begin_anew_in_every_text_and_pass_over_padding() -> None:
    ids = np.array([0, 5, 6, 2, 0, 1, 7, 1, 2, 0, 2])
    positions = packing.packed_positions(ids, np.array([4, 5, 2]), 1)
    assert positions.tolist() == [2, 3, 4, 5, 2, 1, 3, 1, 4, 2, 3]


def test_positions_are_those_of_transformers(load: Load, tokenizer: Tokenizer) -> None:
    network: Any = load(is_packed=True)
    texts = tokens_of(tokenizer, network)
    lengths = np.array([len(text) for text in texts])
    positions = packing.packed_positions(np.concatenate([text.ids for text in texts]), lengths, 1)
    make = XLMRobertaEmbeddings.create_position_ids_from_input_ids
    expected = [make(torch.from_numpy(text.ids)[None].long(), 1)[0].numpy() for text in texts]
    np.testing.assert_array_equal(positions, np.concatenate(expected))


def test_the_kernel_is_called_with_what_every_release_of_torch_takes(
    load: Load, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU has no kernel: a function with its first seven parameters replaces it."""

    def varlen_attn(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, /) -> Any:  # noqa: PLR0917
        assert q.shape == k.shape == v.shape == (cu_q[-1], heads, width)
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert type(max_q) is type(max_k) is int
        ends = cu_q.tolist()
        assert ends == cu_k.tolist() == [0, *np.cumsum(lengths)]
        assert max_q == max_k == max(lengths)
        parts = [
            functional.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
            for a, b in pairwise(ends)
        ]
        calls.append(len(parts))
        return torch.cat(parts)

    network: Any = load(is_packed=True, is_plain=True)
    config = network.backbone.config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    texts = tokens_of(tokenizer, network)[:9]
    lengths = [len(text) for text in texts]
    expected = encode(network, texts)
    calls: list[int] = []
    monkeypatch.setattr(packing, "has_varlen_kernel", lambda _: True)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    assert_same(encode(network, texts), expected)
    assert calls == [9] * config.num_hidden_layers


def test_batches_are_padded_where_torch_has_no_kernel(load: Load) -> None:
    assert load().is_packed == can_prepack(torch.float32)
    assert not load(is_plain=True).is_packed
    assert not load(dtype=torch.float16).is_packed


def test_packing_an_architecture_of_unknown_positions_is_refused(small: Path, load: Load) -> None:
    network: Any = load()
    theirs = load_backbone(small, torch.float32)
    with pytest.raises(ValueError, match="needs an XlmRoberta, got XLMRobertaModel"):
        M3Network(theirs, network.heads, pad_id=1, ignored_ids=network.ignored_ids, is_packed=True)
