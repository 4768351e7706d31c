"""More positions than a checkpoint had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, BertConfig, BertModel

from m3_integrations import M3Encoder
from m3_integrations.training import run_training
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.positions import extend_positions
from tests.training.conftest import WriteConfig

TEXTS = ["Nobody in the village remembers.", "salt and water, " * 12]


def table_of(network: Any) -> Any:
    return network.embeddings.position_embeddings


def test_texts_that_fitted_before_have_the_same_vectors_and_longer_ones_are_read(small: Path, tmp_path: Path) -> None:
    network = TrainingNetwork.load(small)
    extend_positions(network.backbone, network.tokenizer, 300)
    network.save(tmp_path / "longer")
    long_text = "salt and water, " * 90
    with (
        M3Encoder(small, shared=False, device="cpu") as before,
        M3Encoder(tmp_path / "longer", shared=False, device="cpu") as after,
    ):
        np.testing.assert_array_equal(after.encode(TEXTS).dense, before.encode(TEXTS).dense)
        assert (before.max_length, after.max_length) == (128, 300)
        assert len(after.tokenize([long_text])[0]) == 299
    config = json.loads((tmp_path / "longer" / "config.json").read_text())
    assert config["max_position_embeddings"] == 302
    assert AutoTokenizer.from_pretrained(tmp_path / "longer").model_max_length == 300


def test_new_positions_repeat_the_old_ones_from_the_first(small: Path) -> None:
    network = TrainingNetwork.load(small)
    old = table_of(network.backbone).weight.detach().clone()
    extend_positions(network.backbone, network.tokenizer, 300)
    new = table_of(network.backbone).weight
    assert new.shape == (302, 64)
    assert new[:130].equal(old)
    for place in range(300):  # row 2 is the first position
        assert new[2 + place].equal(old[2 + place % 128])
    assert new.requires_grad


def test_a_network_whose_positions_begin_at_0(small: Path) -> None:
    network = TrainingNetwork.load(small)
    bert = BertModel(
        BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16)
    )
    old = table_of(bert).weight.detach().clone()
    extend_positions(bert, network.tokenizer, 40)
    new = table_of(bert).weight
    assert all(new[place].equal(old[place % 16]) for place in range(40))
    assert bert.config.max_position_embeddings == 40


def test_fewer_positions_are_refused_and_as_many_change_nothing(small: Path) -> None:
    network = TrainingNetwork.load(small)
    table = table_of(network.backbone)
    extend_positions(network.backbone, network.tokenizer, 128)
    assert table_of(network.backbone) is table
    with pytest.raises(ValueError, match="positions must be at least 128, which the checkpoint has, got 127"):
        extend_positions(network.backbone, network.tokenizer, 127)
    with pytest.raises(ValueError, match="Linear has no table of positions"):
        extend_positions(network.lexical_head, network.tokenizer, 300)


def test_a_run_extends_them_first_and_goes_on_with_them(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(stage="retromae", positions=200, passage_max_length=150)
    final = run_training(config, show_progress=False)
    with M3Encoder(final, shared=False, device="cpu") as encoder:
        assert encoder.max_length == 200
    for path in final.iterdir():
        if path.is_file():
            path.unlink()
    run_training(config, show_progress=False)  # from the last checkpoint, which has them already
