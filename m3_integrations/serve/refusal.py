"""A request that ends with an error, in the shape that OpenAI's clients read, with the `detail` that Jina's read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
    507: "server_error",
}
"""What an error of a status is called; the others are "invalid_request_error"."""

_LONGEST_MESSAGE: Final = 400
"""Characters of a message: what a caller sent must not come back, or into a log, at length."""


class Refusal(Exception):  # noqa: N818 - no fault of the server's
    """A request ends with an error.

    Args:
        status: Of the response.
        message: What was wrong, and what to do.
        retry_after_s: After how many seconds to ask again, where that may help.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, clipped(message), retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Those of the response, beside its content's."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def body(self) -> bytes:
        """The response's JSON."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "code": self.status,
        }
        # Escapes, as a message may quote half of a surrogate pair.
        return json.dumps({"error": error, "detail": self.message}).encode("ascii")


def clipped(message: str) -> str:
    """Return a message, cut if it is long."""
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[: _LONGEST_MESSAGE - 2]} …"
