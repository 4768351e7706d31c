"""Weights stored in 8 bits (float8_e4m3fn) load as their values in the dtype that is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from m3_integrations import M3Encoder
from m3_integrations.checkpoint import load_heads
from m3_integrations.checkpoint.architectures import load_backbone
from m3_integrations.model.xlm_roberta import load_encoder

TEXTS = ["how do I rotate the keys?", "", "Ключи меняют раз в год."]
HEADS = ("colbert_linear.pt", "sparse_linear.pt")


def rounded(small: Path, folder: Path, stored: torch.dtype) -> Path:
    """Write a copy of a checkpoint whose weights are rounded to float8, and stored in a dtype that holds them."""
    shutil.copytree(small, folder)
    state = load_file(small / "model.safetensors")
    state = {name: value.to(torch.float8_e4m3fn).to(stored) for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for name in HEADS:
        head = torch.load(small / name, weights_only=True)
        torch.save({key: value.to(torch.float8_e4m3fn).to(stored) for key, value in head.items()}, folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return folder


@pytest.fixture
def by_hand(small: Path, tmp_path: Path) -> Path:
    return rounded(small, tmp_path / "by_hand", torch.float32)


@pytest.fixture
def float8(small: Path, tmp_path: Path) -> Path:
    return rounded(small, tmp_path / "float8", torch.float8_e4m3fn)


def open_encoder(folder: Path) -> M3Encoder:
    return M3Encoder(folder, shared=False, device="cpu", dtype="float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_has_the_value_that_is_stored(float8: Path, by_hand: Path, dtype: torch.dtype) -> None:
    expected = load_file(by_hand / "model.safetensors")
    for load in (load_encoder, load_backbone):  # this package's own, and transformers'
        state = load(float8, dtype).state_dict()
        assert {value.dtype for value in state.values()} == {dtype}
        assert [name for name, value in state.items() if not value.equal(expected[name].to(dtype))] == []
    heads, wanted = load_heads(float8, 64, dtype), load_heads(by_hand, 64, dtype)
    assert heads is not None
    assert wanted is not None
    assert heads.multi_vector.weight.equal(wanted.multi_vector.weight)
    assert heads.lexical.weight.equal(wanted.lexical.weight)


def test_vectors_and_the_fingerprint_are_those_of_the_same_values_in_float32(float8: Path, by_hand: Path) -> None:
    encoder, other = open_encoder(float8), open_encoder(by_hand)
    vectors, expected = encoder.encode(TEXTS), other.encode(TEXTS)
    np.testing.assert_array_equal(vectors.dense, expected.dense)
    np.testing.assert_array_equal(vectors.lexical.values, expected.lexical.values)
    np.testing.assert_array_equal(vectors.multi_vector.flat, expected.multi_vector.flat)
    assert encoder.fingerprint == other.fingerprint


def test_what_is_saved_from_it_is_float32_with_the_same_vectors(float8: Path, tmp_path: Path) -> None:
    encoder = open_encoder(float8)
    encoder.save(tmp_path / "saved")
    assert {value.dtype for value in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.float32}
    saved = open_encoder(tmp_path / "saved")
    assert saved.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(saved.encode(TEXTS).dense, encoder.encode(TEXTS).dense)


def test_a_head_beside_its_own_copy_in_float8_is_no_contradiction(float8: Path, small: Path) -> None:
    head = torch.load(float8 / "sparse_linear.pt", weights_only=True)
    save_file(head, float8 / "sparse_linear.safetensors")
    assert open_encoder(float8).modes == ("dense", "lexical", "multi_vector")
