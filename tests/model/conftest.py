"""Networks over one checkpoint with different layouts of a batch, and the texts that they read."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.model import ForwardPass, M3Network, cpu_layers
from m3_integrations.model.prepacked import can_prepack
from m3_integrations.tokenizer import Tokenizer, Tokens

Load = Callable[..., M3Network]


@pytest.fixture(params=["small", "wide"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def tokenizer(checkpoint: Path) -> Tokenizer:
    return load_tokenizer(checkpoint)


@pytest.fixture
def load(checkpoint: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a network; with `is_plain` without the layers for CPUs, as on other devices."""

    def load(
        *,
        is_packed: bool | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        is_plain: bool = False,
    ) -> M3Network:
        monkeypatch.setattr(cpu_layers, "can_prepack", lambda dtype: can_prepack(dtype) and not is_plain)
        return M3Network.load(
            checkpoint,
            device=torch.device(device),
            dtype=dtype,
            pad_id=tokenizer.pad_id,
            ignored_ids=tokenizer.ignored_ids,
            is_packed=is_packed,
        )

    return load


def encode(network: M3Network, batch: Sequence[Tokens], asked: Sequence[bool] | None = None) -> ForwardPass:
    return network.launch(batch, multi_vector=[True] * len(batch) if asked is None else asked).wait()


def assert_same(actual: ForwardPass, expected: ForwardPass, tolerance: float = 1e-5) -> None:
    """Compare all three outputs within tolerance * max(1, |expected|); a weight within it of 0 may be absent."""
    assert actual.lexical is not None
    assert expected.lexical is not None
    assert actual.multi_vector is not None
    assert expected.multi_vector is not None
    np.testing.assert_array_equal(actual.is_finite, expected.is_finite)
    np.testing.assert_array_equal(actual.multi_vector.offsets, expected.multi_vector.offsets)
    np.testing.assert_allclose(actual.dense, expected.dense, rtol=0, atol=tolerance)
    np.testing.assert_allclose(actual.multi_vector.flat, expected.multi_vector.flat, rtol=0, atol=tolerance)
    for of_one, of_other in zip(actual.lexical, expected.lexical, strict=True):
        weights, expected_weights = of_one.to_dict(), of_other.to_dict()
        for token in weights.keys() | expected_weights.keys():
            value = expected_weights.get(token, 0.0)
            assert abs(weights.get(token, 0.0) - value) <= tolerance * max(1, value)
