"""Relevance by answer strings, as MKQA is judged: a document is relevant if it contains one of the answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

import regex

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
"""Typographic hyphens, quotation marks and the like, and what the reference's judging reads in their place."""


def answer_words(text: str) -> list[str]:
    """Give the words that answers are compared by: decomposed (NFD), in lower case, punctuation marks one each."""
    return [word.lower() for word in _WORD.findall(unicodedata.normalize("NFD", text))]


def document_words(text: str) -> list[str]:
    """Give a document's words; its typographic marks are folded to plain ones first, which an answer's are not."""
    return answer_words(text.lower().translate(_FOLDED))


def contains_answer(words: Sequence[str], answers: Sequence[Sequence[str]]) -> bool:
    """Say whether the words of any answer stand in a document's words, one after another.

    Source: FlagEmbedding's evaluation on MKQA, which follows RocketQA's definition of a relevant passage.

    Args:
        words: `document_words` of the document.
        answers: `answer_words` of every answer; one without words, such as "", is in every document there, and here.
    """
    joined = "\0" + "".join(f"{word}\0" for word in words)
    return any("\0" + "".join(f"{word}\0" for word in answer) in joined for answer in answers)
