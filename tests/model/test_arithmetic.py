"""The choice of the dtype, and how far bfloat16 and int8 are from float32: in vectors, scores and ranking."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.model import cpu_layers, devices, find_dtype, packing, prepacked
from m3_integrations.model.devices import faster_dtype, is_emulated
from m3_integrations.tokenizer import Tokenizer
from m3_integrations.vectors import M3Scores
from tests.golden.texts import TEXTS
from tests.model.conftest import Load, assert_same, encode

CPU = torch.device("cpu")
MODES = ("dense", "lexical", "multi_vector")

BOUNDS = {
    "bfloat16": {"vectors": 0.01, "weights": 0.014, "dense": 0.01, "lexical": 0.033, "multi_vector": 0.006},
    "int8": {"vectors": 0.025, "weights": 0.005, "dense": 0.048, "lexical": 0.026, "multi_vector": 0.025},
}
"""Largest differences from float32 on `tiny`: twice the measured ones, over 104 texts and all pairs of them."""

OVERLAP = {"bfloat16": 0.98, "int8": 0.95}
"""The least share of the ten best that must stay the same (measured: 0.99 and 0.97)."""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for text in dict.fromkeys(TEXTS) if text.strip() and len(text) < 900]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
def test_vectors_scores_and_ranking_stay_near_those_of_float32(texts: list[str], dtype: str) -> None:
    full, rounded = (M3Encoder("tiny", shared=False, device="cpu", dtype=name) for name in ("float32", dtype))
    bounds, expected, actual = BOUNDS[dtype], full.encode(texts), rounded.encode(texts)
    assert 1e-4 < np.abs(actual.dense - expected.dense).max() < bounds["vectors"]
    assert np.abs(actual.multi_vector.flat - expected.multi_vector.flat).max() < bounds["vectors"]
    for of_one, of_other in zip(actual.lexical, expected.lexical, strict=True):
        one, other = of_one.to_dict(), of_other.to_dict()
        assert all(abs(one.get(token, 0) - other.get(token, 0)) < bounds["weights"] for token in one | other)
    found, wanted = ([encoder.score(query, texts) for query in texts] for encoder in (rounded, full))
    for mode in MODES:
        scores, expected_scores = _matrix(found, mode), _matrix(wanted, mode)
        assert np.abs(scores - expected_scores).max() < bounds[mode]
        best, expected_best = (np.argsort(-each, axis=1, kind="stable")[:, :10] for each in (scores, expected_scores))
        shared = [len(set(one) & set(other)) for one, other in zip(best.tolist(), expected_best.tolist(), strict=True)]
        assert np.mean(shared) / 10 >= OVERLAP[dtype]


def _matrix(scores: list[M3Scores], mode: str) -> Any:
    return np.array([getattr(row, mode) for row in scores])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepacked_layers_equal_those_of_transformers(load: Load, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    if not prepacked.can_prepack(dtype):
        pytest.skip("torch has no prepacked products here")
    texts = tokenizer(TEXTS, max_length=60)
    fast, plain = load(dtype=dtype), load(dtype=dtype, is_plain=True)
    assert (fast.is_packed, plain.is_packed) == (True, False)
    assert not any(isinstance(module, prepacked.PrepackedLinear) for module in plain.modules())
    assert_same(encode(fast, texts), encode(plain, texts), tolerance=1e-5 if dtype == torch.float32 else 0.05)


def test_keys_and_tokens_that_amx_likes_change_no_vector(
    load: Load, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any CPU: 30 equal texts of 13 tokens, and all of 2 to 60. Both run on the CPU's own products."""
    if not prepacked.can_prepack(torch.bfloat16):
        pytest.skip("torch has no prepacked products here")
    network = load(dtype=torch.bfloat16)
    shapes: list[int] = []

    def prepare(states: torch.Tensor) -> torch.Tensor:
        shapes.append(len(states))
        return states

    backbone: Any = network.backbone
    monkeypatch.setattr(backbone.encoder.layer[0].attention.self.query, "prepare", prepare)
    texts = tokenizer([*["keys " * 11] * 30, *TEXTS], max_length=60)
    assert {len(text.ids) % 16 >= 8 for text in texts} == {True, False}
    for batch in (texts, texts[:1], texts[:7]):
        n = sum(len(text.ids) for text in batch)
        found = []
        for has_amx in (True, False):
            for module in (packing, cpu_layers):
                monkeypatch.setattr(module, "has_amx", lambda has_amx=has_amx: has_amx)
            found.append(encode(network, batch))
        assert shapes[-2:] == [n + (-n % 32 if n >= 64 else 0), n]
        assert_same(found[0], found[1], tolerance=0.03)


