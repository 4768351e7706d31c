"""`create_app`: all routes behind one gate."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from m3_integrations.encoder import M3Encoder
from m3_integrations.engine import EncoderStats
from m3_integrations.search import CalibrationLike, IncompleteAddError, read_calibration
from m3_integrations.serve.conventional import conventional_routes
from m3_integrations.serve.encoding import encoding_routes
from m3_integrations.serve.gate import Gate
from m3_integrations.serve.keys import KeyRing
from m3_integrations.serve.limits import Limits
from m3_integrations.serve.metrics import Metrics
from m3_integrations.serve.records import record_routes
from m3_integrations.serve.refusal import Refusal
from m3_integrations.serve.shapes import ErrorAnswer, StateAnswer
from m3_integrations.serve.store import store_routes
from m3_integrations.store import Store

_logger = logging.getLogger("m3_integrations.serve")

_SHOWN_FAULTS: Final = 3
"""An error message names at most this many faults of a request's body."""

_STATUSES: Final = {
    PermissionError: 403,
    ConnectionError: 502,
    TimeoutError: 504,
    OSError: 507,
    ValueError: 422,
    TypeError: 422,
}
"""The statuses of errors of a store or of what was asked; the first that fits counts."""

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The body is not JSON",
        401: "No API key, or a wrong one",
        403: "Without API keys, the request names another host than this machine; or the store is read-only",
        404: "No such model or record",
        408: "The body did not arrive in time",
        413: "Too large",
        422: "What was asked is wrong",
        429: "Too many requests wait",
        500: "The server failed",
        502: "The store's server does not answer",
        503: "The server is ending",
        504: "The time limit has passed",
        507: "The store cannot be read or written",
    }.items()
}


def create_app(
    encoder: M3Encoder,
    *,
    store: Store | None = None,
    calibration: CalibrationLike | None = None,
    api_keys: Iterable[str] = (),
    limits: Limits | None = None,
    name: str | None = None,
    local_only: bool | None = None,
) -> Gate:
    """Return an ASGI app that serves one encoder, and a store if one is given.

    Run the app in one process: each further worker would load the model again. The caller closes the encoder and the
    store.

    Args:
        encoder: Encodes and scores. Its fingerprint is read now, which takes seconds for a large model.
        store: Adds the routes for search and records. It is bound to the encoder's model.
        calibration: Needed by searches with min_probability: a `Calibration`, or the file that `m3 eval --calibrate`
            wrote.
        api_keys: A request must name one of these. Without keys every request is accepted. `read_keys` reads them.
        limits: Limits on each request and on the number of requests; `Limits()` if None.
        name: The model's name for clients. Default: the name it was opened with, or the last part of a folder's path.
        local_only: Whether the host that a request names must be an IP address or localhost. Default: True without
            keys, else False. Set it to False behind a proxy that passes its own name on.

    Raises:
        FileNotFoundError: If the calibration's file does not exist.
        TypeError: If api_keys is one string.
        ValueError: If a key is not printable ASCII, the store holds another model's vectors, or the calibration cannot
            be read, is for another model, or is passed without a store.
    """
    limits, keys = limits or Limits(), KeyRing(api_keys)
    name = name or (Path(encoder.model).name if Path(encoder.model).is_absolute() else encoder.model)
    routers = [encoding_routes(encoder, limits, name), conventional_routes(encoder, limits, name)]
    known = None if calibration is None else read_calibration(calibration)
    if store is not None:
        routers.append(record_routes(encoder, store, limits, calibration=known))
    elif known is not None:
        raise ValueError("calibration= needs a store to search: pass store= too")
    routers.append(store_routes(store, limits))
    return gated(routers, lambda: encoder.stats, limits=limits, keys=keys, local_only=local_only)


def gated(
    routers: Iterable[APIRouter],
    stats: Callable[[], EncoderStats],
    *,
    limits: Limits,
    keys: KeyRing,
    local_only: bool | None = None,
) -> Gate:
    """Return a gate in front of these routes and of /health, /ready and /metrics; arguments as for `create_app`."""
    metrics = Metrics(stats)
    app = FastAPI(
        title="m3 serve",
        version=version("m3-integrations"),
        description="BGE-M3's dense, lexical and multi-vector views of texts, and search in them.",
        redoc_url=None,
        responses=_ERRORS,
    )
    for router in routers:
        app.include_router(router)
    for kind in (Refusal, RequestValidationError, HTTPException, ValueError, TypeError, OSError, IncompleteAddError):
        app.add_exception_handler(kind, _answer_error)

    @app.get("/health", tags=["operation"])
    async def health() -> StateAnswer:
        """Answer at once while the process is alive."""
        return StateAnswer(status="ok")

    @app.get("/ready", tags=["operation"])
    async def ready() -> StateAnswer:
        """Answer 200 while the server accepts requests, and 503 once it is ending."""
        if gate.is_ending:
            raise Refusal(503, "this server is ending")
        return StateAnswer(status="ready")

    @app.get("/metrics", response_class=Response, tags=["operation"])
    async def show_metrics() -> Response:
        """Return the server's metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    is_local = keys.is_empty if local_only is None else local_only
    paths = frozenset(app.openapi()["paths"]) | {"/docs", "/openapi.json"}
    gate = Gate(app, paths=paths, keys=keys, limits=limits, metrics=metrics, local_only=is_local)
    return gate


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ValidationError):  # a ValueError as well, but the fault is in our answer
        raise error
    refusal = _refusal(error)
    if isinstance(error, OSError | IncompleteAddError):
        # Only types and the system's words: other messages may quote a user's text.
        cause = error.__cause__ if isinstance(error, IncompleteAddError) else error
        said = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "no error number"
        _logger.error("%s failed with %s (%s)", request.method, type(cause).__name__, said)
    return Response(refusal.body, refusal.status, refusal.headers, "application/json")


def _refusal(error: BaseException | None) -> Refusal:
    """Return the answer to an error; an incomplete addition has the status of its cause."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return Refusal(422, _faults(error))
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, str(error.detail))
    if isinstance(error, IncompleteAddError):
        cause = error.__cause__
        return Refusal(_refusal(cause).status, f"{error}. The error was: {cause}")
    return Refusal(next((each for kind, each in _STATUSES.items() if isinstance(error, kind)), 500), str(error))


def _faults(error: RequestValidationError) -> str:
    """Return the places where a body is wrong, without the values: a value may be a user's text."""
    faults = error.errors()
    shown = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:_SHOWN_FAULTS]]
    rest = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
    return "; ".join(shown) + rest
