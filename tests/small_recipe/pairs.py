"""Pairs of a short and a longer text, within a language and between it and English."""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.small_recipe.sections import LANGUAGES, SPACELESS, Section, is_held_out
from tests.tiny_recipe.descriptions import split_sentences

_MOST_PER_LANGUAGE: Final = 60_000
_MOST_PER_SOURCE: Final = 22_000
_CROSS_SHARE: Final = 0.3
_ENOUGH: Final = 8_000
_MOST_WITH_ONE_TITLE: Final = 6


@dataclass(frozen=True, slots=True)
class TextPair:
    """A short text and the longer one that goes with it.

    Attributes:
        language: Of the pair; of the one that is not English if they differ.
        source: Package, without its language.
        key: What all pairs of one text share, in every language.
        query: The short text.
        passage: The longer text, or the same one in another language.
        is_cross: Whether the two are in different languages.
        held_out: Whether it is kept for measuring.
    """

    language: str
    source: str
    key: str
    query: str
    passage: str
    is_cross: bool
    held_out: bool


def make_pairs(sections: Sequence[Section], *, seed: int) -> list[TextPair]:
    """Make the pairs of every language: within it, and about 30% between it and English."""
    state = random.Random(seed)
    titles = Counter((section.language, section.source, section.title) for section in sections)
    english = {section.key: section for section in sections if section.language == "en"}
    within: dict[str, list[TextPair]] = defaultdict(list)
    across: dict[str, list[TextPair]] = defaultdict(list)
    for section in sections:
        held_out = is_held_out(section.key)
        is_rare = titles[section.language, section.source, section.title] <= _MOST_WITH_ONE_TITLE
        for query, passage in _pairs_within(section, state, has_title=is_rare and bool(section.title)):
            within[section.language].append(
                TextPair(section.language, section.source, section.key, query, passage, False, held_out)
            )
        other = english.get(section.key)
        if section.language != "en" and other is not None:
            for query, passage in _pairs_across(section, other):
                across[section.language].append(
                    TextPair(section.language, section.source, section.key, query, passage, True, held_out)
                )
    chosen: list[TextPair] = []
    for language in LANGUAGES:
        chosen.extend(_choose(within[language], across[language], state))
    state.shuffle(chosen)
    return chosen


def _choose(within: list[TextPair], across: list[TextPair], state: random.Random) -> list[TextPair]:
    """Take at most 60,000 pairs; more than 30% across languages only where there are few others."""
    kept = _limit(within, int(_MOST_PER_LANGUAGE * (1 - _CROSS_SHARE)) if across else _MOST_PER_LANGUAGE, state)
    room = max(int(len(kept) * _CROSS_SHARE / (1 - _CROSS_SHARE)), _ENOUGH - len(kept))
    return kept + _limit(across, room, state)


def _limit(pairs: list[TextPair], most: int, state: random.Random) -> list[TextPair]:
    """Take pairs at random so that no source has more than its share and no pair comes twice."""
    distinct = list({(pair.query, pair.passage): pair for pair in pairs}.values())
    state.shuffle(distinct)
    counts: Counter[str] = Counter()
    kept: list[TextPair] = []
    spare: list[TextPair] = []
    for pair in distinct:
        counts[pair.source] += 1
        (kept if counts[pair.source] <= min(_MOST_PER_SOURCE, most // 3) else spare).append(pair)
    return [*kept[:most], *spare[: max(most - len(kept), 0)]]


def _pairs_within(section: Section, state: random.Random, *, has_title: bool) -> Iterator[tuple[str, str]]:
    """Yield the title with the text, and a sentence or a run of words with the text that it comes from."""
    if has_title and section.title != section.text:  # "Syntax" and "Options" stand over many texts
        yield section.title, section.text
    if section.source == "wordnet-base":
        return
    sentences = split_sentences(section.text)
    if len(sentences) > 1:
        at = state.randrange(len(sentences))
        # Half the time the sentence stays in the text: a query may repeat its answer's words, or not.
        rest = " ".join(sentences[:at] + sentences[at + (state.random() < 0.5) :])
        if len(sentences[at]) >= 12 and len(rest) >= 30:
            yield sentences[at], f"{section.title}. {rest}" if has_title and state.random() < 0.3 else rest
    elif len(section.text) >= (24 if section.language in SPACELESS | {"ko"} else 60):
        yield _crop(section.text, section.language, state), section.text


def _pairs_across(section: Section, english: Section) -> Iterator[tuple[str, str]]:
    """Yield both ways: the English title or message with the other text, and the other one with the English text."""
    if section.text == english.text:
        return
    for first, second in ((english, section), (section, english)):
        if first.title and second.title:
            yield first.title, second.text
        else:
            yield (first.text if len(first.text) <= 300 else split_sentences(first.text)[0]), second.text


def _crop(text: str, language: str, state: random.Random) -> str:
    is_spaceless = language in SPACELESS
    words = list(text) if is_spaceless else text.split()
    length = min(state.randint(4, 12) * (2 if is_spaceless else 1), max(len(words) - 1, 1))
    start = state.randrange(len(words) - length + 1)
    while start and unicodedata.category(words[start][0]).startswith("M"):  # a mark belongs to the letter before it
        start -= 1
    return ("" if is_spaceless else " ").join(words[start : start + length]).strip(" ,.;:()") or text


def write_pairs(path: Path, pairs: Sequence[TextPair]) -> None:
    """Write one JSON object a line, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(asdict(pair), ensure_ascii=False)}\n" for pair in pairs)
    unfinished.rename(path)


def read_pairs(path: Path) -> list[TextPair]:
    """Read what `write_pairs` wrote."""
    with path.open(encoding="utf-8") as file:
        return [TextPair(**json.loads(line)) for line in file]
