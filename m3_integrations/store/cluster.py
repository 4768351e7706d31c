"""Calls to one or several nodes of a Qdrant server, with another try if that is safe and another node if that helps.

gRPC's retry policy knows only the status code, so it would repeat every INTERNAL error and every delete. It has one
address per channel and does nothing for REST. A library for retries would still need the choice of the node and of the
calls that are safe to repeat, and this file is little more than that.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from grpc import RpcError, StatusCode
from httpx import ConnectError, ConnectTimeout, TimeoutException, TransportError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

_Answer = TypeVar("_Answer")

MAX_ROUNDS: Final = 9
"""The most times that every node is asked."""

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 2.0
"""The wait after each round doubles up to this. All waits together take 7 to 9 s, which is longer than a cluster needs
to notice that a node is gone."""

_GRPC_OPTIONS: Final = {
    # By default a channel waits up to 2 minutes before it connects again to a node that was down.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 5000,  # the time limit of connecting
    "grpc.max_reconnect_backoff_ms": 2000,
}

_OF_A_NODE: Final = re.compile(
    r"\d+ of \d+ read operations failed|active replica|via leader peer|please retry|status: unavailable"
    r"|transport error|failed to connect|RST_STREAM|stream removed",
    re.IGNORECASE,
)
"""Words of an internal error that only one node has: it stopped, restarted, or does not have its shards yet. Any other
internal error would happen again."""

_UNSENT: Final = re.compile("failed to connect to all addresses|errors resolving|DNS resolution failed")

_REFUSED: Final = {401, 403, StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}
_SILENT: Final = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}
_GONE: Final = {502, 503, 504, StatusCode.UNAVAILABLE}
_INTERNAL: Final = {500, StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.CANCELLED}
_READ_ONLY: Final = re.compile(r"\b(manage|write)\b.* access", re.IGNORECASE)


class Cluster:
    """The nodes of one server or cluster. Safe to use from many threads.

    One node is asked as long as it answers; then the next one is asked. After the last one the first is asked again.

    Args:
        urls: The URLs of the nodes, for errors.
        clients: One client for each node.
        timeout_s: No further try begins later than this after the first one.
        grpc_ports: The ports of the nodes, for errors; None without gRPC.
    """

    def __init__(
        self, urls: Sequence[str], clients: Sequence[QdrantClient], timeout_s: float, grpc_ports: Sequence[int] | None
    ) -> None:
        self._urls, self.clients, self._grpc_ports = urls, clients, grpc_ports
        self._timeout_s = timeout_s
        self._current = 0
        self._lock = threading.Lock()

    @classmethod
    def connect(
        cls, urls: Sequence[str], *, api_key: str | None, grpc_ports: Sequence[int] | None, timeout_s: int
    ) -> Cluster:
        """Return the cluster with nodes at these URLs; no request is sent yet."""
        clients = [
            QdrantClient(
                url=url,
                port=urlsplit(url).port or 6333,
                api_key=api_key,
                prefer_grpc=grpc_ports is not None,
                grpc_port=6334 if grpc_ports is None else grpc_ports[i],
                grpc_options=dict(_GRPC_OPTIONS),
                timeout=timeout_s,
                check_compatibility=False,  # the check would send a request now, and warn if it fails
            )
            for i, url in enumerate(urls)
        ]
        return cls(urls, clients, timeout_s, grpc_ports)

    def ask(self, call: Callable[[QdrantClient], _Answer], *, is_repeatable: bool = True) -> _Answer:
        """Return the result of a call of a node's client; errors of REST and gRPC become built-in ones.

        A call that could not be sent is always repeated. If the answer was lost, the call may have been applied: it is
        repeated only if `is_repeatable`. A call that took too long is not repeated: the first one may still be running
        and be applied later, over newer changes.

        Args:
            call: A function that calls a client.
            is_repeatable: Whether two calls have the same effect as one.

        Raises:
            ConnectionError: If no node answers.
            PermissionError: If the key is not accepted, or does not allow this.
            OSError: If the answer is another error. Errors of a node say how often it was tried and for how long.
        """
        began, tries, wait_s = time.monotonic(), 0, _FIRST_WAIT_S
        while True:
            node, tries = self._current, tries + 1
            try:
                return call(self.clients[node])
            except (ResponseHandlingException, UnexpectedResponse, RpcError, ResourceExhaustedResponse) as error:
                fault = _fault(error)
                if fault is not _Fault.FINAL:
                    self._leave(node)
                pause_s = 0.0 if tries % len(self.clients) else wait_s * random.uniform(0.75, 1.0)  # noqa: S311
                spent_s = time.monotonic() - began
                is_over = tries == MAX_ROUNDS * len(self.clients) or spent_s + pause_s >= self._timeout_s
                if is_over or not (fault is _Fault.NOT_SENT or (fault is _Fault.LOST and is_repeatable)):
                    tried = f"tried {tries} {'time' if tries == 1 else 'times'} in {spent_s:.1f} s"
                    if fault is _Fault.LOST and not is_repeatable:
                        tried += ", not repeated because the server may have done it: check before you repeat it"
                    raise self._as_os_error(error, node, tried) from error
            if pause_s:
                time.sleep(pause_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def close(self) -> None:
        """Close the clients."""
        for client in self.clients:
            client.close()

    def _leave(self, node: int) -> None:
        with self._lock:
            if self._current == node:  # if not, another thread has changed the node already
                self._current = (node + 1) % len(self.clients)

    def _as_os_error(self, error: Any, node: int, tried: str) -> OSError:
        """Return the built-in error for an error of qdrant-client or grpc."""
        url, everywhere = self._urls[node], " or ".join(self._urls)
        if isinstance(error, ResponseHandlingException):
            return ConnectionError(f"no Qdrant server answers at {everywhere}: {error.source} ({tried})")
        if isinstance(error, ResourceExhaustedResponse):
            return OSError(f"the Qdrant server at {url} limits the rate: try again in {error.retry_after_s} s: {error}")
        status, said = _status_and_words(error)
        if status in _SILENT:
            port = None if self._grpc_ports is None else self._grpc_ports[node]
            hint = "" if port is None else f" (the gRPC port is {port}: see grpc_port= and prefer_grpc=False)"
            return ConnectionError(f"no Qdrant server answers at {everywhere}: {said} ({tried}){hint}")
        if status in _REFUSED and _READ_ONLY.search(said):
            return PermissionError(f"the API key allows only reading from the Qdrant server at {url}: {said}")
        if status in _REFUSED:
            return PermissionError(f"the Qdrant server at {url} does not accept the API key: {said}")
        return OSError(f"the Qdrant server at {url} answered {status}: {said} ({tried})")


class _Fault(Enum):
    """The state of a call after an error."""

    NOT_SENT = auto()
    """No server has seen the call."""
    LOST = auto()
    """The node stopped or is not ready; it may have applied the call."""
    LATE = auto()
    """The node may still be working on the call."""
    FINAL = auto()
    """The call would fail again."""


def _fault(error: Exception) -> _Fault:
    if isinstance(error, ResourceExhaustedResponse):
        return _Fault.FINAL
    if isinstance(error, ResponseHandlingException):
        kinds = {
            ConnectError | ConnectTimeout: _Fault.NOT_SENT,
            TimeoutException: _Fault.LATE,
            TransportError: _Fault.LOST,
        }
        return next((fault for kind, fault in kinds.items() if isinstance(error.source, kind)), _Fault.FINAL)
    status, said = _status_and_words(error)
    if status is StatusCode.DEADLINE_EXCEEDED:
        return _Fault.LATE
    if status in _GONE:
        return _Fault.NOT_SENT if _UNSENT.match(said) else _Fault.LOST
    return _Fault.LOST if status in _INTERNAL and _OF_A_NODE.search(said) else _Fault.FINAL


def _status_and_words(error: Any) -> tuple[Any, str]:
    if isinstance(error, UnexpectedResponse):
        return error.status_code, error.content.decode(errors="replace")[:300]
    return error.code(), error.details() or ""
