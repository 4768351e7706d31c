"""Relevance by answer strings, as in MKQA: a document is relevant if it contains one of the answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import regex

from m3_integrations.evaluation.corpus import Corpus, parse_row, read_lines
from m3_integrations.evaluation.metrics import check_metrics, parse_metric
from m3_integrations.vectors import IntArray

ANSWER_METRICS: Final = ("Success@20", "Success@100")
"""The share of queries with an answer among the first 20 or 100 hits; papers on MKQA call it Recall@20 and @100."""

_WORD: Final = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
"""A run of letters, digits and marks, or any other single visible character."""

_CONTROLS: Final = "".join(map(chr, [*range(1, 9), 14, 15, *range(17, 28), 0xAD]))
_FOLDED: Final = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\uff0d\u207b", "-"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u055a\ua78b\ua78c\uff07`\u00b4\u2032\u2035", "'"),
        **dict.fromkeys("\u2033\u2036", "''"),
        **dict.fromkeys("\u2034\u2037", "'''"),
        "\u2057": "''''",
        "\u2026": "...",
        **dict.fromkeys("\u2044\u2215", "/"),
        **dict.fromkeys("\v\f\u0085", " "),
        **dict.fromkeys(_CONTROLS, ""),
    }
)
"""Typographic characters such as hyphens and quotation marks, and the plain ones that the reference puts instead."""


def read_questions(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read MKQA's questions: each line is a JSON object with "id", "question" and "answers".

    Returns:
        The text and the answers of every question, by its id.

    Raises:
        ValueError: If a line is not such an object, for the reasons of `parse_row`, or if the file has no question.
    """
    queries, answers, seen = {}, {}, set[str]()
    for number, (_, line) in enumerate(read_lines(path), start=1):
        row = parse_row(line, path, number, ("id", "question"), known=seen)
        known = row.get("answers")
        if not isinstance(known, list) or not known or not all(isinstance(answer, str) for answer in known):
            raise ValueError(f"{path}, entry {number} must have answers, a list of one or more strings, got {known!r}")
        queries[row["id"]], answers[row["id"]] = row["question"], known
    if not queries:
        raise ValueError(f"{path} has no questions")
    return queries, answers


def check_answer_metrics(metrics: Sequence[str] | None) -> Sequence[str]:
    """Return the metrics, or `ANSWER_METRICS` if None. Only Success is allowed: only found documents are judged.

    Raises:
        TypeError: If metrics is one string.
        ValueError: If metrics is empty, or one is unknown or not Success.
    """
    chosen = check_metrics(metrics, default=ANSWER_METRICS)
    if {parse_metric(metric).NAME for metric in chosen} != {"Success"}:
        raise ValueError(
            f"only Success@k can be measured with answers, because only the documents found are judged; got {metrics}"
        )
    return chosen


def judge_by_answers(
    corpus: Corpus, answers: Mapping[str, Sequence[str]], found: Mapping[str, IntArray]
) -> dict[str, dict[str, int]]:
    """Return for each query the gain of each document that it found: 1 if it contains an answer, else 0.

    Args:
        corpus: The documents.
        answers: The answers of every query.
        found: The rows of the documents that every query found.
    """
    rows = np.unique(np.concatenate(list(found.values())))
    words = dict(zip(rows.tolist(), map(document_words, corpus.texts(rows)), strict=True))
    judged: dict[str, dict[str, int]] = {}
    for query, own in found.items():
        wanted = [answer_words(answer) for answer in answers[query]]
        judged[query] = {corpus.ids[row]: int(contains_answer(words[row], wanted)) for row in own.tolist()}
    return judged


def answer_words(text: str) -> list[str]:
    """Return the words of an answer: decomposed (NFD) and in lower case; a punctuation mark is a word too."""
    return [word.lower() for word in _WORD.findall(unicodedata.normalize("NFD", text))]


def document_words(text: str) -> list[str]:
    """Return the words of a document. Unlike in answers, typographic characters are replaced by plain ones first."""
    return answer_words(text.lower().translate(_FOLDED))


def contains_answer(words: Sequence[str], answers: Sequence[Sequence[str]]) -> bool:
    """Return whether the words of any answer occur in a document's words, one directly after another.

    Source: FlagEmbedding's evaluation on MKQA, which follows RocketQA's definition of a relevant passage.

    Args:
        words: `document_words` of the document.
        answers: `answer_words` of every answer. As in the source, an answer without words, such as "", is in every
            document.
    """
    joined = "\0" + "".join(f"{word}\0" for word in words)
    return any("\0" + "".join(f"{word}\0" for word in answer) in joined for answer in answers)
