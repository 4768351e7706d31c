"""Asking one or several nodes of a Qdrant server: another try where that is safe, another node where it helps.

gRPC's own retry policy goes by the status code alone, so it would repeat any INTERNAL error and any delete; it has one
address a channel and does nothing for REST. A library for retries would still need the choice of the node and of what
is safe, which is what is here.
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
"""How often every node is asked at most."""

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 2.0
"""The wait after each round doubles up to this. All waits together take 7 to 9 s, longer than it takes a cluster to
notice that a node is gone."""

_GRPC_OPTIONS: Final = {
    # By default a channel waits up to 2 minutes before it looks for a node that had gone.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 5000,  # how long connecting may take
    "grpc.max_reconnect_backoff_ms": 2000,
}

_OF_A_NODE: Final = re.compile(
    r"\d+ of \d+ read operations failed|active replica|via leader peer|please retry|status: unavailable"
    r"|transport error|failed to connect|RST_STREAM|stream removed",
    re.IGNORECASE,
)
"""Words of an internal error by which it is one node's: it went, came back, or has not got the shards yet. Other
internal errors would come again."""

_UNSENT: Final = re.compile("failed to connect to all addresses|errors resolving|DNS resolution failed")

_REFUSED: Final = {401, 403, StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}
_SILENT: Final = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}
_GONE: Final = {502, 503, 504, StatusCode.UNAVAILABLE}
_INTERNAL: Final = {500, StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.CANCELLED}
_READ_ONLY: Final = re.compile(r"\b(manage|write)\b.* access", re.IGNORECASE)


class Cluster:
    """The nodes of one server or cluster. Safe to use from many threads.

    One node is asked as long as it answers, and the next one in turn when it does not, so a node that was down is
    tried again when the turn comes round.

    Args:
        urls: Of the nodes, for errors.
        clients: One for each node.
        timeout_s: No further try begins this long after the first did.
        grpc_ports: Of the nodes, for errors; None without gRPC.
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
        """Return the cluster that has nodes at these URLs; it is not asked anything yet."""
        clients = [
            QdrantClient(
                url=url,
                port=urlsplit(url).port or 6333,
                api_key=api_key,
                prefer_grpc=grpc_ports is not None,
                grpc_port=6334 if grpc_ports is None else grpc_ports[i],
                grpc_options=dict(_GRPC_OPTIONS),
                timeout=timeout_s,
                check_compatibility=False,  # it would ask the server, and warn, before anything was asked of it
            )
            for i, url in enumerate(urls)
        ]
        return cls(urls, clients, timeout_s, grpc_ports)

    def ask(self, call: Callable[[QdrantClient], _Answer], *, is_repeatable: bool = True) -> _Answer:
        """Return what a call of a node's client returns, and raise built-in errors, whatever the transport.

        A call that could not be sent is repeated in any case. One whose answer was lost may have been applied, so it
        is repeated only if doing it twice is like doing it once. One that took too long may be under way still, and
        is not repeated: applied late, it would undo what came after it.

        Args:
            call: What to ask of a client.
            is_repeatable: Whether doing it twice is like doing it once.

        Raises:
            ConnectionError: If no node answers.
            PermissionError: If the key is not accepted, or may not do this.
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
                        tried += ", not repeated as it may have been done: look before you do it again"
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
            if self._current == node:  # or another thread has gone on already
                self._current = (node + 1) % len(self.clients)

    def _as_os_error(self, error: Any, node: int, tried: str) -> OSError:
        """Return the built-in error for one of qdrant-client's or grpc's."""
        url, everywhere = self._urls[node], " or ".join(self._urls)
        if isinstance(error, ResponseHandlingException):
            return ConnectionError(f"no Qdrant server answers at {everywhere}: {error.source} ({tried})")
        if isinstance(error, ResourceExhaustedResponse):
            return OSError(f"the Qdrant server at {url} limits the rate: try again in {error.retry_after_s} s: {error}")
        status, said = _status_and_words(error)
        if status in _SILENT:
            port = None if self._grpc_ports is None else self._grpc_ports[node]
            hint = "" if port is None else f" (gRPC has port {port} here: see grpc_port= and prefer_grpc=False)"
            return ConnectionError(f"no Qdrant server answers at {everywhere}: {said} ({tried}){hint}")
        if status in _REFUSED and _READ_ONLY.search(said):
            return PermissionError(f"the API key may not write to the Qdrant server at {url}, it may read: {said}")
        if status in _REFUSED:
            return PermissionError(f"the Qdrant server at {url} does not accept the API key: {said}")
        return OSError(f"the Qdrant server at {url} answered {status}: {said} ({tried})")


class _Fault(Enum):
    """What an error says of the call."""

    NOT_SENT = auto()
    """No server can have seen it."""
    LOST = auto()
    """The node went or is not ready; what it had done of the call is unknown."""
    LATE = auto()
    """The node may be at it still."""
    FINAL = auto()
    """It would fail again."""


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
