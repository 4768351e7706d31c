"""API keys from a file or the environment, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_VARIABLE: Final = "M3_API_KEYS"
_KEY: Final = re.compile(r"[!-~]+")
"""Characters that a header can hold: printable ASCII without blanks."""


def read_keys(file: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Return the keys in a file, one per line, or those in the environment variable M3_API_KEYS, separated by commas.

    Empty entries, and entries that begin with "#", are skipped.

    Args:
        file: A file of keys. None reads the environment; if the variable is not set, there are no keys.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file, or the variable that is set, has no key, or a key is not printable ASCII without
            blanks. An error never quotes a key.
    """
    if file is not None:
        where, parts = str(file), Path(file).read_text(encoding="utf-8").splitlines()
    elif (value := os.environ.get(_VARIABLE)) is not None:
        where, parts = _VARIABLE, value.split(",")
    else:
        return ()
    keys = tuple(key for part in parts if (key := part.strip()) and not key.startswith("#"))
    if not keys:
        raise ValueError(f"{where} has no API key: add one or more, or leave it out")
    check_keys(keys)
    return keys


def check_keys(keys: Iterable[str]) -> None:
    """Raise ValueError for keys that a header cannot hold, without quoting them.

    Raises:
        ValueError: If a key is empty, or is not printable ASCII without blanks.
    """
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            raise ValueError(f"API key number {number} must be printable ASCII without blanks")


class KeyRing:
    """The accepted keys; without keys every request is accepted.

    Args:
        keys: Each printable ASCII.

    Raises:
        TypeError: If keys is one string.
        ValueError: For the reasons of `check_keys`.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        if isinstance(keys, str):
            raise TypeError("api_keys must be a sequence of keys, got one string: pass [key]")
        keys = tuple(keys)
        check_keys(keys)
        self._digests = [_digest(key.encode("ascii")) for key in keys]

    @property
    def is_empty(self) -> bool:
        """Whether there are no keys, so that every request is accepted."""
        return not self._digests

    def accepts(self, authorization: bytes) -> bool:
        """Return whether a header "Authorization" names one of the keys."""
        if not self._digests:
            return True
        scheme, _, key = authorization.partition(b" ")
        digest = _digest(key.strip())
        found = [hmac.compare_digest(digest, each) for each in self._digests]  # all keys, so the time reveals nothing
        return scheme.lower() == b"bearer" and any(found)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # digests have equal length, so the time does not reveal a key's length