def test_the_attention_of_added_keys_is_that_of_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, width = [13, 13, 3, 125, 16, 31, 600], 64
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), 2 * width, generator=random).bfloat16() for _ in range(3))
    v += 4  # a key that should not count would show
    monkeypatch.setattr(packing, "has_amx", lambda: True)
    assert [packing._keys_to_add(n, q) for n in lengths] == [3, 3, 0, 3, 0, 1, 0]
    assert packing._keys_to_add(13, q.float()) == 0
    mixed = packing.attend_per_text(q, k, v, packing.runs_of(lengths), 2)
    ends = np.cumsum(lengths).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        for head in (slice(width), slice(width, None)):
            query, key, value = (each[start:end, head].double() for each in (q, k, v))
            expected = (query @ key.T / width**0.5).softmax(dim=1) @ value
            torch.testing.assert_close(mixed[start:end, head].double(), expected, rtol=0, atol=0.03)


def test_a_prepacked_network_is_saved_bit_for_bit(small: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    encoder = M3Encoder(small, shared=False, device="cpu", dtype="float32")
    encoder.save(tmp_path / "saved")
    before, after = (load_file(folder / "model.safetensors") for folder in (small, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_release_of_torch_that_lacks_the_functions_still_serves(
    load: Load, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tokenizer(TEXTS[:20], max_length=60)
    expected = encode(load(), texts)
    prepacked.can_prepack.cache_clear()
    monkeypatch.setattr(prepacked, "_mkldnn", SimpleNamespace())
    try:
        network = load()
        assert not network.is_packed
        assert_same(encode(network, texts), expected)
    finally:
        prepacked.can_prepack.cache_clear()


def test_auto_is_float32_on_a_cpu_and_logs_once_what_would_be_faster(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices._log_faster_dtype.cache_clear()
    monkeypatch.setattr(devices, "faster_dtype", lambda _: "bfloat16")
    with caplog.at_level(logging.INFO, logger="m3_integrations"):
        assert [find_dtype("auto", CPU) for _ in range(3)] == [torch.float32] * 3
    (record,) = caplog.records
    assert "dtype='bfloat16' takes about a third of its time" in record.getMessage()


@pytest.mark.parametrize(("amx", "vnni", "expected"), [(True, True, "bfloat16"), (False, True, "int8")])
def test_what_is_faster_depends_on_the_cpu(
    amx: bool, vnni: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    for name in ("can_prepack", "has_int8_kernel"):
        monkeypatch.setattr(devices, name, lambda *_: True)
    assert faster_dtype(CPU) == expected
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert faster_dtype(CPU) is None
    assert faster_dtype(torch.device("meta")) is None


def test_a_dtype_that_the_cpu_emulates_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
    with pytest.warns(UserWarning, match="no instructions for bfloat16 and emulates it"):
        assert find_dtype("bfloat16", CPU) is torch.bfloat16
    assert not is_emulated(torch.float32)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert find_dtype("bfloat16", CPU) is torch.bfloat16  # pytest turns a warning into an error


_AS_WITH_AVX2_ALONE = """
import numpy as np
from m3_integrations import M3Encoder
from m3_integrations.model.int8 import can_prepack_int8, largest_weight
full, rounded = (M3Encoder("tiny", shared=False, device="cpu", dtype=dtype) for dtype in ("float32", "int8"))
texts = ["how do I rotate the keys of the vault", "bridges have joints since steel grows in the sun", "tea"]
one, other = (encoder.encode(texts) for encoder in (rounded, full))
print(can_prepack_int8(), largest_weight(), np.abs(one.dense - other.dense).max())
"""


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="no x86 CPU with AVX2")
def test_int8_has_weights_of_7_bits_where_8_would_overflow() -> None:
    """OneDNN and torch are limited to AVX2, where sums of two products saturate at 16 bits.

    On a CPU that has no more than AVX2, torch itself multiplies with other code, which was exact for 8 bits on an AMD
    EPYC, and slow; oneDNN needs weights of 7 bits there too.
    """
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    run = subprocess.run(
        [sys.executable, "-c", _AS_WITH_AVX2_ALONE], env=environment, capture_output=True, text=True, check=True
    )
    is_prepacked, largest, difference = run.stdout.split()
    assert (is_prepacked, largest) in {("True", "63"), ("False", "63"), ("False", "127")}
    assert largest == "63" or not torch.cpu._is_avx512_supported()
    assert 1e-4 < float(difference) < 0.05
