"""`Refusal`: an error answer in OpenAI's format, with the field `detail` that Jina's clients read."""

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
"""The error's type by status; every other status has "invalid_request_error"."""

_LONGEST_MESSAGE: Final = 400
"""Most characters of a message, so that a long text from the caller is not repeated in an answer or a log."""


class Refusal(Exception):  # noqa: N818 - the server did not fail
    """Ends a request with an error.

    Args:
        status: The response's status.
        message: What was wrong, and what to do.
        retry_after_s: Seconds after which the client may ask again; None if that does not help.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, clipped(message), retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers, without those about its content."""
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
        # json.dumps escapes non-ASCII: a message may quote half of a surrogate pair, which UTF-8 cannot encode.
        return json.dumps({"error": error, "detail": self.message}).encode("ascii")


def clipped(message: str) -> str:
    """Return a message, cut if it is long."""
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[: _LONGEST_MESSAGE - 2]} …"
