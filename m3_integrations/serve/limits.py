"""`Limits`: the size of a request, and the number of requests."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from m3_integrations.serve.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the size of a request and on the number of requests.

    Attributes:
        max_body_bytes: The most bytes of a request's body.
        max_texts: The most texts, pairs, documents or records of a request.
        max_tokens: The most tokens of a request to /v1/encode. Each text counts as its number of characters, or as its
            length limit in tokens if that is smaller. 65,536 tokens are at most 256 MB of token vectors of BGE-M3.
        max_running: The most requests with a body of up to 4 KB that run at a time. An eighth as many run with a larger
            body or to /v1/spans. At most 8 requests to /v1/store run at a time.
        max_waiting: The most further requests of each kind that wait. A request beyond that gets 429.
        timeout_s: Seconds from a request's headers to its answer. After that the request ends with 504 and leaves the
            encoder's queue, or with 408 if its body has not arrived.

    Raises:
        ValueError: If a limit is not finite or not above 0. `max_waiting` may be 0.
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
        """Refuse a request with more than `max_texts` texts.

        Args:
            n: How many texts the request has.
            what: A word for them in the error message, such as "texts".

        Raises:
            Refusal: With status 422.
        """
        if n > self.max_texts:
            raise Refusal(422, f"a request may hold at most {self.max_texts} {what}, got {n}: send several requests")

    def check_tokens(self, texts: Iterable[str], max_length: int) -> None:
        """Refuse texts whose token vectors may take too much memory.

        Args:
            texts: The texts of a request.
            max_length: The most tokens of each text.

        Raises:
            Refusal: With status 413.
        """
        n = sum(min(len(text), max_length) for text in texts)
        if n > self.max_tokens:
            raise Refusal(
                413,
                f"a request may have at most {self.max_tokens} tokens, got {n} (a text counts as its characters, at "
                f"most {max_length}): send several requests",
            )
