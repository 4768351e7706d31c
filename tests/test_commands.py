"""Every `m3` command as a process: what it prints, and the exit status that a script sees."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from m3_integrations.cli import app

M3 = Path(sys.executable).parent / "m3"

NOTES = """\
# Keys

Every key of the vault is replaced once a year.

# Backups

A backup is written every night at two o'clock and kept for two weeks.
"""


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


def index_and_search(folder: Path) -> None:
    (folder / "notes.md").write_text(NOTES)
    for encoded in ("2", "0"):  # what is there already is not encoded again
        result = run("index", "notes.md", "--store", "idx", cwd=folder)
        assert result.returncode == 0, result.stderr
        assert f"{encoded} encoded" in result.stdout, result.stdout
    found = run("search", "idx", "when is a backup written?", "--k", "1", "--json", cwd=folder)
    assert found.returncode == 0, found.stderr
    (hit,) = json.loads(found.stdout)["hits"]
    assert "every night" in hit["text"]
    assert run("index", "nowhere.md", "--store", "idx", cwd=folder).returncode == 1
    assert run("search", "idx", "what?", "--mode", "thick", cwd=folder).returncode == 1


def evaluation(folder: Path) -> None:
    texts = {"a": "Keys are replaced once a year.", "b": "Backups run at night.", "c": "The museum is closed."}
    questions = {"1": ("when do backups run?", "b"), "2": ("is the museum closed?", "c")}
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    (data / "corpus.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in texts.items()))
    (data / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": i, "text": question}) + "\n" for i, (question, _) in questions.items())
    )
    rows = ["query-id\tcorpus-id\tscore", *(f"{i}\t{answer}\t1" for i, (_, answer) in questions.items())]
    (data / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    result = run("eval", "data", "--modes", "lexical,search:all", "--metrics", "nDCG@10", "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1.000" in result.stdout
    assert (folder / "out" / "tables.md").exists()
    assert run("eval", "nowhere", cwd=folder).returncode == 1


def train(folder: Path) -> None:
    pairs = [{"query": f"question {i}", "pos": [f"text {i}"]} for i in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = folder / "config.toml"
    config.write_text(
        'model = "tiny"\ntrain_data = ["pairs.jsonl"]\noutput_dir = "out"\ndevice = "cpu"\n'
        "steps = 2\nbatch_size = 4\ntrain_group_size = 1\n"
    )
    result = run("train", "config.toml", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The trained checkpoint is in" in result.stdout
    assert (folder / "out" / "final" / "sparse_linear.pt").exists()
    again = run("train", "config.toml", cwd=folder)
    assert again.returncode == 1
    assert "choose another output_dir" in again.stdout


COMMANDS: dict[str, Callable[[Path], None]] = {
    "demo": demo,
    "index": index_and_search,
    "search": index_and_search,
    "eval": evaluation,
    "train": train,
}


@pytest.mark.parametrize("check", dict.fromkeys(COMMANDS.values()), ids=lambda check: check.__name__)
def test_a_command_does_its_work_and_exits_with_its_status(check: Callable[[Path], None], tmp_path: Path) -> None:
    check(tmp_path)


def test_every_command_is_tried_here_and_named_in_the_help(tmp_path: Path) -> None:
    known = {each.name or each.callback.__name__ for each in app.registered_commands if each.callback}
    assert known == COMMANDS.keys()
    shown = run("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert all(re.search(rf"\b{name}\b", shown.stdout) for name in known)
    assert run("no-such-command", cwd=tmp_path).returncode == 2
