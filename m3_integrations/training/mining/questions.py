"""Questions for passages, written by a chat model: training pairs for texts without real questions."""

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
"""The paper's prompt for its long documents, word for word (v4, appendix A.2); the text follows it."""

_LEAST: Final = 200
"""In characters: a shorter paragraph, such as a heading, is used only if a text has no longer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionOptions:
    """The options for writing questions.

    Attributes:
        sample: The number of passages that get questions, a random sample; None for all.
        per_passage: The most questions for each passage. For a long text each question is about another paragraph.
        paragraph_length: In characters: of a longer text a random paragraph is used, cut to this length. As in the
            paper (v4, section 3.1) the question is about the paragraph, and the whole text is its positive.
        prompt: Put before the text.
        seed: The seed of the choice of passages and paragraphs.
        concurrency: The number of questions that are asked at the same time.

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
    """The numbers of a run.

    Attributes:
        passages: The number of passages that were used.
        pairs: The number of training examples in the file.
        asked: The number of requests to the chat model in this call; the other answers were kept from before.
        blank: The number of empty answers.
    """

    passages: int
    pairs: int
    asked: int
    blank: int


@dataclass(frozen=True, slots=True)
class _Request:
    """A request for a question: the key of its answer, the text that it is about, and the text that is its positive."""

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
    """Write a training file: in each line a question, and the passage that answers it as its positive.

    Every answer is kept in OUT.answers as soon as it comes, and is not asked for again: not after a kill, not for a
    larger sample, and not for more questions per passage. The result is written in one step, in the order of the
    passages. If the same question was written for several passages, all of them are its positives. The file has no
    negatives: `m3 mine` finds some.

    Args:
        passages: The texts; blank and repeated ones are left out.
        chat_model: Any chat model of LangChain.
        out: The file to write.
        options: The options for writing questions.
        model_name: The name of the chat model; the answers of another one are not used.
        show_progress: Whether to draw a progress bar.

    Raises:
        FileExistsError: If the file exists already.
        BlockingIOError: If another process writes the same file.
        ValueError: If there is no passage, or OUT.answers are of another model or another prompt.
        RuntimeError: If the chat model fails; its error is the cause. The answers until then are kept.
    """
    options = options or QuestionOptions()
    if out.exists():
        raise FileExistsError(f"{out} exists already: choose another file")
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
    # Each text has its own random number: so a larger sample contains the smaller one, whose answers are kept.
    drawn = sorted(range(len(texts)), key=lambda i: random.Random(f"{options.seed} {passage_id(texts[i])}").random())  # noqa: S311
    return [texts[i] for i in sorted(drawn[: options.sample])]


def _requests(text: str, options: QuestionOptions) -> Iterator[_Request]:
    """Yield the requests for one text."""
    paragraphs = [text]
    if len(text) > options.paragraph_length:
        parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
        paragraphs = [part for part in parts if len(part) >= _LEAST] or parts
    draw = random.Random(f"{options.seed} {passage_id(text)}")  # noqa: S311 - not for security
    draw.shuffle(paragraphs)
    for i in range(options.per_passage):
        about = _cut(paragraphs[i % len(paragraphs)], options.paragraph_length, draw)
        yield _Request(f"{passage_id(about)} {i}", about, text)


def _cut(paragraph: str, length: int, draw: random.Random) -> str:
    """Return a random part of a longer paragraph, of at most this many characters, cut at spaces if possible."""
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
    """Yield the key and the question of every request, in the order of the answers.

    Raises:
        RuntimeError: If the chat model fails, after the answers to the other requests of the same batch.
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
                f"the chat model failed: {type(failure).__name__}: {failure}. Its answers are kept: repeat the call "
                "to continue"
            ) from failure


def _question(answer: BaseMessage) -> str:
    """Return the question in an answer, one line without quotes around it; "" if the answer is empty."""
    lines = [line.strip() for line in str(answer.text).splitlines() if line.strip()]
    first = next((line for line in lines if line.endswith(("?", "？", "؟", ";"))), lines[0] if lines else "")  # noqa: RUF001
    return first.strip("\"'“”„«»*` ").strip()
