"""Questions for passages, asked of a chat model: training pairs from texts that nobody has asked anything yet."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

try:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise ModuleNotFoundError(
        "questions are asked through langchain-core: pip install 'PATH_TO_THE_CLONE[langchain]'", name=error.name
    ) from error
from tqdm.auto import tqdm

from m3_integrations.training.mining.passages import passage_id
from m3_integrations.training.mining.progress import ProgressFile, replace_lines

PROMPT: Final = (
    "You are a curious AI assistant, please generate one specific and valuable question based on the following text. "
    'The generated question should revolve around the core content of this text, and avoid using pronouns (e.g., "this"'
    "). Note that you should generate only one question, without including additional content:"
)
"""The paper's prompt for its long documents, word for word (v4, appendix A.2); the text stands below it."""

_LEAST: Final = 200
"""Characters: a shorter paragraph, such as a heading, is asked about only where a text has no longer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionOptions:
    """What is asked.

    Attributes:
        sample: How many of the passages get questions, drawn by the seed; None for all.
        per_passage: How many questions each gets at most. A long text is asked about another paragraph each time.
        paragraph_length: Characters: of a longer text one paragraph is drawn and cut to this. As in the paper (v4,
            section 3.1) the question is about the paragraph, and the whole text is its positive.
        prompt: Stands above the text.
        seed: Decides which passages and which paragraphs.
        concurrency: How many questions are asked at the same time.

    Raises:
        ValueError: If a number is out of range.
    """

    sample: int | None = None
    per_passage: int = 1
    paragraph_length: int = 2000
    prompt: str = PROMPT
    seed: int = 0
    concurrency: int = 8

    def __post_init__(self) -> None:
        for name in ("sample", "per_passage", "paragraph_length", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True)
class QuestionReport:
    """What was asked.

    Attributes:
        passages: How many passages were asked about.
        pairs: How many training examples the file has.
        asked: How many questions the chat model was asked for now; the others it had answered before.
        blank: How many of its answers held no question.
    """

    passages: int
    pairs: int
    asked: int
    blank: int


@dataclass(frozen=True, slots=True)
class _Request:
    """A question to be had: the key of its answer, the text that it is about, and the text that is its positive."""

    key: str
    about: str
    positive: str


def write_questions(
    passages: Iterable[str],
    chat_model: BaseChatModel,
    out: Path,
    options: QuestionOptions | None = None,
    *,
    model_name: str = "",
    show_progress: bool = False,
) -> QuestionReport:
    """Write a training file: a question a line, and the passage that answers it as its positive.

    Every answer is kept in OUT.answers as soon as it comes, and is never asked for again: neither after a kill, nor for
    a larger sample, nor for more questions a passage. The result appears as a whole, in the order of the passages; a
    question that was asked about several has them all as positives. It has no negatives: `m3 mine` finds some.

    Args:
        passages: Texts; blank ones and those that came before are left out.
        chat_model: Any chat model of LangChain.
        out: Where the file goes.
        options: Which passages, and what is asked.
        model_name: What the chat model is called; the answers of another are not used.
        show_progress: Whether to draw a bar.

    Raises:
        FileExistsError: If there is such a file already.
        BlockingIOError: If another process asks for the same file.
        ValueError: If there is no passage, or OUT.answers are another model's or another prompt's.
        RuntimeError: If the chat model fails; its error is the cause. What was answered until then is kept.
    """
    options = options or QuestionOptions()
    if out.exists():
        raise FileExistsError(f"{out} is there already: choose another file")
    texts = _sampled(passages, options)
    requests = [request for text in texts for request in _requests(text, options)]
    answers_path = out.with_name(f"{out.name}.answers")
    with ProgressFile.open(answers_path, {"chat_model": model_name, "prompt": options.prompt}) as file:
        known = {row["key"] for row in file.rows}
        missing = list({request.key: request for request in requests if request.key not in known}.values())
        with tqdm(total=len(missing), desc="asking", unit="question", disable=not show_progress) as bar:
            for key, question in _ask(chat_model, missing, options):
                file.append([{"key": key, "question": question}])
                bar.update()
        questions = {row["key"]: row["question"] for row in file.rows}
        positives: dict[str, list[str]] = {}
        for request in requests:
            if question := questions[request.key]:
                held = positives.setdefault(question, [])
                held.extend([request.positive] if request.positive not in held else [])
        replace_lines(out, ({"query": query, "pos": held, "neg": []} for query, held in positives.items()))
    blank = sum(not questions[request.key] for request in requests)
    return QuestionReport(passages=len(texts), pairs=len(positives), asked=len(missing), blank=blank)


def _sampled(passages: Iterable[str], options: QuestionOptions) -> list[str]:
    """Return the passages that get questions, in their order."""
    texts = list(dict.fromkeys(text for text in passages if text.strip()))
    if not texts:
        raise ValueError("there is no passage to ask about")
    if options.sample is None or options.sample >= len(texts):
        return texts
    # By a number that each text draws for itself: a larger sample holds the smaller one, whose answers are known.
    drawn = sorted(range(len(texts)), key=lambda i: random.Random(f"{options.seed} {passage_id(texts[i])}").random())  # noqa: S311
    return [texts[i] for i in sorted(drawn[: options.sample])]


def _requests(text: str, options: QuestionOptions) -> Iterator[_Request]:
    """Yield what is asked about one text."""
    paragraphs = [text]
    if len(text) > options.paragraph_length:
        parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
        paragraphs = [part for part in parts if len(part) >= _LEAST] or parts
    draw = random.Random(f"{options.seed} {passage_id(text)}")  # noqa: S311 - a choice that anyone may foresee
    draw.shuffle(paragraphs)
    for i in range(options.per_passage):
        about = _cut(paragraphs[i % len(paragraphs)], options.paragraph_length, draw)
        yield _Request(f"{passage_id(about)} {i}", about, text)


def _cut(paragraph: str, length: int, draw: random.Random) -> str:
    """Return a run of so many characters of a longer paragraph, from somewhere in it, between blanks if it has some."""
    if len(paragraph) <= length:
        return paragraph
    start = draw.randrange(len(paragraph) - length + 1)
    cut = paragraph[start : start + length]
    if start:
        cut = cut.partition(" ")[2] or cut
    if start + length < len(paragraph):
        cut = cut.rpartition(" ")[0] or cut
    return cut


def _ask(
    chat_model: BaseChatModel, requests: Sequence[_Request], options: QuestionOptions
) -> Iterator[tuple[str, str]]:
    """Yield the key and the question of every request, as they are answered.

    Raises:
        RuntimeError: If the chat model fails, once the others that were asked at the same time are answered.
    """
    size = options.concurrency
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        prompts = [f"{options.prompt}\n\n{request.about}" for request in batch]
        failure: Exception | None = None
        for i, answer in chat_model.batch_as_completed(
            list(prompts), config={"max_concurrency": size}, return_exceptions=True
        ):
            if isinstance(answer, BaseMessage):
                yield batch[i].key, _question(answer)
            elif isinstance(answer, Exception):
                failure = failure or answer
        if failure is not None:
            raise RuntimeError(
                f"the chat model failed: {type(failure).__name__}: {failure}. What it answered is kept; the same call "
                "goes on from there"
            ) from failure


def _question(answer: BaseMessage) -> str:
    """Return the question in an answer, on one line and without quotes around it; "" if there is none."""
    lines = [line.strip() for line in str(answer.text).splitlines() if line.strip()]
    first = next((line for line in lines if line.endswith(("?", "？", "؟", ";"))), lines[0] if lines else "")  # noqa: RUF001
    return first.strip("\"'“”„«»*` ").strip()
