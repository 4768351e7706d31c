"""Choice of the pairs that `small` learns from: every language alike, and no source of text too often."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from tests.small_recipe.pairs import TextPair

_ENGLISH_SHARE: Final = 2
_SOURCE_SHARES: Final = {"wordnet-base": 3.0}
"""WordNet's glosses are the only source that is not about software or a game."""

_CALIBRATION_TEXTS: Final = 60
_CALIBRATION_CHARACTERS: Final = 400


def choose_pairs(pairs: Sequence[TextPair], per_language: int, *, seed: int) -> list[TextPair]:
    """Choose so many pairs of every language, twice as many English ones, none held out, in random order.

    A source's share grows with the root of its size: the largest gives most, the small ones are not drowned.

    Args:
        pairs: All there are.
        per_language: Pairs of a language; a language that has fewer gives all.
        seed: For the choice and the order.
    """
    state = random.Random(seed)
    usable = [pair for pair in pairs if not pair.held_out]
    sizes = Counter((pair.language, pair.source) for pair in usable)
    drawn: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for place, pair in enumerate(usable):
        weight = _SOURCE_SHARES.get(pair.source, 1.0) / math.sqrt(sizes[pair.language, pair.source])
        # The largest of u^(1 / weight) are a sample without replacement by weight (Efraimidis and Spirakis, 2006).
        drawn[pair.language].append((math.log(1 - state.random()) / weight, place))
    chosen = []
    for language, members in sorted(drawn.items()):
        count = per_language * (_ENGLISH_SHARE if language == "en" else 1)
        chosen += [usable[place] for _, place in sorted(members, reverse=True)[:count]]
    state.shuffle(chosen)
    return chosen


def texts_by_language(pairs: Sequence[TextPair], most: int, characters: int) -> dict[str, list[str]]:
    """Return at most so many texts of each language, cut to so many characters: those whose language is sure."""
    texts: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        group = texts[pair.language]
        if not pair.is_cross and not pair.held_out and len(group) < most:
            group += [pair.query[:characters], pair.passage[:characters]]
    return dict(texts)


def calibration_texts(pairs: Sequence[TextPair]) -> list[str]:
    """Return a few texts of every language, of about one length beside each other."""
    texts = texts_by_language(pairs, _CALIBRATION_TEXTS, _CALIBRATION_CHARACTERS)
    return sorted((text for members in texts.values() for text in members), key=len)
