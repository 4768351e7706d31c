"""`Bm25Index`: BM25 over the model's own tokens, for collections in memory."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations.scoring import top_rows

_K1: Final = 1.2
_B: Final = 0.75


class Bm25Index:
    """BM25 over tokenized texts, which can be added and removed by key.

    A token that occurs f times in a text of l tokens adds idf · f / (f + k1 · (1 - b + b · l / average l)) to the
    text's score, with idf = ln(1 + (N - n + 0.5) / (n + 0.5)), where n of N texts have the token, k1 = 1.2 and
    b = 0.75. This is the BM25 of Lucene 8 and later. Its idf is positive for every n, so a text that shares a token
    with the query always scores above one that does not.

    Adding a text takes time in proportion to its length. Only one thread at a time may use an index.
    """

    def __init__(self) -> None:
        self._position_of: dict[int, int] = {}  # by key; positions rise in the order of adding
        self._keys = array("q")  # by position
        self._lengths = array("q")  # tokens, by position; 0 for a removed text
        self._total = 0  # tokens of all texts in the index
        self._postings: dict[str, tuple[array[int], array[int]]] = {}  # by token: positions, and how often each has it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._position_of)} texts, {len(self._postings)} tokens)"

    def add(self, texts: Mapping[int, Sequence[str]]) -> None:
        """Add texts.

        Args:
            texts: Each text's tokens by its key; the keys must be new.
        """
        for key, tokens in texts.items():
            position = self._position_of[key] = len(self._keys)
            self._keys.append(key)
            self._lengths.append(len(tokens))
            self._total += len(tokens)
            for token, count in Counter(tokens).items():
                positions, counts = self._postings.setdefault(token, (array("q"), array("q")))
                positions.append(position)
                counts.append(count)

    def discard(self, keys: Collection[int]) -> None:
        """Remove texts by their keys. Their postings are dropped once more than half of all texts are removed ones."""
        for key in keys:
            position = self._position_of.pop(key)
            self._total -= self._lengths[position]
            self._lengths[position] = 0
        if len(self._keys) > 2 * len(self._position_of):
            self._compact()

    def top(self, query: Sequence[str], n: int, *, among: Collection[int] | None = None) -> list[tuple[int, float]]:
        """Return the n best texts that share a token with the query, best first; equal scores in the order of adding.

        Args:
            query: The query's tokens.
            n: The most texts to return.
            among: Keys that may be returned; all if None. Frequencies are always counted over all texts.

        Returns:
            Keys and scores. Scores are above 0, not bounded above, and exact float32 values.
        """
        scores = self._scores(query)
        if among is not None:
            is_eligible = np.zeros(len(scores), dtype=bool)
            is_eligible[[self._position_of[key] for key in among if key in self._position_of]] = True
            scores[~is_eligible] = 0
        found = np.flatnonzero(scores)
        best = found[top_rows(scores[found], n)]
        return [(self._keys[position], float(scores[position])) for position in best.tolist()]

    def _scores(self, query: Sequence[str]) -> NDArray[np.float32]:
        """Return the score of every position, (positions,) float32; 0 if no token is shared or the text was removed."""
        lengths = np.array(self._lengths)
        scores = np.zeros(len(lengths))
        average = self._total / max(len(self._position_of), 1)
        for token, times in Counter(query).items():
            if token not in self._postings:
                continue
            positions, counts = map(np.array, self._postings[token])
            is_there = lengths[positions] > 0
            positions, counts = positions[is_there], counts[is_there]
            idf = math.log(1 + (len(self._position_of) - len(positions) + 0.5) / (len(positions) + 0.5))
            norms = _K1 * (1 - _B + _B * lengths[positions] / average)
            scores[positions] += times * idf * counts / (counts + norms)
        return scores.astype(np.float32)

    def _compact(self) -> None:
        """Drop the postings of removed texts, and renumber the other texts in the same order."""
        kept = np.sort(np.fromiter(self._position_of.values(), np.int64, len(self._position_of)))
        renumbered = np.full(len(self._keys), -1)
        renumbered[kept] = np.arange(len(kept))
        self._keys = array("q", np.array(self._keys)[kept].tobytes())
        self._lengths = array("q", np.array(self._lengths)[kept].tobytes())
        self._position_of = {key: position for position, key in enumerate(self._keys)}
        postings = self._postings
        self._postings = {}
        for token, (positions, counts) in postings.items():
            places = renumbered[np.array(positions)]
            if (is_there := places >= 0).any():
                self._postings[token] = (
                    array("q", places[is_there].tobytes()),
                    array("q", np.array(counts)[is_there].tobytes()),
                )
