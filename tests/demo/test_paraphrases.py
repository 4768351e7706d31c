"""The paraphrases of the demo: questions that have no content word in common with the passages that answer them."""

import json
import re
from pathlib import Path
from typing import Final

from m3_integrations.cli.collection import read_collection

PARAPHRASES = [json.loads(line) for line in (Path(__file__).parent / "paraphrases.jsonl").read_text().splitlines()]

# Words that say nothing about the subject of a question. Everything else is a content word.
STOP_WORDS: Final = """
a about after all already an and another any are as at back be before between both but by can cannot do does down
each even every for from get go has have how i if in into is it its itself like made make many me my no not now of
on once one only or other others out over put so some than that the their them then there these they thing things
this to turn two up use used want was way what when where which while who whose will with without would yet you
"""


def content(text: str) -> set[str]:
    """Return the stems of the content words: the first five letters, or the whole word when it is shorter.

    Names are split where an upper-case letter follows a lower-case one: "TemporaryDirectory" is two words.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())
    return {word[:5] for word in words if len(word) > 1 and word not in STOP_WORDS.split()}


def test_content_words_are_stems_without_stop_words() -> None:
    assert content("How do I use the TemporaryDirectory of rm_tree 3?") == {"tempo", "direc", "rm", "tree"}


def test_fifty_questions_are_different_and_have_content_words() -> None:
    assert len({paraphrase["question"] for paraphrase in PARAPHRASES}) == 50
    assert [paraphrase for paraphrase in PARAPHRASES if not content(paraphrase["question"])] == []


def test_no_paraphrase_shares_a_content_word_with_a_passage_that_answers_it() -> None:
    texts = {passage.id: passage.text for passage in read_collection()}
    shared = {
        (paraphrase["question"], name): words
        for paraphrase in PARAPHRASES
        for name in paraphrase["relevant"]
        if (words := content(paraphrase["question"]) & content(texts[name]))  # a KeyError names an unknown passage
    }
    assert shared == {}
