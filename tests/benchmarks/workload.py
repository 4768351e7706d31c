"""A checkpoint of BGE-M3's widths with random weights, and texts of realistic lengths to feed it.

Speed depends on the network's widths, the lengths of the texts and the work of the tokenizer, not on what the weights
have learnt. So nothing is downloaded and no text belongs to anybody: the weights are random, and the words are made
of syllables. The tokenizer is of the same kind as BGE-M3's (Unigram over 250,002 pieces, words split at spaces), so
that tokenising costs about what it costs there; its ids are shuffled over the whole vocabulary. It has no table of
character normalisation, which BGE-M3's has: both contenders save that work.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    IntArray = NDArray[np.int64]

VOCABULARY_SIZE = 250_002
POSITIONS = 8_194
MAX_LENGTH = 512
_MARKER = "benchmark_checkpoint.json"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]


@dataclass(frozen=True, slots=True)
class CheckpointShape:
    """What decides a checkpoint's weights: layers, hidden width (a multiple of 64, the width of a head), seed."""

    layers: int = 4
    width: int = 1024
    seed: int = 0


def ensure_checkpoint(folder: Path, shape: CheckpointShape) -> None:
    """Write the checkpoint into folder, unless it is there already.

    Raises:
        ValueError: If the folder holds something else, or a checkpoint of another shape.
    """
    marker = folder / _MARKER
    wanted = asdict(shape)
    if marker.exists():
        found = json.loads(marker.read_text())
        if found != wanted:
            raise ValueError(f"{folder} holds a checkpoint of {found}, not {wanted}: choose another folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no finished benchmark checkpoint: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_network(folder, shape)
    _make_tokenizer(shape.seed).save_pretrained(folder)
    marker.write_text(json.dumps(wanted))  # last, so that an interrupted write is not taken for a checkpoint


def _write_network(folder: Path, shape: CheckpointShape) -> None:
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64,
        intermediate_size=4 * shape.width,
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        XLMRobertaModel(config).save_pretrained(folder)
        torch.save(torch.nn.Linear(shape.width, shape.width).state_dict(), folder / "colbert_linear.pt")
        torch.save(torch.nn.Linear(shape.width, 1).state_dict(), folder / "sparse_linear.pt")


def _make_tokenizer(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    letters = [*_LETTERS, *(f"▁{letter}" for letter in _LETTERS)]  # so that no text needs <unk>
    n_pieces = VOCABULARY_SIZE - 5 - len(letters)
    base = len(_SYLLABLES)
    words = [_spell(number) for number in rng.choice(np.arange(base, base**3), n_pieces, replace=False)]
    n_starts = int(0.7 * n_pieces)
    pieces = [f"▁{word}" if i < n_starts else word for i, word in enumerate(words)]
    scores = -2.0 - np.log(np.arange(n_pieces) + 2.0)  # a log-probability that falls as in Zipf's law
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    ranked = [(pieces[i], float(score)) for i, score in zip(rng.permutation(n_pieces), scores, strict=True)]
    vocabulary = [*special, *((letter, -20.0) for letter in letters), *ranked, ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocabulary, model_max_length=POSITIONS - 2)


def _spell(number: int) -> str:
    """The digits of a number, read as syllables: two or three of them for what is asked here."""
    syllables = []
    while number:
        number, digit = divmod(number, len(_SYLLABLES))
        syllables.append(_SYLLABLES[digit])
    return "".join(syllables)


def token_lengths(
    n: int, *, seed: int, median: int = 80, sigma: float = 0.85, shortest: int = 8, longest: int = MAX_LENGTH
) -> IntArray:
    """Draw (n,) int64 log-normal lengths in tokens, special tokens included, cut to [shortest, longest]."""
    drawn = median * np.exp(sigma * np.random.default_rng(seed).standard_normal(n))
    lengths: IntArray = np.clip(np.rint(drawn), shortest, longest).astype(np.int64)
    return lengths


class TextSource:
    """Makes texts of exactly the asked number of tokens from 50,000 pseudo-words that follow Zipf's law.

    Seven words in ten are one token, the others two or more. The same seed and the same calls give the same texts.

    Args:
        folder: A checkpoint that `ensure_checkpoint` wrote.
        seed: Of the words and of the texts.
        n_words: How many distinct words there are.
    """

    def __init__(self, folder: Path, *, seed: int, n_words: int = 50_000) -> None:
        self._rng = np.random.default_rng(seed)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        words = np.array(self._draw_words(n_words))
        counts = np.array([len(ids) for ids in self._tokenizer(words.tolist(), add_special_tokens=False)["input_ids"]])
        self._words, self._counts = words, counts
        self._short_words = words[counts == 1]
        weights = 1.0 / np.arange(1, n_words + 1)
        self._cumulative = np.cumsum(weights) / weights.sum()

    def texts(self, lengths: IntArray) -> list[str]:
        """One text for each length in tokens, special tokens included."""
        texts = [self._text(int(length) - 2) for length in lengths]
        if self.lengths_of(texts).tolist() != lengths.tolist():
            raise AssertionError("the tokenizer disagrees with the planned lengths")
        return texts

    def lengths_of(self, texts: list[str]) -> IntArray:
        """(n,) int64, the tokens of each text, special tokens included, before any limit."""
        return np.array([len(ids) for ids in self._tokenizer(texts)["input_ids"]], dtype=np.int64)

    def _text(self, n_tokens: int) -> str:
        chosen = np.searchsorted(self._cumulative, self._rng.random(n_tokens))
        ends = np.cumsum(self._counts[chosen])
        kept = chosen[ends <= n_tokens]
        missing = n_tokens - int(self._counts[kept].sum())
        return " ".join([*self._words[kept], *self._rng.choice(self._short_words, missing)])

    def _draw_words(self, n_words: int) -> list[str]:
        pieces = sorted(piece for piece in self._tokenizer.get_vocab() if piece[-1].isalpha() and len(piece) > 2)
        starts = [piece[1:] for piece in pieces if piece[0] == "▁"]
        endings = [piece for piece in pieces if piece[0] != "▁"]
        words = self._rng.choice(starts, n_words, replace=False).tolist()
        is_compound = self._rng.random(n_words) < 0.3
        tails = self._rng.choice(endings, n_words)
        return [word + tail if joined else word for word, tail, joined in zip(words, tails, is_compound, strict=True)]
