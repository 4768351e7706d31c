"""Checks of a call's texts, windows over a stream of them, and the warning about texts that were cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from operator import index
from typing import Any, SupportsIndex

import numpy as np

from m3_integrations.vectors.arrays import IntArray
from m3_integrations.vectors.warning import warn_caller


def check_texts(texts: Iterable[str], position: int = 0) -> Sequence[str]:
    """Check every text, and return the texts as a sequence.

    Args:
        texts: Any iterable of strings; it is read once.
        position: The number of the first text in error messages.

    Raises:
        TypeError: If texts is one string, no iterable or a table, or holds anything but strings.
        ValueError: If a text is not valid Unicode.
    """
    check_stream(texts)
    texts = texts if isinstance(texts, list | tuple) else list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"every text must be a string, got {type(text).__name__} at position {position + i}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"the text at position {position + i} is not valid Unicode: half of a surrogate pair (surrogates "
                    f"not allowed) at character {error.start}, near {text[max(error.start - 20, 0) : error.end + 20]!a}"
                ) from error
    return texts


def check_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of a query and a text as a list, after checking them.

    Raises:
        TypeError: If pairs is a table, or one of them is not two strings in an order. Of a mapping or a set the keys
            would be scored.
        ValueError: If a text is not valid Unicode.
    """
    if is_table(pairs):
        raise TypeError(
            f'pairs must be two strings each, got a {type(pairs).__name__}: pass zip(table["query"], table["text"])'
        )
    checked = list[tuple[str, str]]()
    for i, pair in enumerate(pairs):
        texts: tuple[Any, ...] = ()
        if not isinstance(pair, str | bytes | Mapping | Set | Iterator):
            with suppress(TypeError):
                texts = tuple(pair)
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"every pair must be two strings, got {pair!r} at position {i}")
        checked.append((texts[0], texts[1]))
    for side in zip(*checked, strict=True):  # so that a text's position in an error is its pair's
        check_texts(side)
    return checked


def check_stream(texts: Iterable[str]) -> None:
    """Raise TypeError if texts, which may be a generator, is one string, no iterable, a mapping to texts or a table."""
    refuse_table(texts, "texts")
    if isinstance(texts, Mapping) and any(isinstance(text, str) for text in texts.values()):
        # The keys would be read. They are meant in a dictionary that serves as an ordered set.
        raise TypeError(
            f"texts must be a list or another iterable, got a {type(texts).__name__}: pass its values(), or a list of "
            "its keys"
        )
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        what = "one string" if isinstance(texts, str) else repr(texts)
        raise TypeError(f"texts must be strings, got {what}: pass [text]")


def is_table(values: Any) -> bool:
    """Return whether values are a data frame or another table, of which iteration reads the names of the columns."""
    return hasattr(type(values), "columns")  # of the class: a lazy table would compute its own


def refuse_table(values: Any, name: str, hint: str = "pass a list, or one of its columns") -> None:
    """Raise TypeError for a data frame or another table, of which only the names of the columns would be read."""
    if is_table(values):
        raise TypeError(f"{name} must be one column, got a {type(values).__name__}: {hint}")


def check_length(max_length: int) -> int:
    """Return a length limit as an int.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is below 3, so that no token fits between [CLS] and [SEP].
    """
    if isinstance(max_length, bool) or not isinstance(max_length, SupportsIndex):
        raise TypeError(f"max_length must be an integer, got {max_length!r}")
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3 ([CLS], one token, [SEP]), got {max_length}")
    return index(max_length)


def windows(texts: Iterable[str], *, max_texts: int, max_tokens: int, max_length: int) -> Iterator[list[str]]:
    """Divide a stream of texts into lists of bounded size, so that the vectors of one list fit in memory.

    A text counts as one token per character, and at most as max_length. Few texts have more tokens than characters.

    Args:
        texts: Any iterable; at most one text beyond the yielded lists has been read.
        max_texts: The most texts in a list.
        max_tokens: The most tokens in a list; a text that counts more is alone in its list.
        max_length: The length limit of one text, in tokens.
    """
    window: list[str] = []
    tokens = 0
    for text in texts:
        cost = min(len(text), max_length) if isinstance(text, str) else 1  # `check_texts` refuses it later
        if window and (len(window) == max_texts or tokens + cost > max_tokens):
            yield window
            window, tokens = [], 0
        window.append(text)
        tokens += cost
    if window:
        yield window


def warn_of_cut(n_cut: int, n: int, *limits: int) -> None:
    """Warn that n_cut of n texts were cut at one of these limits, in tokens."""
    tokens = " or ".join(str(limit) for limit in dict.fromkeys(limits))
    warn_caller(
        f"{n_cut} of {n} texts were longer than {tokens} tokens and were cut: split them, or allow more by max_length "
        "as far as the checkpoint has positions"
    )


def distinct_texts(texts: Iterable[str]) -> tuple[list[str], IntArray]:
    """Return the distinct texts in the order of their first occurrence, and every text's index among them, int64."""
    rows: dict[str, int] = {}
    where = [rows.setdefault(text, len(rows)) for text in texts]
    return list(rows), np.array(where, dtype=np.int64)


def titled_text(row: Mapping[str, Any], *, titles: bool = True) -> str:
    """Return an entry's "text", after its "title" and a space as BEIR joins them, without surrounding blanks.

    A missing title is null, or NaN as data frames write it; a number is its digits.

    Args:
        row: The entry.
        titles: Whether the title is put before the text, and checked.

    Raises:
        ValueError: If there is no text, or the title is anything else.
    """
    title, text = row.get("title"), row.get("text")
    if not isinstance(text, str):
        raise ValueError('needs an object with "text", a string')  # noqa: TRY004 - the content of a file is wrong
    if not titles or title is None or (isinstance(title, float) and math.isnan(title)):
        title = ""
    if isinstance(title, bool) or not isinstance(title, str | int | float):
        raise ValueError(f'"title" must be a string or null, got {title!r}')  # noqa: TRY004 - as above
    return f"{title} {text}".strip()
