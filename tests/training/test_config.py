"""The settings of a run, from TOML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from m3_integrations.training import LossSettings, TrainingConfig, load_config

LEAST = 'model = "some/repository"\ntrain_data = ["a.jsonl", "more"]\noutput_dir = "out"\nsteps = 10\n'


def test_paths_are_relative_to_the_file_and_defaults_are_the_papers(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(LEAST + "learning_rate = 1\n[loss]\nlexical_weight = 0.5\n")
    (tmp_path / "here").mkdir()
    expected = TrainingConfig(
        model="some/repository",
        train_data=(tmp_path / "a.jsonl", tmp_path / "more"),
        output_dir=tmp_path / "out",
        steps=10,
        learning_rate=1,
        loss=LossSettings(lexical_weight=0.5),
    )
    assert load_config(path) == expected
    assert expected.loss == LossSettings(
        temperature=0.02, dense_weight=1.0, lexical_weight=0.5, multi_vector_weight=1.0,
        dense_lambda=1.0, lexical_lambda=0.1, multi_vector_lambda=1.0, self_distillation=True,
    )  # fmt: skip
    path.write_text(LEAST.replace("some/repository", "here"))
    assert load_config(path).model == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = ", "is not TOML"),
        ("steps = 10", "lacks model, output_dir, train_data"),
        (LEAST + "learning_rat = 1e-3", "unknown settings: learning_rat"),
        (LEAST + "[loss]\ntau = 0.1", "unknown settings: tau"),
        (LEAST + 'seed = "one"', "seed must be of type int, got 'one'"),
        (LEAST + "seed = true", "seed must be of type int, got True"),
        (LEAST + "[loss]\nself_distillation = 1", "self_distillation must be of type bool, got 1"),
        (LEAST + "seed = -1", "seed must be from 0 to 4294967295, got -1"),
        (LEAST + "seed = 4294967296", "seed must be from 0 to 4294967295, got 4294967296"),
        (LEAST + "batch_size = 0", "batch_size must be at least 1, got 0"),
        (LEAST + 'precision = "int8"', "precision must be .*, got 'int8'"),
        (LEAST + "[loss]\ntemperature = 0.0", "temperature must be positive and finite, got 0.0"),
        (LEAST + "learning_rate = nan", "learning_rate must be positive and finite, got nan"),
        (LEAST + "warmup_steps = -1", "warmup_steps must be 0 or more and finite, got -1"),
        (LEAST + "weight_decay = inf", "weight_decay must be 0 or more and finite, got inf"),
        (LEAST + "max_grad_norm = nan", "max_grad_norm must be 0 or more and finite, got nan"),
        (LEAST + "query_max_length = 2", "query_max_length must be at least 3"),
        (LEAST + "loss = 3", "loss must be a table"),
        (re.sub("train_data.*", "train_data = [1]", LEAST), "train_data must be of type .*, got \\[1\\]"),
        (LEAST + "# \udcff", "is not TOML"),
        (LEAST + 'batch_size_by_length = {"512" = "8"}', "batch_size_by_length must be of type .*, got {'512': '8'}"),
        (LEAST + 'batch_size_by_length = {"512" = 8, long = 4}', "\"1000\" = 768 has it, got 'long' = 4"),
        (LEAST + 'batch_size_by_length = {"512" = 0}', "got '512' = 0"),
        (LEAST + 'batch_size_by_length = {"64" = 8}', "ends at 64 tokens, and passage_max_length is 128"),
        (LEAST + "shuffle_ratio = 2", "shuffle_ratio must be from 0 to 1, got 2"),
        (LEAST + "sub_batch_tokens = -1", "sub_batch_tokens must be 0 or more, got -1"),
        (LEAST + 'split_batch = "half"', "split_batch must be one of checkpointing, gradient_cache, got 'half'"),
        (LEAST + 'sub_batch_tokens = 9\nsplit_batch = "checkpointing"', "saves nothing without gradient_checkpointing"),
        (LEAST + "free_layers = -2", "free_layers must be -1 or more, got -2"),
        (
            LEAST + 'stage = "retromae"\nfree_layers = 0',
            "free_layers = 0 trains only the heads, which .* retromae does",
        ),
        (
            LEAST + 'stage = "contrastive"\nfree_layers = 0',
            "the stage contrastive does not change: put it into .unified",
        ),
        (
            LEAST + "train_group_size = 1\n[loss]\nin_batch_negatives = false",
            "train_group_size = 1 and in_batch_negatives = false leave a query no negatives",
        ),
        (
            LEAST + 'stage = "contrastive"\n[loss]\nknowledge_distillation = true',
            "contrastive has no knowledge_distillation, .* or put them into .unified.loss.",
        ),
        (
            LEAST + 'stage = "contrastive"\n[loss]\nin_batch_negatives = false',
            "its only negatives are in_batch_negatives",
        ),
        (LEAST + "start_weight = 1", "start_weight must be 0 or more and below 1, got 1"),
        (LEAST + '[loss]\nkd_loss_type = "kl"', "kd_loss_type must be one of kl_div, m3_kd_loss, got 'kl'"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")  # one of them is not UTF-8
    with pytest.raises(ValueError, match=message):
        load_config(path)


@pytest.mark.parametrize("data", ["a.jsonl", Path("a.jsonl"), ["a.jsonl"], (Path("a.jsonl"),)], ids=repr)
def test_paths_may_be_strings_and_one_file_stands_alone(data: Any) -> None:
    settings: dict[str, Any] = {"model": Path("base"), "output_dir": "out", "eval_data": "asked"}
    config = TrainingConfig(train_data=data, steps=1, **settings)
    assert config == TrainingConfig(
        model="base", train_data=(Path("a.jsonl"),), output_dir=Path("out"), eval_data=Path("asked"), steps=1
    )
    assert config.model == "base"
    assert config.train_data == (Path("a.jsonl"),)
    assert (config.output_dir, config.eval_data) == (Path("out"), Path("asked"))
