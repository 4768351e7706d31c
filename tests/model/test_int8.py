"""Linear layers in 8-bit integers on the CPU: the arithmetic, the tolerances and the errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from m3_integrations import M3Encoder
from m3_integrations.checkpoint import find_checkpoint, load_tokenizer
from m3_integrations.model import M3Network, devices, find_dtype, int8
from m3_integrations.model.int8 import Int8Linear, can_prepack_int8, largest_weight
from m3_integrations.model.prepacked import has_amx
from m3_integrations.tokenizer import Tokenizer
from tests.golden.texts import TEXTS
from tests.model.conftest import Load, assert_same, encode

LARGEST = largest_weight() or 127  # 63 where products of 8-bit weights overflow


def test_a_layer_by_hand() -> None:
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[LARGEST, 30.6], [0.75, -1.0]]))
        linear.bias.copy_(torch.tensor([1.0, 0.0]))
    # Rows become (largest, 31) * 1 and (95 or 47, -largest) / largest; inputs become (127, 64) * 2 and nothing.
    output = Int8Linear(linear)(torch.tensor([[[254.0, 128.9]], [[0.0, 0.0]]]))
    first, second = (127 * LARGEST + 64 * 31) * 2, 2 * (127 * {127: 95, 63: 47}[LARGEST] / LARGEST - 64)
    np.testing.assert_allclose(output.numpy(), [[[first + 1, second]], [[1.0, 0.0]]], rtol=1e-6)
    linear.register_parameter("bias", None)
    without = Int8Linear(linear)(torch.tensor([[254.0, 128.9]]))
    np.testing.assert_allclose(without.numpy(), [[first, second]], rtol=1e-6)


def test_a_layer_against_whole_numbers_in_numpy() -> None:
    random = np.random.default_rng(0)
    linear = nn.Linear(96, 40)
    states = random.normal(size=(3, 17, 96)).astype(np.float32) * random.uniform(0.01, 50, (3, 17, 1)).astype(
        np.float32
    )
    weight = linear.weight.detach().numpy()
    of_weight, of_states = (
        np.abs(x).max(axis=-1, keepdims=True) / np.float32(largest) for x, largest in ((weight, LARGEST), (states, 127))
    )
    whole = np.rint(states / of_states).astype(np.int64) @ np.rint(weight / of_weight).astype(np.int64).T
    expected = whole * of_states.astype(np.float64) * of_weight[:, 0] + linear.bias.detach().numpy()
    actual = Int8Linear(linear)(torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_tiny_in_int8_is_near_tiny_in_float32() -> None:
    """Tolerances are twice the measured 0.0121 (dense), 0.0108 (token vectors), 0.0024 (lexical), cosine 0.998."""
    folder = find_checkpoint("tiny")
    tokenizer = load_tokenizer(folder)
    full, rounded = (
        M3Network.load(
            folder, device=torch.device("cpu"), dtype=dtype, pad_id=tokenizer.pad_id, ignored_ids=tokenizer.ignored_ids
        )
        for dtype in (torch.float32, torch.int8)
    )
    # Short texts only: each token has its own scale, so length does not matter.
    texts = [text for text in tokenizer(TEXTS, max_length=full.max_positions) if len(text) <= 64]
    assert len(texts) > 80
    expected, actual = encode(full, texts), encode(rounded, texts)
    assert_same(actual, expected, tolerance=0.024)
    assert (actual.dense * expected.dense).sum(axis=1).min() > 0.996
    assert np.abs(actual.dense - expected.dense).max() > 1e-4  # int8 was used
    assert actual.lexical is not None
    assert expected.lexical is not None
    for row in range(len(texts)):
        of = [dict(zip(each[row].indices.tolist(), each[row].values.tolist(), strict=True))
              for each in (actual.lexical, expected.lexical)]  # fmt: skip
        for token in of[0].keys() | of[1].keys():  # a weight near 0 may be none
            assert of[0].get(token, 0) == pytest.approx(of[1].get(token, 0), abs=0.005), (row, token)


def test_a_texts_vectors_do_not_depend_on_its_batch(load: Load, tokenizer: Tokenizer) -> None:
    """A sum that was rounded differently may change an input by one step of 1/127; most inputs stay the same."""
    network = load(dtype=torch.int8)
    texts = tokenizer(TEXTS, max_length=network.max_positions)
    together = encode(network, texts).dense
    alone = np.concatenate([encode(network, [text]).dense for text in texts])
    differences = np.abs(together - alone).max(axis=1)
    assert np.median(differences) < 1e-5
    assert differences.max() < 0.02


def test_values_that_are_not_finite_stay_so(load: Load, tokenizer: Tokenizer) -> None:
    layer = Int8Linear(nn.Linear(4, 3))
    states = torch.ones(3, 4)
    states[1, 2], states[2, 1] = torch.inf, torch.nan
    assert torch.isfinite(layer(states)).all(dim=1).tolist() == [True, False, False]


def test_int8_is_refused_where_it_would_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "has_int8_kernel", lambda: True)
    assert find_dtype("int8", cpu) is torch.int8
    with pytest.raises(ValueError, match="AVX2, got cuda:0"):
        find_dtype("int8", torch.device("cuda:0"))
    monkeypatch.setattr(devices, "has_int8_kernel", lambda: False)
    with pytest.raises(ValueError, match="AVX2, got cpu"):
        find_dtype("int8", cpu)


@pytest.mark.parametrize(
    ("prepacked", "plain", "chosen"),
    [(127, 127, (True, 127)), (63, 127, (True, 63)), (None, 127, (False, 127)), (None, None, None)],
)
def test_onednns_products_are_taken_where_torch_has_them(
    prepacked: int | None, plain: int | None, chosen: tuple[bool, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = {which: n and int8._Kernel(which, n) for which, n in {True: prepacked, False: plain}.items()}
    monkeypatch.setattr(int8, "_exact_kernel", lambda is_prepacked: exact[is_prepacked])
    assert int8._kernel.__wrapped__() == chosen


@pytest.mark.parametrize(
    ("kernel", "has_vnni", "is_fast"),
    [((True, 63), False, True), ((False, 127), True, True), ((False, 127), False, False), (None, True, False)],
)
def test_products_that_torch_only_emulates_are_refused(
    kernel: tuple[bool, int] | None, has_vnni: bool, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    monkeypatch.setattr(int8, "_kernel", lambda: kernel and int8._Kernel(*kernel))
    assert int8.has_int8_kernel() is is_fast


def test_the_choice_is_the_same_whatever_torchs_defaults_are() -> None:
    expected = [int8._exact_kernel(is_prepacked=which) for which in (True, False)]
    try:
        torch.set_default_dtype(torch.float16)
        assert [int8._exact_kernel(is_prepacked=which) for which in (True, False)] == expected
        with torch.device("meta"):
            assert [int8._exact_kernel(is_prepacked=which) for which in (True, False)] == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(largest_weight() is None, reason="products overflow on this CPU")
def test_products_are_those_of_whole_numbers() -> None:
    random = torch.Generator().manual_seed(0)
    weights = torch.randint(-LARGEST, LARGEST + 1, (48, 1024), dtype=torch.int8, generator=random)
    rows = torch.randint(-127, 128, (50, 1024), dtype=torch.int8, generator=random)
    rows[:16], weights[:16] = 127, LARGEST
    found = int8._products(rows, weights, is_prepacked=can_prepack_int8())
    # With AMX oneDNN rounds sums of unsigned rows, below 2**25, to float32 before it subtracts `_MIDDLE`'s share.
    assert (found.double() - rows.double() @ weights.double().T).abs().max() <= (2 if has_amx() else 0)


def test_an_encoder_in_int8_works_and_is_not_saved(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_int8_kernel", lambda: True)
    encoder, full = (M3Encoder(small, shared=False, device="cpu", dtype=dtype) for dtype in ("int8", "float32"))
    (cosine,) = (encoder.encode(["some text"]).dense * full.encode(["some text"]).dense).sum(axis=1)
    assert 0.98 < cosine < 0.99999
    with pytest.raises(ValueError, match="int8 network cannot be saved"):
        encoder.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    full.save(tmp_path / "saved")
