"""A stand-in for a Qdrant server: its REST doors, as far as a store asks them, over qdrant-client's local mode."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from qdrant_client import QdrantClient, models

from tests.serve.conftest import wait_until


@dataclass
class StandIn:
    """What is behind the doors, and how often each record was written and that was answered."""

    client: QdrantClient
    url: str = ""
    written: Counter[str] = field(default_factory=Counter)


@contextmanager
def standing_in() -> Iterator[StandIn]:
    """Serve an empty one."""
    behind = StandIn(QdrantClient(":memory:"))
    server = uvicorn.Server(uvicorn.Config(_app(behind), port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        behind.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield behind
    finally:
        server.should_exit = True
        thread.join(60)


def _app(behind: StandIn) -> FastAPI:
    app, client = FastAPI(), behind.client

    @app.api_route("/collections/{name}{rest:path}", methods=["GET", "PUT", "POST", "PATCH"])
    async def answer(name: str, rest: str, request: Request) -> JSONResponse:
        # Coroutines of one loop without a wait between them: the local mode is for one thread.
        body = await request.json() if await request.body() else {}
        try:
            result = _asked(request.method, rest, client, name, body)
        except ValueError as error:
            return JSONResponse({"status": {"error": str(error)}}, 400)
        if rest == "/points" and request.method == "PUT":
            behind.written.update(point["payload"]["id"] for point in body["points"])
        return JSONResponse({"result": _plain(result), "status": "ok", "time": 0.0})

    @app.get("/aliases")
    async def aliases() -> JSONResponse:
        return JSONResponse({"result": _plain(client.get_aliases()), "status": "ok", "time": 0.0})

    return app


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(each) for each in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result


def _asked(method: str, rest: str, client: QdrantClient, name: str, body: dict[str, Any]) -> Any:  # noqa: PLR0911
    match method, rest:
        case "GET", "/exists":
            return {"exists": client.collection_exists(name)}
        case "GET", "":
            return client.get_collection(name)
        case "PUT", "":
            made = models.CreateCollection.model_validate(body)
            return client.create_collection(
                name,
                vectors_config=made.vectors,
                sparse_vectors_config=made.sparse_vectors,
                metadata=made.metadata,
            )
        case "PATCH", "":
            return client.update_collection(name, metadata=body["metadata"])
        case "PUT", "/index":
            return _DONE
        case "PUT", "/points":
            client.upsert(name, [models.PointStruct.model_validate(point) for point in body["points"]])
            return _DONE
        case "POST", "/points":
            return client.retrieve(
                name, body["ids"], with_payload=body["with_payload"], with_vectors=body["with_vector"]
            )
        case "POST", "/points/count":
            return {"count": client.count(name).count}
        case "POST", "/points/scroll":
            points, after = client.scroll(
                name, limit=body["limit"], offset=body.get("offset"), with_payload=True, with_vectors=False
            )
            return {"points": _plain(points), "next_page_offset": after}
    raise ValueError(f"the stand-in has no {method} {rest}")


_DONE: dict[str, Any] = {"operation_id": 0, "status": "completed"}
