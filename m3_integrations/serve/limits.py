"""How much one request may ask, and how many requests the server holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from m3_integrations.serve.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask, and how many requests the server holds.

    Attributes:
        max_body_bytes: The most bytes of a request's body.
        max_texts: The most texts, pairs, documents or records of a request.
        max_tokens: The most tokens of a request for all three views. A text counts its characters, at most its length
            limit in tokens. 65,536 are at most 256 MB of token vectors for BGE-M3.
        max_running: Requests whose texts are in the encoder's queue, or are scored or searched, at a time: so many with
            a body of up to 4 KB, and an eighth as many longer ones. Of requests to a store alone at most 8.
        max_waiting: Further requests of each kind that wait; what comes then is refused with 429.
        timeout_s: Seconds from a request's first byte to its answer. Then it ends with 504, and leaves the queue.

    Raises:
        ValueError: If a limit is not above 0 and finite; only max_waiting may be 0.
    """

    max_body_bytes: int = 8 << 20
    max_texts: int = 2048
    max_tokens: int = 65_536
    max_running: int = 64
    max_waiting: int = 256
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not (math.isfinite(value) and (value > 0 or (value == 0 and each.name == "max_waiting"))):
                raise ValueError(f"{each.name} must be above 0, got {value}")

    def check_number(self, n: int, what: str) -> None:
        """Refuse a request of too many texts.

        Args:
            n: How many there are.
            what: What they are, such as "texts".

        Raises:
            Refusal: With status 422.
        """
        if n > self.max_texts:
            raise Refusal(422, f"a request may hold {self.max_texts} {what}, got {n}: send several requests")

    def check_tokens(self, texts: Iterable[str], max_length: int) -> None:
        """Refuse texts whose token vectors may take too much memory.

        Args:
            texts: Those of a request.
            max_length: The most tokens of each.

        Raises:
            Refusal: With status 413.
        """
        n = sum(min(len(text), max_length) for text in texts)
        if n > self.max_tokens:
            raise Refusal(
                413,
                f"a request may count {self.max_tokens} tokens, each text as its characters, at most {max_length}; "
                f"got {n}: send several requests",
            )
