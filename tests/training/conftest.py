"""A very small run: a random checkpoint and a few examples in FlagEmbedding's format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden.texts import TEXTS

WriteConfig = Callable[..., Path]


def write_examples(path: Path, count: int = 24) -> Path:
    """Write examples with one positive and two negatives each, of different lengths."""
    texts = [text[:80] for text in TEXTS if text.strip()]
    rows = [
        {
            "query": texts[i % len(texts)][:20] or "a",
            "pos": [f"{texts[i % len(texts)]} {i}"],
            "neg": [f"{texts[(i + 3) % len(texts)]} no", f"{texts[(i + 5) % len(texts)]} {'longer ' * (i % 7)}"],
            "pos_scores": [2.0],
            "neg_scores": [1.0 - i / 9, -0.5],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def without_dropout(small: Path, tmp_path: Path) -> Path:
    """The small checkpoint without dropout, so that a batch in parts computes what the whole one does."""
    folder = tmp_path / "without_dropout"
    shutil.copytree(small, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def write_config(tmp_path: Path, small: Path) -> WriteConfig:
    """Gives a function that writes a configuration on the small checkpoint; arguments overrule its settings."""

    def write(name: str = "run", **settings: object) -> Path:
        write_examples(tmp_path / "examples.jsonl")
        values: dict[str, object] = {
            "model": str(small),
            "train_data": ["examples.jsonl"],
            "output_dir": name,
            "device": "cpu",
            "steps": 6,
            "batch_size": 4,
            "train_group_size": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "log_every": 1,
            "save_every": 3,
            **settings,
        }
        path = tmp_path / f"{name}.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in values.items()), encoding="utf-8")
        return path

    return write


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
