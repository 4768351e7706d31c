"""The server's tokenizer in this process, fetched when the number of calls shows that this saves time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from tokenizers import Tokenizer as Backend

from m3_integrations.tokenizer import Tokenizer

_CALLS_BEFORE: Final = 256
"""Calls that the server answers; together they take as long as to fetch BGE-M3's tokenizer, which has 17 MB."""


class FetchedTokenizer:
    """A tokenizer that is fetched from the server after `_CALLS_BEFORE` calls.

    Args:
        url: The server's URL, for messages.
        fetch: Returns the server's tokenizer.json.
    """

    def __init__(self, url: str, fetch: Callable[[], bytes]) -> None:
        self._url, self._fetch = url, fetch
        # One for each process: during a fork another thread may hold it, and in the child it would stay locked.
        self._locks: dict[int, threading.Lock] = {}
        self._n_calls = 0
        self._tokenizer: Tokenizer | None = None

    def after_many_calls(self) -> Tokenizer | None:
        """Count a call, and return the tokenizer if there were `_CALLS_BEFORE` before, else None.

        Raises:
            ValueError: If the answer is not a tokenizer. Errors of `fetch` are raised too.
        """
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            self._n_calls += 1
            if self._tokenizer is None and self._n_calls > _CALLS_BEFORE:
                self._tokenizer = self._read(self._fetch())
            return self._tokenizer

    def _read(self, body: bytes) -> Tokenizer:
        try:
            return Tokenizer(Backend.from_str(body.decode()))
        except Exception as error:  # the Rust library raises nothing narrower
            raise ValueError(
                f"{self._url} sent a wrong answer: it is not a tokenizer ({error}). Is a proxy between this process "
                "and m3 serve?"
            ) from error
