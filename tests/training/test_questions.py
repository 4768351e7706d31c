"""Questions from chat models of langchain-core that answer without a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel, SimpleChatModel
from langchain_core.messages import BaseMessage
from typer.testing import CliRunner

from m3_integrations.cli import app
from m3_integrations.training.data import read_examples
from m3_integrations.training.mining.questions import PROMPT, QuestionOptions, write_questions
from tests.evaluation.worlds import write_jsonl

PASSAGES = [f"Passage {i} about keys." for i in range(12)]


class Asker(SimpleChatModel):
    """Asks what the last line of a prompt is about, and keeps the prompts; fails or dies where it is told to."""

    prompts: list[str]
    fails_at: str = ""
    dies_at: str = ""

    @property
    def _llm_type(self) -> str:
        return "asker"

    def _call(self, messages: list[BaseMessage], *arguments: Any, **keywords: Any) -> str:
        text = str(messages[-1].content)
        self.prompts.append(text)
        last = text.splitlines()[-1]
        if self.dies_at and self.dies_at in last:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails_at and self.fails_at in last:
            raise TimeoutError("no answer within 60 s")
        return f'\n "What is {last[:20]}?" \n'


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_prompt_is_the_papers() -> None:
    # Chen et al. 2024, v4, appendix A.2, typed from the paper, whose quotation marks are typographical.
    assert PROMPT == (
        "You are a curious AI assistant, please generate one specific and valuable question based on the following "
        "text. The generated question should revolve around the core content of this text, and avoid using pronouns "
        '(e.g., "this"). Note that you should generate only one question, without including additional content:'
    )


def test_every_passage_gets_a_question_and_the_file_is_training_data(tmp_path: Path) -> None:
    model = Asker(prompts=[])
    report = write_questions([*PASSAGES, " ", PASSAGES[0]], model, tmp_path / "q.jsonl")
    assert (report.passages, report.pairs, report.asked, report.blank) == (12, 12, 12, 0)
    assert sorted(model.prompts) == sorted(f"{PROMPT}\n\n{text}" for text in PASSAGES)
    examples = read_examples([tmp_path / "q.jsonl"])
    assert [(e.query, e.positives, e.negatives) for e in examples] == [
        (f"What is {text[:20]}?", (text,), ()) for text in PASSAGES
    ]


def test_any_chat_model_answers_and_the_same_question_is_one_example(tmp_path: Path) -> None:
    answers = ["1st?", "Sure! Here it is:\n\nWhich keys?", "", "1st?", "Schlüssel"]
    model = FakeListChatModel(responses=answers)
    report = write_questions(PASSAGES[:5], model, tmp_path / "q.jsonl", QuestionOptions(concurrency=1))
    assert (report.pairs, report.blank) == (3, 1)
    assert read(tmp_path / "q.jsonl") == [
        {"query": "1st?", "pos": [PASSAGES[0], PASSAGES[3]], "neg": []},
        {"query": "Which keys?", "pos": [PASSAGES[1]], "neg": []},
        {"query": "Schlüssel", "pos": [PASSAGES[4]], "neg": []},
    ]


def test_a_long_text_is_asked_about_by_paragraphs_and_is_the_positive_as_a_whole(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i} " + "says a thing " * 20 for i in range(4)]
    long = "A heading\n\n" + "\n\n".join(paragraphs)
    model = Asker(prompts=[])
    options = QuestionOptions(per_passage=3, paragraph_length=400)
    write_questions([long], model, tmp_path / "q.jsonl", options)
    about = {prompt.partition("\n\n")[2] for prompt in model.prompts}
    assert len(about) == 3
    assert about < {paragraph.strip() for paragraph in paragraphs}  # the heading is too short to be asked about
    assert [row["pos"] for row in read(tmp_path / "q.jsonl")] == [[long]] * 3
    wall = " ".join(f"word{i}" for i in range(1000))
    model.prompts.clear()
    write_questions([wall], model, tmp_path / "w.jsonl", options)
    for prompt in model.prompts:
        run = prompt.partition("\n\n")[2]
        assert 380 <= len(run) <= 400
        assert f" {run} " in f" {wall} "  # whole words


def test_what_was_answered_is_not_asked_again_after_an_error(tmp_path: Path) -> None:
    out = tmp_path / "q.jsonl"
    options = QuestionOptions(concurrency=4)
    with pytest.raises(RuntimeError, match=r"failed: TimeoutError: no answer within 60 s\. Its answers are kept"):
        write_questions(PASSAGES, Asker(prompts=[], fails_at="Passage 5 "), out, options)
    assert not out.exists()
    model = Asker(prompts=[])
    report = write_questions(PASSAGES, model, out, options)
    assert report.asked == 5  # the fifth, which failed, and the four of the batch after it
    assert {prompt.splitlines()[-1] for prompt in model.prompts} == {PASSAGES[i] for i in (5, 8, 9, 10, 11)}
    assert [row["pos"] for row in read(out)] == [[text] for text in PASSAGES]


KILLED = """
import sys
from pathlib import Path
from tests.training.test_questions import PASSAGES, Asker, QuestionOptions, write_questions
options = QuestionOptions(concurrency=1)
write_questions(PASSAGES, Asker(prompts=[], dies_at="Passage 7 "), Path(sys.argv[1]), options, model_name="a")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    out = tmp_path / "q.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(ValueError, match="begun with another chat_model"):
        write_questions(PASSAGES, Asker(prompts=[]), out, model_name="b")
    model = Asker(prompts=[])
    assert write_questions(PASSAGES, model, out, model_name="a").asked == len(model.prompts) == 5
    write_questions(PASSAGES, model, tmp_path / "whole.jsonl", model_name="a")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_larger_sample_asks_only_what_is_new(tmp_path: Path) -> None:
    model, out = Asker(prompts=[]), tmp_path / "q.jsonl"
    assert write_questions(PASSAGES, model, out, QuestionOptions(sample=5)).asked == 5
    first = {row["query"] for row in read(out)}
    out.unlink()
    assert write_questions(PASSAGES, model, out, QuestionOptions(sample=9)).asked == 4
    rows = read(out)
    assert first < {row["query"] for row in rows}
    assert [row["pos"][0] for row in rows] == [text for text in PASSAGES if [text] in [row["pos"] for row in rows]]
    out.unlink()
    other = write_questions(PASSAGES, model, tmp_path / "other.jsonl", QuestionOptions(sample=5, seed=1))
    assert other.pairs == 5
    assert {row["query"] for row in read(tmp_path / "other.jsonl")} != first


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").touch()
    with pytest.raises(FileExistsError, match="choose another file"):
        write_questions(PASSAGES, Asker(prompts=[]), tmp_path / "q.jsonl")
    with pytest.raises(ValueError, match="there is no passage to ask about"):
        write_questions([" "], Asker(prompts=[]), tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match="per_passage must be at least 1, got 0"):
        QuestionOptions(per_passage=0)


def test_the_command_names_what_is_missing_in_one_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [{"text": "a"}])
    for arguments, said in (
        ([str(tmp_path / "absent")], "no file"),
        ([str(tmp_path / "c.jsonl"), "--sample", "0"], "sample must be at least 1, got 0"),
        ([str(tmp_path / "c.jsonl")], "--llm needs langchain and the provider's package: pip install langchain"),
    ):
        if "langchain and" in said and "langchain" in sys.modules:
            continue
        out = ["--out", str(tmp_path / "q.jsonl"), "--llm", "openai:x"]
        result = CliRunner().invoke(app, ["questions", *arguments, *out])
        assert result.exit_code == 1, result.output
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
