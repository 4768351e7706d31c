"""Choice of the word pieces that `small` keeps of XLM-RoBERTa's 250,002."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.tiny_recipe.vocabulary import common_hanzi, write_tokenizer

SPECIAL: Final = ("<s>", "<pad>", "</s>", "<unk>")
_MASK: Final = "<mask>"
_SCRIPTS: Final = (
    "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "HIRAGANA", "KATAKANA", "HANGUL", "CJK",
)  # fmt: skip
_LEAST_CHARACTER_COUNT: Final = 3


@dataclass(frozen=True, slots=True)
class Pieces:
    """The word pieces that are kept.

    Attributes:
        rows: (kept,) int64: a kept piece's row in the teacher's table of embeddings, special tokens first, <mask> last.
        pieces: The pieces with their log probabilities, in the same order.
        charsmap: SentencePiece's normalizer, compiled.
    """

    rows: NDArray[np.int64]
    pieces: list[tuple[str, float]]
    charsmap: bytes

    def save(self, folder: Path, *, max_length: int) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        write_tokenizer(folder, [list(piece) for piece in self.pieces], self.charsmap, max_length=max_length)


def choose_pieces(tokenizer_json: Path, texts: Mapping[str, Sequence[str]], *, size: int) -> Pieces:
    """Choose the pieces that shorten the texts most, over all languages alike.

    A piece's use is the mean of two shares: of the tokens of the texts, averaged over the languages, and of what
    XLM-RoBERTa's own log probability says, which comes from the web and knows words that no software has. Characters
    come first, as a text of known characters never becomes <unk>.

    Args:
        tokenizer_json: XLM-RoBERTa's.
        texts: Of every language.
        size: Pieces to keep, special tokens included.
    """
    content: dict[str, Any] = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    vocab: list[tuple[str, float]] = [(piece, score) for piece, score in content["model"]["vocab"]]
    usage = _count(Tokenizer.from_file(str(tokenizer_json)), texts, len(vocab))
    characters = _characters(texts)
    known = {piece: row for row, (piece, _) in enumerate(vocab)}
    first = [known[character] for character in ["▁", *sorted(characters)] if character in known]
    seen = usage.max(axis=0) > 0
    prior = np.exp(np.array([score for _, score in vocab])) * seen
    prior[: len(SPECIAL)] = 0.0
    shares = (usage.mean(axis=0) + prior / prior.sum()) / 2
    order = np.argsort(-shares, kind="stable").tolist()
    chosen = dict.fromkeys(first)
    for row in order:
        if len(chosen) == size - len(SPECIAL) - 1:
            break
        piece = vocab[row][0]
        if row >= len(SPECIAL) and piece != _MASK and _is_ours(piece):
            chosen[row] = None
    rows = [*range(len(SPECIAL)), *sorted(chosen), known[_MASK]]
    kept = [(piece, round(score, 4)) for piece, score in (vocab[row] for row in rows)]
    return Pieces(np.array(rows), kept, _charsmap(content["normalizer"]))


def all_pieces(tokenizer_json: Path) -> Pieces:
    """Return all of XLM-RoBERTa's pieces, for the teacher."""
    content: dict[str, Any] = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    pieces = [(piece, score) for piece, score in content["model"]["vocab"]]
    return Pieces(np.arange(len(pieces)), pieces, _charsmap(content["normalizer"]))


def _count(tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]], size: int) -> NDArray[np.float64]:
    """Return every piece's share of every language's tokens: (languages, pieces) float64."""
    shares = np.zeros((len(texts), size))
    for row, (_, members) in enumerate(sorted(texts.items())):
        for encoding in tokenizer.encode_batch(list(members), add_special_tokens=False):
            np.add.at(shares[row], np.array(encoding.ids, dtype=np.int64), 1.0)
        shares[row] /= shares[row].sum()
    return shares


def _characters(texts: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the characters of our scripts that some language uses more than by chance, and the common hanzi."""
    found = set(common_hanzi())
    for members in texts.values():
        counts = Counter(character for text in members for character in unicodedata.normalize("NFKC", text))
        found.update(c for c, count in counts.items() if count >= _LEAST_CHARACTER_COUNT and _is_ours(c))
    return found


def _is_ours(piece: str) -> bool:
    """Whether every letter of a piece is of a script that `small` reads."""
    return all(unicodedata.name(c, "").startswith(_SCRIPTS) for c in piece if unicodedata.category(c)[0] == "L")


def _charsmap(normalizer: Any) -> bytes:
    for part in _parts(normalizer):
        if part["type"] == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    raise ValueError("the tokenizer.json has no precompiled normalizer")


def _parts(normalizer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from normalizer.get("normalizers", [normalizer])
