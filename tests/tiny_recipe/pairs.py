"""Queries and the texts that answer them, made from package descriptions without any labels."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.tiny_recipe.descriptions import Description, split_sentences
from tests.tiny_recipe.question_words import QUESTION_WORDS

_PAIRS_PER_LANGUAGE: Final = 125_000
_MOST_PAIRS_PER_TEXT: Final = 12
_LEAST_PAIRS_PER_TEXT: Final = 1
_QUESTION_MARK: Final = "\N{FULLWIDTH QUESTION MARK}"
_SPACELESS: Final = frozenset({"ja", "zh", "zh_CN"})


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the text that answers it."""

    query: str
    passage: str
    language: str


def make_pairs(descriptions: Sequence[Description], *, seed: int) -> list[Pair]:
    """Make training pairs: short against long, across languages, and crops and sentences against their text.

    The large languages give two pairs per text, the small ones up to twelve.

    Args:
        descriptions: Texts; the held-out ones are passed over.
        seed: For every choice.
    """
    chosen = [description for description in descriptions if not description.is_held_out]
    random_state = random.Random(seed)
    translations: dict[str, list[Description]] = defaultdict(list)
    for description in chosen:
        translations[description.key].append(description)
    sizes = Counter(description.language for description in chosen)
    common = _common_sentences(chosen)
    pairs: list[Pair] = []
    for description in chosen:
        wanted = _PAIRS_PER_LANGUAGE // sizes[description.language]
        count = min(max(wanted, _LEAST_PAIRS_PER_TEXT), _MOST_PAIRS_PER_TEXT)
        others = translations[description.key]
        pairs.extend(_make_pair(description, others, common, random_state) for _ in range(count))
    random_state.shuffle(pairs)
    return pairs


def _make_pair(
    description: Description, translations: Sequence[Description], common: frozenset[str], state: random.Random
) -> Pair:
    kind = state.random()
    if kind < 0.25:
        return Pair(description.short, description.long, description.language)
    if kind < 0.40 and len(translations) > 1:
        other = state.choice([each for each in translations if each is not description])
        return Pair(other.short, description.long, description.language)
    if kind < 0.65:
        sentences = [s for p in description.paragraphs for s in split_sentences(p) if s not in common]
        if len(sentences) > 1:
            at = state.randrange(len(sentences))
            # Half the time the sentence stays in the text: a query may repeat its answer's words, or not.
            rest = sentences[:at] + sentences[at + (state.random() < 0.5) :]
            return Pair(_as_query(sentences[at], description.language, state), " ".join(rest), description.language)
    return Pair(_as_query(description.long, description.language, state), description.long, description.language)


def _as_query(text: str, language: str, state: random.Random) -> str:
    """Take a run of 4 to 14 words, drop some, and often put question words in front."""
    spaceless = language in _SPACELESS
    words = list(text) if spaceless else text.split()
    length = state.randint(4, 14) * (2 if spaceless else 1)
    start = state.randrange(max(len(words) - length, 0) + 1)
    kept = words[start : start + length]
    if not spaceless:
        kept = [word for word in kept if state.random() < 0.75] or kept
    query = ("" if spaceless else " ").join(kept).strip(" ,.;:()")
    if state.random() < 0.5 and language in QUESTION_WORDS:
        opening = state.choice(QUESTION_WORDS[language].split("|"))
        if spaceless:
            return (f"{query}{opening}" if state.random() < 0.5 else f"{opening}{query}") + _QUESTION_MARK
        return f"{opening} {query}?"
    return query or text[:60]


def _common_sentences(descriptions: Sequence[Description]) -> frozenset[str]:
    """Sentences of more than three texts: "This package contains the development files" asks for nothing."""
    counts = Counter(s for d in descriptions for p in d.paragraphs for s in set(split_sentences(p)))
    return frozenset(sentence for sentence, count in counts.items() if count > 3)


def make_check(descriptions: Sequence[Description], *, seed: int, size: int) -> list[Pair]:
    """Make pairs from the held-out texts, the same number of crops and of short lines, for measuring progress."""
    random_state = random.Random(seed)
    held_out = [description for description in descriptions if description.is_held_out]
    chosen = random_state.sample(held_out, min(size, len(held_out)))
    return [
        Pair(
            description.short if i % 2 else _as_query(description.long, description.language, random_state),
            description.long,
            description.language,
        )
        for i, description in enumerate(chosen)
    ]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write the pairs as FlagEmbedding's JSONL, without mined negatives: those of the batch serve."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in _lines(pairs))


def _lines(pairs: Sequence[Pair]) -> Iterator[str]:
    for pair in pairs:
        yield json.dumps({"query": pair.query, "pos": [pair.passage], "neg": []}, ensure_ascii=False)
