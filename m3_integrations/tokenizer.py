"""Texts to token ids. Threads may call one tokenizer at once with different length limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend

Pooling = Literal["cls", "mcls", "mean"]
"""How the dense vector is made: from one [CLS], as the mean of one [CLS] every `MCLS_INTERVAL` tokens, or as the mean
of all tokens."""

MCLS_INTERVAL: Final = 256
"""Text tokens after each [CLS] under MCLS pooling (paper, appendix B.2)."""

_CHUNK_SIZE = 1024
"""Texts per call of the Rust tokenizer: bounds the memory of its intermediate objects."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One text as the network reads it.

    Attributes:
        ids: (tokens,) int32, special tokens included.
        n_cls: How many [CLS] were added: one, or with "mcls" one before every `MCLS_INTERVAL` text tokens.
        is_truncated: Whether the text was longer than the limit.
    """

    ids: NDArray[np.int32]
    n_cls: int
    is_truncated: bool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def cls_positions(self) -> NDArray[np.int64]:
        """(n_cls,) positions of the added [CLS]. A "<s>" in the text itself is not among them."""
        return np.arange(self.n_cls) * (MCLS_INTERVAL + 1)


class Vocabulary(tuple[str, ...]):
    """The token of every id. The repr shows only the size: BGE-M3 has 250,002 tokens."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens)"


class Tokenizer:
    """A fast tokenizer without its mutable truncation and padding state.

    A Hugging Face tokenizer keeps the truncation of its last call, so threads with different limits would cut each
    other's texts. Here its truncation is off, and `__call__` cuts the ids.

    Args:
        tokenizer: A fast (Rust) tokenizer of transformers, or the `tokenizers.Tokenizer` inside it. With the latter,
            `pad_id` and `ignored_ids` do not work.

    Raises:
        TypeError: If the tokenizer is a slow one.
        ValueError: If it does not put one [CLS] before a text.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not isinstance(tokenizer, Backend) and not getattr(tokenizer, "is_fast", False):
            raise TypeError(f"a fast tokenizer is needed (tokenizer.json), got {type(tokenizer).__name__}")
        self.source = tokenizer
        self._backend = tokenizer if isinstance(tokenizer, Backend) else tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        with_special = self._backend.encode("a").ids
        plain = self._backend.encode("a", add_special_tokens=False).ids
        if len(with_special) < len(plain) + 1 or with_special[1 : 1 + len(plain)] != plain:
            raise ValueError("the tokenizer must put one [CLS] token before a text, as the dense vector needs it")
        self._cls, self._suffix = with_special[0], with_special[1 + len(plain) :]

    def __call__(self, texts: Sequence[str], *, max_length: int, pooling: Pooling = "cls") -> list[Tokens]:
        """Tokenize texts, each cut to max_length tokens with its special tokens kept.

        Args:
            texts: Any strings, empty ones included.
            max_length: The most tokens of a text, special tokens included.
            pooling: With "mcls" a [CLS] is put before every `MCLS_INTERVAL` text tokens. Every [CLS] counts as a token.

        Raises:
            ValueError: If max_length leaves no room for a token of the text.
        """
        room = max_length - 1 - len(self._suffix)
        if room < 1:
            raise ValueError(f"max_length must be at least {2 + len(self._suffix)}, got {max_length}")
        if pooling == "mcls":
            # As many whole intervals as fit. The rest holds one more [CLS] and the text tokens after it.
            whole, rest = divmod(max_length - len(self._suffix), MCLS_INTERVAL + 1)
            room = whole * MCLS_INTERVAL + max(rest - 1, 0)
        tokens: list[Tokens] = []
        for first in range(0, len(texts), _CHUNK_SIZE):
            for encoding in self._backend.encode_batch_fast(
                texts[first : first + _CHUNK_SIZE], add_special_tokens=False
            ):
                ids = encoding.ids
                text = ids[:room]
                starts = range(0, max(len(text), 1), MCLS_INTERVAL) if pooling == "mcls" else range(1)
                step = MCLS_INTERVAL if pooling == "mcls" else len(text)
                marked = [i for start in starts for i in (self._cls, *text[start : start + step])]
                all_ids = np.array(marked + self._suffix, dtype=np.int32)
                tokens.append(Tokens(all_ids, len(starts), is_truncated=len(ids) > room))
        return tokens

    def tokens(self, texts: Sequence[str], *, max_length: int, pooling: Pooling = "cls") -> list[list[str]]:
        """Return the tokens of texts without the added [CLS]; arguments and errors are those of `__call__`."""
        vocabulary = self.vocabulary
        return [
            [vocabulary[i] for i in np.delete(text.ids, text.cls_positions)]
            for text in self(texts, max_length=max_length, pooling=pooling)
        ]

    def spans(self, texts: Sequence[str], *, max_length: int, pooling: Pooling = "cls") -> list[NDArray[np.int64]]:
        """Return where each of `tokens` stands in its text; arguments and errors are those of `__call__`.

        Returns:
            (tokens, 2) int64 for each text: the first character of a token and the one after its last. [SEP] is empty
            and stands after the last token. A token that stands for no character of the text is empty too.
        """
        found: list[NDArray[np.int64]] = []
        for text, tokens in zip(texts, self(texts, max_length=max_length, pooling=pooling), strict=True):
            n = len(tokens) - tokens.n_cls - len(self._suffix)
            (encoding,) = self._backend.encode_batch([text], add_special_tokens=False)
            spans = np.array(encoding.offsets[:n], dtype=np.int64).reshape(-1, 2)
            end = spans[-1, 1] if n else 0
            found.append(np.concatenate([spans, np.full((len(self._suffix), 2), end, dtype=np.int64)]))
        return found

    def to_json(self) -> str:
        """Return the content of a tokenizer.json, without truncation and padding."""
        return cast("str", self._backend.to_str())

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The token of every id, as the tokenizer writes it ("▁" marks the start of a word)."""
        size = self._backend.get_vocab_size(with_added_tokens=True)
        tokens = [""] * size
        for token, i in self._backend.get_vocab(with_added_tokens=True).items():
            if i >= len(tokens):
                tokens.extend([""] * (i + 1 - len(tokens)))
            tokens[i] = token
        return Vocabulary(tokens)

    @property
    def pad_id(self) -> int:
        """The token id of padding; 0 if the tokenizer has none."""
        return self.source.pad_token_id if self.source.pad_token_id is not None else 0

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token; None if the tokenizer has none."""
        return cast("int | None", self.source.mask_token_id)

    @property
    def ignored_ids(self) -> NDArray[np.int64]:
        """Ids that never carry a lexical weight: [CLS], [SEP], padding and unknown, as in FlagEmbedding."""
        special = (self.source.cls_token_id, self.source.eos_token_id, self.source.pad_token_id)
        return np.array([i for i in (*special, self.source.unk_token_id) if i is not None], dtype=np.int64)
