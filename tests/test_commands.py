"""Every `m3` command once as a process: that it starts, does its work, and what exit status a script sees.

`m3 index` and `m3 search` run as processes in the README's block (test_readme.py). All else that commands do is tested
in this process, next to what they call.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3_integrations.cli import app
from tests.evaluation.worlds import write_beir, write_jsonl

M3 = Path(sys.executable).parent / "m3"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Wide, so that no line is broken; without colours and without transformers' bar.
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [str(M3), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def demo(folder: Path) -> None:
    result = run("demo", "copy a whole directory tree recursively", "--device", "cpu", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert re.search(r"Indexed \d{3} docstrings", result.stdout)
    quoted = r"\(no language model is connected; the best passage says:\) .*shutil\.copytree: Recursively copy"
    for framework in ("LangChain", "LlamaIndex"):
        assert re.search(f"^{framework} +{quoted}", result.stdout, re.MULTILINE)
    assert "shared tokens:" in result.stdout
    assert "1 text encoded (the question) in 1 forward pass" in result.stdout
    assert "One network was loaded" in result.stdout


def evaluation(folder: Path) -> None:
    texts = {"a": "Keys are replaced once a year.", "b": "Backups run at night.", "c": "The museum is closed."}
    questions = {"1": "when do backups run?", "2": "is the museum closed?"}
    write_beir(folder / "data", texts, questions, {"1": {"b": 1}, "2": {"c": 1}})
    result = run("eval", "data", "--modes", "lexical,search:all", "--metrics", "nDCG@10", "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1.000" in result.stdout
    assert (folder / "out" / "tables.md").exists()


def train(folder: Path) -> None:
    write_jsonl(folder / "pairs.jsonl", [{"query": f"question {i}", "pos": [f"text {i}"]} for i in range(4)])
    (folder / "config.toml").write_text(
        'model = "tiny"\ntrain_data = ["pairs.jsonl"]\noutput_dir = "out"\ndevice = "cpu"\n'
        "steps = 2\nbatch_size = 4\ntrain_group_size = 1\n"
    )
    result = run("train", "config.toml", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The trained checkpoint is in" in result.stdout
    assert (folder / "out" / "final" / "sparse_linear.pt").exists()
    again = CliRunner().invoke(app, ["train", str(folder / "config.toml")])
    assert again.exit_code == 1
    assert "choose another output_dir" in again.stdout


COMMANDS: dict[str, Callable[[Path], None]] = {"demo": demo, "eval": evaluation, "train": train}


@pytest.mark.parametrize("check", COMMANDS.values(), ids=COMMANDS)
def test_a_command_does_its_work_and_exits_with_its_status(check: Callable[[Path], None], tmp_path: Path) -> None:
    check(tmp_path)


def test_every_command_is_tried_and_named_in_the_help(tmp_path: Path) -> None:
    known = {each.name or each.callback.__name__ for each in app.registered_commands if each.callback}
    assert known == {*COMMANDS, "index", "search"}
    shown = run("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert all(re.search(rf"\b{name}\b", shown.stdout) for name in known)
    assert run("no-such-command", cwd=tmp_path).returncode == 2


def test_the_help_loads_neither_torch_nor_a_framework() -> None:
    code = (
        "import sys; from m3_integrations.cli import app; app(['--help'], standalone_mode=False); "
        "print({'torch', 'transformers', 'langchain_core', 'llama_index', 'scipy'} & set(sys.modules) or 'none')"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "none"
