"""A pass starts without waiting for the device, and returns the right results later."""

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from m3_integrations.model import packing
from m3_integrations.model.forward_pass import ForwardPass, to_device
from m3_integrations.tokenizer import Tokenizer
from tests.golden.texts import TEXTS
from tests.model.conftest import Load, assert_same, encode


@pytest.mark.parametrize("layout", ["packed", "packed for the kernel", "padded", "one length"])
def test_a_launch_asks_nothing_of_the_device(
    load: Load, tokenizer: Tokenizer, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors have no values: a step that reads a value raises. On CUDA the same step would wait."""
    network = load(is_packed=layout.startswith("packed"), is_plain=True)
    if layout == "packed for the kernel":
        monkeypatch.setattr(packing, "has_varlen_kernel", lambda _: True)
    texts = tokenizer(TEXTS[:1] * 3 if layout == "one length" else TEXTS, max_length=60)
    asked = [i % 2 == 0 for i in range(len(texts))]
    with FakeTensorMode(allow_non_fake_inputs=True):
        launched = network.launch(texts, multi_vector=asked)
    tensors = launched.tensors
    assert tensors["dense"].shape == (len(texts), network.dim)
    wanted = sum(len(text) - 1 for text, is_asked in zip(texts, asked, strict=True) if is_asked)
    assert tensors["token_vectors"].shape == (wanted, network.multi_vector_dim)
    assert tensors["lexical_weights"].shape == (sum(map(len, texts)),)


def test_no_mask_is_asked_whether_it_masks_anything(
    load: Load, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers reads the values of a mask that it widens itself, but not of fake tensors."""

    def refuse(_: torch.Tensor) -> bool:
        raise AssertionError("the value of a tensor is asked for")

    network, texts = load(is_packed=False), tokenizer(TEXTS, max_length=60)
    expected = encode(load(is_packed=True), texts)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__bool__", refuse)
        launched = network.launch(texts, multi_vector=[True] * len(texts))
    assert_same(launched.wait(), expected)


def test_fake_tensors_notice_a_step_that_waits(
    load: Load, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load(is_packed=False, is_plain=True)
    results = network._results

    def waiting(hidden: torch.Tensor, here: Any, n: int) -> Any:
        return results(hidden[torch.isfinite(hidden).all(dim=1)], here, n)

    monkeypatch.setattr(network, "_results", waiting)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises((DataDependentOutputException, DynamicOutputShapeException)),
    ):
        network.launch(tokenizer(TEXTS, max_length=60), multi_vector=[True] * len(TEXTS))


def test_passes_may_be_started_before_earlier_ones_are_waited_for(load: Load, tokenizer: Tokenizer) -> None:
    for is_packed in (False, True):
        network = load(is_packed=is_packed)
        batches = [tokenizer(TEXTS[i : i + 8], max_length=60) for i in range(0, 40, 8)]
        expected = [encode(network, batch) for batch in batches]
        launched = [network.launch(batch, multi_vector=[True] * len(batch)) for batch in batches]
        for batch, output in zip(reversed(launched), reversed(expected), strict=True):
            assert_same(batch.wait(), output, tolerance=0)


def test_a_text_whose_values_are_not_finite_is_named(load: Load, tokenizer: Tokenizer) -> None:
    for is_packed in (False, True):
        network: Any = load(is_packed=is_packed)
        texts = tokenizer(["good", "the bad one", "good too"], max_length=60)
        bad = set(texts[1].ids.tolist()) - {token for i in (0, 2) for token in texts[i].ids.tolist()}
        network.backbone.embeddings.word_embeddings.weight[min(bad)] = torch.nan
        output = encode(network, texts)
        assert output.is_finite.tolist() == [True, False, True]
        assert np.isfinite(output.dense[[0, 2]]).all()


def test_arrays_come_back_as_they_were_sent() -> None:
    arrays = {"a": np.array([3, 1, 2]), "none": np.empty(0, np.int64), "b": np.arange(5)}
    there = to_device(arrays, torch.device("cpu"), None)
    assert {tensor.dtype for tensor in there.values()} == {torch.int64}
    assert {name: tensor.tolist() for name, tensor in there.items()} == {
        "a": [3, 1, 2], "none": [], "b": [0, 1, 2, 3, 4],
    }  # fmt: skip
    results = {"is_finite": torch.tensor([True, False]), "dense": torch.tensor([[0.5], [2.0]])}
    output = ForwardPass(results, [0, 0], None).wait()
    assert (output.is_finite.tolist(), output.dense.tolist()) == ([True, False], [[0.5], [2.0]])
    assert (output.lexical, output.multi_vector) == (None, None)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 6e-3), (torch.bfloat16, 5e-2), (torch.float32, 1e-4)])
def test_cuda_gives_the_cpus_numbers_without_waiting(
    load: Load, tokenizer: Tokenizer, dtype: torch.dtype, tolerance: float
) -> None:
    """The tolerances are expectations: this test has not run on a GPU yet.

    They are twice the differences of the same packed batch on the CPU, measured on both checkpoints: 0.0015 (dense),
    0.0027 (token vectors) and 0.0063 (lexical, relative above 1) in float16; 0.012, 0.024 and 0.047 in bfloat16.
    """
    network = load(dtype=dtype, device="cuda")
    assert network.is_packed == (dtype != torch.float32 and torch.cuda.get_device_capability() >= (8, 0))
    texts = tokenizer(TEXTS, max_length=60)
    expected = encode(load(), texts)
    encode(network, texts)  # the first pass may wait: it sets up the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = [network.launch(texts, multi_vector=[True] * len(texts)) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch in launched:
        output = batch.wait()
        assert_same(output, expected, tolerance=2 * tolerance)
        np.testing.assert_allclose(output.dense, expected.dense, rtol=0, atol=tolerance)
