"""What the README shows works as it stands."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) == 4


def test_the_promise_runs_and_finds_the_right_document() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    (found,) = names["found"]
    assert found.id == "1"
    assert found.score > 0
    assert found.m3_scores.keys() == {"dense", "lexical", "multi_vector"}


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


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # Ray's own
def test_the_block_of_many_machines_passes_arguments_that_there_are() -> None:
    import m3_integrations.ray

    calls = [node for node in ast.walk(ast.parse(BLOCKS[3])) if isinstance(node, ast.Call)]
    named = [(node.func.id, node) for node in calls if isinstance(node.func, ast.Name)]
    assert sorted(name for name, _ in named) == ["encode_corpus", "encode_corpus", "read_jsonl", "serve_encoder"]
    for name, node in named:
        keywords = {keyword.arg or "": None for keyword in node.keywords}
        inspect.signature(getattr(m3_integrations.ray, name)).bind(*node.args, **keywords)


@pytest.mark.parametrize("line", ["m3 demo", "pytest"])
def test_one_line_each_sets_up_and_runs(line: str) -> None:
    assert len(re.findall(rf"^python3 -m venv \.venv && .* && {line}$", README, re.MULTILINE)) == 1


def test_every_cookbook_is_listed_and_every_link_leads_somewhere() -> None:
    folder = Path(__file__).parent.parent
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README)
    assert [link for link in links if not (folder / link).exists()] == []
    assert {f"cookbooks/{path.name}" for path in folder.glob("cookbooks/*.ipynb")} <= set(links)


def test_the_command_lines_index_and_search(tmp_path: Path) -> None:
    """The block that begins with `m3 index`, in a folder that has what it names."""
    (block,) = re.findall(r"^```bash\n(m3 index .*?)^```$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "m3_integrations").symlink_to(Path(__file__).parent.parent / "m3_integrations")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Debian" in result.stdout
