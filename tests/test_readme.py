"""What the README shows works as it stands."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) == 3


def test_the_promise_runs_and_finds_the_right_document() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    (found,) = names["found"]
    assert found.id == "1"
    assert found.metadata["relevance_score"] > 0
    assert found.metadata["m3_scores"].keys() == {"dense", "lexical", "multi_vector"}


def test_the_encoders_block_runs() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    scores = names["scores"]
    assert isinstance(combined := getattr(scores, "combined", None), np.ndarray)
    assert combined[0] > combined[1]


def test_the_stores_block_makes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[2], {})
    assert (tmp_path / "my-index" / "m3-store.json").exists()


@pytest.mark.parametrize("line", ["m3 demo", "pytest"])
def test_one_line_each_sets_up_and_runs(line: str) -> None:
    assert len(re.findall(rf"^python3 -m venv \.venv && .* && {line}$", README, re.MULTILINE)) == 1
