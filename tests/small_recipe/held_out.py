"""How well a checkpoint finds the own text of a held-out pair, by mode: the numbers that `small` may be chosen by.

    python -m tests.small_recipe.held_out pairs.jsonl MODEL [MODEL ...]

For each of six languages 120 held-out pairs, some between the language and English. The mean reciprocal rank of a
pair's text among the 120; ties share their places. "equal" is the sum of the three scores, as in a search by default.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations import M3Encoder
from m3_integrations.scoring import raw_scores
from m3_integrations.vectors import MODES
from tests.small_recipe.pairs import TextPair, read_pairs

_LANGUAGES: Final = ("en", "de", "ru", "zh", "ar", "hi")
_PAIRS: Final = 120
_SEED: Final = 1


def choose_held_out(pairs: Sequence[TextPair]) -> dict[str, list[TextPair]]:
    """Return 120 held-out pairs of each language, or all if there are fewer."""
    members: dict[str, list[TextPair]] = defaultdict(list)
    for pair in pairs:
        if pair.held_out:
            members[pair.language].append(pair)
    state = random.Random(_SEED)
    for language in _LANGUAGES:
        state.shuffle(members[language])
    return {language: members[language][:_PAIRS] for language in _LANGUAGES}


def mean_reciprocal_rank(scores: NDArray[np.float64]) -> float:
    """Return the mean of 1 / rank of the diagonal in its row; equal scores share the mean of their ranks.

    Args:
        scores: (n, n) float64, of every query with every text.
    """
    own = np.diag(scores)[:, None]
    ranks = 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return float((1 / ranks).mean())


def measure(encoder: M3Encoder, groups: Mapping[str, Sequence[TextPair]]) -> dict[str, float]:
    """Return the mean reciprocal rank of every mode and of their sum, averaged over languages."""
    found: dict[str, list[float]] = defaultdict(list)
    for pairs in groups.values():
        queries = encoder.encode([pair.query for pair in pairs], kind="query", max_length=48)
        texts = encoder.encode([pair.passage for pair in pairs], max_length=128)
        rows = [raw_scores(queries[row], texts, MODES) for row in range(len(pairs))]
        scores = {mode: np.array([row[mode] for row in rows], dtype=np.float64) for mode in MODES}
        for name, each in (*scores.items(), ("equal", np.sum(list(scores.values()), axis=0))):
            found[name].append(mean_reciprocal_rank(each))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Print a line for each checkpoint."""
    warnings.filterwarnings("ignore", ".*longer than")
    path, *models = sys.argv[1:]
    groups = choose_held_out(read_pairs(Path(path)))
    for model in models:
        with M3Encoder(model, shared=False, device="cpu") as encoder:
            found = measure(encoder, groups)
        sys.stdout.write(f"{model}: {', '.join(f'{name} {value:.3f}' for name, value in found.items())}\n")


if __name__ == "__main__":
    main()
