"""Every `m3` command once as a process: that it starts, does its work, and what exit status a script sees.

`m3 index` and `m3 search` run as processes in the README's block (test_readme.py), `m3 serve` in serve/test_ending.py.
What `m3 migrate` does is tried in store/test_migrating.py, `m3 load` in parquet/test_parquet.py.
All else that commands do is tested in this process, next to what they call.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3_integrations.cli import app
from m3_integrations.evaluation import read_dataset
from m3_integrations.training import load_config
from m3_integrations.training.data import read_examples
from tests.evaluation.worlds import write_beir, write_jsonl
from tests.langchain.test_imports import WITHOUT

M3 = Path(sys.executable).parent / "m3"


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    # Wide, so that no line is broken; without colours and without transformers' bar.
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {**os.environ, **plain, **variables}
    return subprocess.run(
        [str(M3), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def demo(folder: Path) -> None:
    result = run("demo", "copy a whole directory tree recursively", "--model", "tiny", "--device", "cpu", cwd=folder)
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
    options = ["--modes", "lexical,search:all", "--metrics", "nDCG@10", "--out", "out"]
    result = run("eval", "data", "--model", "tiny", *options, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1.000" in result.stdout
    assert "lexical and search:all rank alike here: nDCG@10 1.000." in result.stdout
    assert (folder / "out" / "tables.md").exists()


def diff(folder: Path) -> None:
    texts = {"a": "Keys are replaced once a year.", "b": "Backups run at night.", "c": "The museum is closed."}
    questions = {"1": "when do backups run?", "2": "is the museum closed?"}
    write_beir(folder / "data", texts, questions, {"1": {"b": 1}, "2": {"c": 1}})
    result = run("diff", "tiny", "tiny,mode=lexical", "data", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 questions won, 0 lost, 2 are as before" in result.stdout


def migrate(folder: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("Keys are replaced once a year.")
    assert run("index", "texts", "--store", "idx", "--model", "tiny", cwd=folder).returncode == 0
    same = run("migrate", "idx", "--model", "tiny", cwd=folder)
    assert (same.returncode, same.stdout) == (0, "idx already has vectors of tiny\n"), same.stderr
    absent = run("migrate", "nowhere", "--model", "tiny", cwd=folder)
    assert (absent.returncode, "no store at nowhere" in absent.stderr) == (1, True)


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


def mine(folder: Path) -> None:
    write_jsonl(folder / "pairs.jsonl", [{"query": f"what are keys {i}?", "pos": [f"keys of {i}"]} for i in range(5)])
    write_jsonl(folder / "corpus.jsonl", [{"_id": str(i), "text": f"keys of {i} and {2**i}"} for i in range(20)])
    line = ["mine", "pairs.jsonl", "--corpus", "corpus.jsonl", "--out", "mined.jsonl", "--ranks", "1-9", "-n", "4"]
    result = run(*line, "--duplicates", "1", "--model", "tiny", "--device", "cpu", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "20 negatives for 5 queries are in mined.jsonl\n"
    examples = read_examples([folder / "mined.jsonl"])
    assert all(len(set(example.negatives)) == 4 for example in examples)
    again = run(*line, "--device", "cpu", cwd=folder)
    assert (again.returncode, again.stderr) == (1, "error: mined.jsonl exists already: choose another file\n")


LANGCHAIN = """
from langchain_core.language_models import FakeListChatModel

def init_chat_model(name):
    assert name == "fake:model"
    return FakeListChatModel(responses=["What are keys?", "What is a vault?"])
