"""Divide calls into requests that the server accepts and whose answers fit in bounded memory."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

from m3_integrations.remote.answers import About
from m3_integrations.remote.connection import Answer
from m3_integrations.vectors import check_texts, windows

T = TypeVar("T")

_REQUEST_TEXTS: Final = 256
_REQUEST_TOKENS: Final = 8192
"""Counted as characters: about 2,000 tokens of English. An answer from BGE-M3 has at most 36 MB, if no text has more
tokens than characters. A CPU encodes them well within the server's time limit."""

_UNDER_WAY: Final = 8
_SLOW_S: Final = 3.0
"""If an answer takes longer, a call sends one request at a time: eight would share the server's device, and all would
come near the time limit."""

_FRAME_BYTES: Final = 512
"""The most bytes of a body beside its texts."""


class RequestsAhead(Generic[T]):
    """The requests of one call, sent in order and up to eight at a time, so that the server is never idle between them.

    Args:
        upcoming: The content of each request; it is read only as far as requests are begun.
        begin: Begins the request with this content.
    """

    def __init__(self, upcoming: Iterator[T], begin: Callable[[T], Future[Answer]]) -> None:
        self._upcoming, self._begin = upcoming, begin
        self._under_way: deque[tuple[T, Future[Answer]]] = deque()
        self._problem: Exception | None = None
        self._n_allowed = 1

    def next(self) -> tuple[T, Future[Answer]] | None:
        """Return the oldest request that is not done, its content and its future; None after the last.

        An error in reading `upcoming` is raised after the requests before it are done.
        """
        try:
            while self._problem is None and len(self._under_way) < self._n_allowed:
                about = next(self._upcoming)
                self._under_way.append((about, self._begin(about)))
        except StopIteration:
            pass
        except Exception as error:  # raised below
            self._problem = error
        if self._under_way:
            return self._under_way[0]
        if self._problem is not None:
            raise self._problem
        return None

    def done(self, answer: Answer) -> None:
        """Remove the oldest request; its answer's time decides how many requests may run at once."""
        self._under_way.popleft()
        self._n_allowed = _UNDER_WAY if answer.seconds < _SLOW_S else 1

    def cancel(self) -> None:
        """Cancel all running requests."""
        for _, future in self._under_way:
            future.cancel()


def text_requests(url: str, about: About, texts: Iterable[str], max_length: int | None) -> Iterator[Sequence[str]]:
    """Yield the texts of one request after another.

    Raises:
        TypeError: If a text is not a string; the message has its position.
        ValueError: If a text is not valid Unicode, or longer than the server accepts.
    """
    position = 0
    for window in windows(
        texts,
        max_texts=min(_REQUEST_TEXTS, about.most_texts),
        max_tokens=min(_REQUEST_TOKENS, about.most_tokens),
        max_length=about.max_length if max_length is None else max_length,
    ):
        check_texts(window, position)
        for first, last in _fitting(url, about, [_size_bytes(text) for text in window], position):
            yield window[first:last]
        position += len(window)


def pair_requests(url: str, about: About, pairs: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    """Yield the pairs of one request after another.

    Raises:
        ValueError: If a pair is longer than the server accepts.
    """
    n = max(min(_REQUEST_TEXTS, about.most_texts) // 2, 1)
    for start in range(0, len(pairs), n):
        sizes = [_size_bytes(query) + _size_bytes(text) for query, text in pairs[start : start + n]]
        for first, last in _fitting(url, about, sizes, start):
            yield pairs[start + first : start + last]


def _fitting(url: str, about: About, sizes: Sequence[int], position: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of successive parts whose bodies the server accepts."""
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
    """Return the most bytes that a text takes in a request's body, separators included."""
    return len(json.dumps(text, ensure_ascii=False).encode()) + 4
