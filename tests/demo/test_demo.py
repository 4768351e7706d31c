"""The demo as a newcomer meets it, with the bundled checkpoint."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from m3_integrations import M3Encoder, Searcher, open_store
from m3_integrations.cli import demo
from m3_integrations.cli.collection import read_collection

pytestmark = pytest.mark.filterwarnings("ignore:.*longer than")

QUESTIONS = [json.loads(line) for line in (Path(__file__).parent / "questions.jsonl").read_text().splitlines()]


def test_the_collection_has_thousands_of_passages_with_ids_of_their_own() -> None:
    passages = read_collection()
    assert len(passages) > 3000
    assert len({passage.id for passage in passages}) == len(passages)
    assert {passage.kind for passage in passages} == {"topic", "module", "class", "function"}
    by_id = {passage.id: passage for passage in passages}
    assert by_id["functools.lru_cache"].module == "functools"
    assert "Least-recently-used cache" in by_id["functools.lru_cache"].text
    known = [question for question in QUESTIONS if by_id.keys() & set(question["relevant"])]
    assert len(known) >= 48  # other versions of Python may lack one or the other


def test_most_questions_find_their_passage_among_the_first_three() -> None:
    passages = read_collection()
    with Searcher(M3Encoder("tiny", device="cpu"), open_store()) as searcher:
        searcher.add([passage.text for passage in passages], ids=[passage.id for passage in passages])
        found = 0
        for question in QUESTIONS:
            hits = searcher.search(question["question"], k=3)
            found += any(hit.id.partition("#")[0] in question["relevant"] for hit in hits)
    assert found >= 0.76 * len(QUESTIONS)  # 40 of 50 when the checkpoint was made; a worse one is noticed


def test_the_demo_asks_both_frameworks_and_says_what_it_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [p for p in read_collection() if p.module in {"shutil", "tempfile", "functools"}]
    monkeypatch.setattr(demo, "read_collection", lambda: some)
    console = Console(width=200, record=True, file=io.StringIO())
    demo.run_demo(
        ["copy a whole directory tree recursively"], model="tiny", llm=None, device="cpu", k=3, console=console
    )
    output = console.export_text()
    assert "shutil.copytree" in output
    assert output.count("no language model is connected; the best passage says:") == 2
    assert "LangChain" in output
    assert "LlamaIndex" in output
    assert "shared tokens:" in output
    assert "1 text encoded (the question) in 1 forward pass" in output
    assert "One network was loaded" in output


def test_errors_of_the_command_are_one_line_and_an_exit_status(tmp_path: Path) -> None:
    m3 = Path(sys.executable).parent / "m3"
    for arguments, status, text in (
        (["--help"], 0, "demo"),
        (["demo", "--model", str(tmp_path / "nowhere")], 1, "no checkpoint folder"),
        (["demo", "--device", "toaster"], 1, "cannot be used here"),
        (["demo", "--k", "0"], 2, "--k"),
        (["train", str(tmp_path / "nowhere.toml")], 1, "nowhere.toml"),
    ):
        result = subprocess.run([str(m3), *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == status, result.stderr
        assert text in result.stdout + result.stderr
        assert "Traceback" not in result.stdout + result.stderr
