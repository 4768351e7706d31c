"""What a handle on a network is opened with, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from m3_integrations.tokenizer import Pooling
from m3_integrations.vectors import Kind

DEFAULT_MAX_LENGTH: Final = 8192
DEFAULT_CACHE_SIZE_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """The arguments of `M3Encoder`, which explains them; all that a pickled handle carries.

    Raises:
        ValueError: If one is out of range.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    query_instruction: str = ""
    query_max_length: int | None = None
    pooling: Pooling = "cls"
    max_tokens_per_batch: int | None = None
    cache_size_bytes: int = DEFAULT_CACHE_SIZE_BYTES

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {self.pooling!r}")
        if self.cache_size_bytes < 0:
            raise ValueError(f"cache_size_bytes must be 0 or more, got {self.cache_size_bytes}")
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            raise ValueError(f"max_tokens_per_batch must be at least 1, got {self.max_tokens_per_batch}")
        _check_length(self.max_length)
        if self.query_max_length is not None:
            _check_length(self.query_max_length)

    def length_limit(self, kind: Kind, max_length: int | None, max_positions: int) -> int:
        """Give the most tokens of a text: what a call asks for, else the setting, at most the positions there are.

        Raises:
            ValueError: For an unknown kind or a length under 3.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if max_length is None and kind == "query":
            max_length = self.query_max_length
        if max_length is None:
            max_length = self.max_length
        _check_length(max_length)
        return min(max_length, max_positions)


def _check_length(max_length: int) -> None:
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3 ([CLS], one token, [SEP]), got {max_length}")
