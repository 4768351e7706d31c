"""Calls cut into requests that a server accepts, and whose answers fit in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from m3_integrations.remote.answers import About
from m3_integrations.vectors import check_texts, windows

_REQUEST_TEXTS: Final = 256
_REQUEST_TOKENS: Final = 16_384
"""Counted as characters. An answer has some 14 MB of BGE-M3's multi-vectors then, for English."""

_FRAME_BYTES: Final = 512
"""Room for what a body has beside its texts."""


def text_requests(url: str, about: About, texts: Iterable[str], max_length: int | None) -> Iterator[Sequence[str]]:
    """Cut a stream of texts into what one request takes, as far as it is read.

    Raises:
        TypeError: If one is no string, with its position.
        ValueError: If one is not valid Unicode, or longer than the server takes.
    """
    position = 0
    for window in windows(
        texts,
        max_texts=min(_REQUEST_TEXTS, about.most_texts),
        max_tokens=_REQUEST_TOKENS,
        max_length=about.max_length if max_length is None else max_length,
    ):
        check_texts(window, position)
        for first, last in _fitting(url, about, [_size_bytes(text) for text in window], position):
            yield window[first:last]
        position += len(window)


def pair_requests(url: str, about: About, pairs: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    """Cut pairs into what one request takes.

    Raises:
        ValueError: If one is longer than the server takes.
    """
    n = max(min(_REQUEST_TEXTS, about.most_texts) // 2, 1)
    for start in range(0, len(pairs), n):
        sizes = [_size_bytes(query) + _size_bytes(text) for query, text in pairs[start : start + n]]
        for first, last in _fitting(url, about, sizes, start):
            yield pairs[start + first : start + last]


def _fitting(url: str, about: About, sizes: Sequence[int], position: int) -> Iterator[tuple[int, int]]:
    """Yield the first row, and the row after the last, of parts whose bodies the server accepts."""
    room = about.most_bytes - _FRAME_BYTES
    first = total = 0
    for row, size in enumerate(sizes):
        if size > room:
            raise ValueError(
                f"the text at position {position + row} has {size:,} bytes, and {url} accepts requests of "
                f"{about.most_bytes:,}: split it, or start m3 serve with a higher limit"
            )
        if total + size > room:
            yield first, row
            first, total = row, 0
        total += size
    yield first, len(sizes)


def _size_bytes(text: str) -> int:
    """Return the bytes of a text in a request's body, with what separates it from the next."""
    return len(json.dumps(text, ensure_ascii=False).encode()) + 4
