"""`m3 questions`: training pairs from passages, with questions by a chat model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3_integrations.cli.shared import PipedConsole, errors_in_one_line, escape, open_llm


@errors_in_one_line(stderr=True, after_interrupt="Answers are kept: run the same command again to continue.")
def questions(
    passages: Annotated[Path, typer.Argument(help="JSONL with text and maybe title, as BEIR's corpus.jsonl.",
                        show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="The file for the pairs, in FlagEmbedding's JSONL; answers are kept "
                       "beside it.")],
    llm: Annotated[str, typer.Option(help="A chat model as LangChain names it, such as openai:gpt-5-mini.")],
    sample: Annotated[int | None, typer.Option(help="The number of passages; all if none.")] = None,
    per_passage: Annotated[int, typer.Option(help="Questions for each passage.")] = 1,
    paragraph_length: Annotated[int, typer.Option(help="Characters: a longer passage is asked about by one of "
                                "its paragraphs.")] = 2000,
    concurrency: Annotated[int, typer.Option(help="Questions at the same time.")] = 8,
    seed: Annotated[int, typer.Option(help="The seed of the random choices.")] = 0,
    titles: Annotated[bool, typer.Option(help="Put titles before the texts, as BEIR does.")] = True,
) -> None:  # fmt: skip
    """Have a chat model ask a question about every passage; a run that was killed asks nothing twice."""
    from m3_integrations.training.mining.passages import read_passages
    from m3_integrations.training.mining.questions import QuestionOptions, write_questions

    options = QuestionOptions(
        sample=sample, per_passage=per_passage, paragraph_length=paragraph_length, seed=seed, concurrency=concurrency
    )
    if not passages.is_file():
        raise FileNotFoundError(f"no file {passages}")
    report = write_questions(
        read_passages(passages, titles=titles), open_llm(llm), out, options, model_name=llm, show_progress=True
    )
    blank = f", {report.blank:,} answers held no question" if report.blank else ""
    line = f"{report.pairs:,} pairs of {report.passages:,} passages are in {out} ({report.asked:,} asked now{blank})"
    PipedConsole().print(escape(line), highlight=False, soft_wrap=True)