"""


def questions(folder: Path) -> None:
    write_jsonl(folder / "corpus.jsonl", [{"text": "Keys."}, {"text": "A vault."}])
    (folder / "path" / "langchain").mkdir(parents=True)
    (folder / "path" / "langchain" / "__init__.py").touch()
    (folder / "path" / "langchain" / "chat_models.py").write_text(LANGCHAIN)
    line = ["questions", "corpus.jsonl", "--out", "pairs.jsonl", "--llm", "fake:model", "--concurrency", "1"]
    places = os.pathsep.join(filter(None, [str(folder / "path"), os.environ.get("PYTHONPATH")]))
    result = run(*line, cwd=folder, PYTHONPATH=places)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "2 pairs of 2 passages are in pairs.jsonl (2 asked now)\n"
    assert [(example.query, example.positives) for example in read_examples([folder / "pairs.jsonl"])] == [
        ("What are keys?", ("Keys.",)),
        ("What is a vault?", ("A vault.",)),
    ]


COMMANDS: dict[str, Callable[[Path], None]] = {
    "demo": demo,
    "eval": evaluation,
    "diff": diff,
    "migrate": migrate,
    "mine": mine,
    "questions": questions,
    "train": train,
}


@pytest.mark.parametrize("check", COMMANDS.values(), ids=COMMANDS)
def test_a_command_does_its_work_and_exits_with_its_status(check: Callable[[Path], None], tmp_path: Path) -> None:
    check(tmp_path)


@pytest.mark.slow
def test_the_example_of_a_training_run_runs_as_it_is(tmp_path: Path) -> None:
    printed = run("train", "--example", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "train.toml").write_text(printed.stdout)
    result = run("train", "train.toml", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The trained checkpoint is in m3-training/unified/final, with a card" in result.stdout
    for stage in ("retromae", "contrastive", "unified"):
        assert re.search(rf"^{stage}: step 10 of \d+, epoch .* tokens/s, .* left$", result.stderr, re.MULTILINE)
        assert re.search(rf"^{stage}: step 10, nDCG@10: dense 0\.\d+", result.stderr, re.MULTILINE)
    absent = run("train", cwd=tmp_path)
    assert absent.returncode == 1
    assert "m3 train --example prints one" in absent.stdout


def test_every_command_is_tried_and_named_in_the_help(tmp_path: Path) -> None:
    known = {each.name or each.callback.__name__ for each in app.registered_commands if each.callback}
    assert known == {*COMMANDS, "fit", "index", "load", "search", "serve", "help"}
    assert run("help", cwd=tmp_path).stdout.split() == run("--help", cwd=tmp_path).stdout.split()
    shown = run("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert all(re.search(rf"\b{name}\b", shown.stdout) for name in known)
    assert run("no-such-command", cwd=tmp_path).returncode == 2


def test_the_version_is_told_and_shells_complete(tmp_path: Path) -> None:
    shown = run("--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"m3-integrations {version('m3-integrations')}\n")
    completed = CliRunner().invoke(app, [], prog_name="m3", env={
        "_M3_COMPLETE": "complete_bash", "COMP_WORDS": "m3 sea", "COMP_CWORD": "1",
    })  # fmt: skip
    assert completed.stdout.split() == ["search"]


def test_the_demo_without_a_framework_names_the_extra(tmp_path: Path) -> None:
    for absent in ("langchain_core", "llama_index.core"):
        code = WITHOUT.format(absent=absent, module="cli.frameworks")
        said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
        assert said.strip().endswith("and one is missing: pip install 'PATH_TO_THE_CLONE[all]'"), said


def test_the_bar_of_loading_stays_out_of_logs(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    code = "from m3_integrations import M3Encoder; M3Encoder('tiny', device='cpu')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_a_missing_file_of_a_data_set_is_answered_with_the_layout(tmp_path: Path) -> None:
    texts, layout = {"a": "Keys."}, "a data set is a folder with corpus.jsonl"
    for absent in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        folder = tmp_path / absent.partition("/")[0]
        write_beir(folder, texts, {"1": "keys?"}, {"1": {"a": 1}})
        (folder / absent).unlink()
        result = CliRunner().invoke(app, ["eval", str(folder), "--device", "cpu"])
        assert result.exit_code == 1
        assert layout in result.stdout, result.stdout
        assert "qrels/test.tsv (query-id, corpus-id and score" in result.stdout


def test_a_byte_order_mark_begins_no_content(tmp_path: Path) -> None:
    """Windows' editors write one."""
    mark = b"\xef\xbb\xbf"
    write_beir(tmp_path, {"a": "Keys."}, {"1": "keys?"}, {"1": {"a": 1}})
    (tmp_path / "qrels" / "test.tsv").write_text("1\ta\t1\n")  # without a first line of names
    (tmp_path / "pairs.txt").write_text('{"query": "q", "pos": ["t"]}\n')
    (tmp_path / "run.toml").write_text('model = "tiny"\ntrain_data = "pairs.txt"\noutput_dir = "out"\nsteps = 1\n')
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.write_bytes(mark + path.read_bytes())
    dataset = read_dataset(tmp_path)
    assert (list(dataset.corpus.texts()), dataset.queries, dataset.qrels) == (
        ["Keys."],
        {"1": "keys?"},
        {"1": {"a": 1}},
    )
    assert read_examples(load_config(tmp_path / "run.toml").train_data)[0].query == "q"


@pytest.mark.parametrize(("command", "said"), [("train", "from the last checkpoint"), ("eval", "Vectors that were")])
def test_ctrl_c_says_that_the_same_line_goes_on(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("m3_integrations.training.run_training", interrupted)
    monkeypatch.setattr("m3_integrations.evaluation.find_folders", interrupted)
    result = CliRunner().invoke(app, [command, str(tmp_path)])
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted. ")
    assert said in result.stderr


def test_the_help_loads_neither_torch_nor_a_framework() -> None:
    code = (
        "import sys; from m3_integrations.cli import app; app(['--help'], standalone_mode=False); "
        "print({'torch', 'transformers', 'langchain_core', 'llama_index', 'scipy'} & set(sys.modules) or 'none')"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "none"
