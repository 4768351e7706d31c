"""What a Qdrant server's refusals and silences are called here: built-in errors, whatever the transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from grpc import RpcError, StatusCode
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

_Answer = TypeVar("_Answer")

_FORBIDDEN: Final = {401, 403, StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}
_SILENT: Final = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}


def ask_server(url: str, call: Callable[..., _Answer], *args: Any, **kwargs: Any) -> _Answer:
    """Give what a call of the client gives.

    Raises:
        ConnectionError: If no server answers.
        PermissionError: If it does not accept the key.
        OSError: If it answers with another error.
    """
    try:
        return call(*args, **kwargs)
    except (ResponseHandlingException, UnexpectedResponse, RpcError) as error:
        raise as_os_error(error, url) from error


def as_os_error(error: Any, url: str) -> OSError:
    """Give the built-in error for one of qdrant-client's or grpc's."""
    if isinstance(error, UnexpectedResponse):
        status, said = error.status_code, error.content.decode(errors="replace")[:300]
    elif isinstance(error, RpcError):
        status, said = error.code(), error.details() or ""
    else:
        return ConnectionError(f"no Qdrant server answers at {url}: {error}")
    if status in _SILENT:
        return ConnectionError(f"no Qdrant server answers at {url}: {said}")
    if status in _FORBIDDEN:
        return PermissionError(f"the Qdrant server at {url} does not accept the API key: {said}")
    return OSError(f"the Qdrant server at {url} answered {status}: {said}")
