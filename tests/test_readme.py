"""What the README, and the pages beside the code, show works as it stands."""

import ast
import base64
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(path for folder in ("m3_integrations", "tests") for path in (ROOT / folder).rglob("*.md"))


def blocks(page: str) -> list[str]:
    """Return the blocks of Python of a page below the project's folder."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_every_block_of_python_is_run_below_or_in_the_tests_of_evaluation() -> None:
    with_blocks = {str(path.relative_to(ROOT)): n for path in PAGES if (n := len(blocks(str(path.relative_to(ROOT)))))}
    assert len(blocks("README.md")) == 1
    assert with_blocks == {f"m3_integrations/{room}README.md": 1 for room in ("", "evaluation/", "ray/", "store/")}


def test_the_first_block_finds_the_right_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks("README.md")[0], names)
    (found,) = names["found"]
    names["retriever"].store.close()
    assert found.id == "1"
    assert found.score > 0
    assert found.m3_scores.keys() == {"dense", "lexical", "multi_vector"}
    assert (tmp_path / "my-index" / "m3-store.json").exists()


def test_the_encoders_block_runs() -> None:
    names: dict[str, object] = {}
    exec(blocks("m3_integrations/README.md")[0], names)
    scores = names["scores"]
    assert isinstance(combined := getattr(scores, "combined", None), np.ndarray)
    assert combined[0] > combined[1]


def test_the_stores_block_makes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(blocks("m3_integrations/store/README.md")[0], {})
    assert (tmp_path / "my-index" / "m3-store.json").exists()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # Ray's own
def test_the_block_of_many_machines_passes_arguments_that_there_are() -> None:
    import m3_integrations.ray

    (block,) = blocks("m3_integrations/ray/README.md")
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    named = [(node.func.id, node) for node in calls if isinstance(node.func, ast.Name)]
    assert sorted(name for name, _ in named) == ["encode_corpus", "encode_corpus", "read_jsonl", "serve_encoder"]
    for name, node in named:
        keywords = {keyword.arg or "": None for keyword in node.keywords}
        inspect.signature(getattr(m3_integrations.ray, name)).bind(*node.args, **keywords)


@pytest.mark.parametrize("line", ["m3 demo", "pytest"])
def test_one_line_each_sets_up_and_runs(line: str) -> None:
    assert len(re.findall(rf"^python3 -m venv \.venv && .* && {line}$", README, re.MULTILINE)) == 1


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_cookbook_and_every_page_is_linked() -> None:
    linked: set[Path] = set()
    unread = [ROOT / "README.md"]
    while unread:
        page = unread.pop()
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
        new = {(page.parent / link).resolve() for link in links} - linked
        linked |= new
        unread += [link for link in new if link.suffix == ".md"]
    assert {*ROOT.glob("cookbooks/*.ipynb"), *PAGES} <= linked


def test_the_picture_is_the_cookbooks() -> None:
    cells = json.loads((ROOT / "cookbooks" / "4_why_did_this_match.ipynb").read_text())["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    pictures = [base64.b64decode("".join(data["image/png"])) for data in outputs if "image/png" in data]
    assert (ROOT / "cookbooks" / "pictures" / "scores.png").read_bytes() == pictures[0]


@pytest.mark.slow
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
