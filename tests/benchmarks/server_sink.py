"""A process that takes what a store sends to a Qdrant server and keeps it: no search, no index, no disk.

It stands in for a server where only our own side is measured. What it answers to a search is of the right shape.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc
from qdrant_client import grpc as messages
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer, add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server

_DONE = messages.PointsOperationResponse(
    result=messages.UpdateResult(operation_id=0, status=messages.UpdateStatus.Completed)
)


class Sink(PointsServicer, CollectionsServicer):
    """One collection, in memory; an upsert takes it so many seconds, in which it does nothing."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._points: dict[str, Any] = {}
        self._exists = False

    def Upsert(self, request: Any, context: Any) -> Any:
        for point in request.points:
            kept = messages.RetrievedPoint(id=point.id, payload=point.payload)
            kept.vectors.MergeFromString(point.vectors.SerializeToString())
            self._points[point.id.uuid] = kept
        time.sleep(self._delay_s)
        return _DONE

    def Get(self, request: Any, context: Any) -> Any:
        found = [self._points[id_.uuid] for id_ in request.ids if id_.uuid in self._points]
        return messages.GetResponse(result=[_chosen(each, with_vectors=request.with_vectors.enable) for each in found])

    def Scroll(self, request: Any, context: Any) -> Any:
        start = int(request.offset.uuid.replace("-", ""), 16) if request.HasField("offset") else 0
        page = list(itertools.islice(self._points.values(), start, start + request.limit))
        following = messages.PointId(uuid=f"{start + len(page):032x}") if len(page) == request.limit else None
        return messages.ScrollResponse(
            result=[_chosen(each, with_vectors=False) for each in page], next_page_offset=following
        )

    def QueryBatch(self, request: Any, context: Any) -> Any:
        answer = messages.QueryBatchResponse()
        for query in request.query_points:
            asked = [id_.uuid for must in query.filter.must for id_ in must.has_id.has_id]
            found = asked or itertools.islice(self._points, query.limit)
            hits = answer.result.add().result
            for rank, id_ in enumerate(found):
                hit = hits.add(id=messages.PointId(uuid=id_), score=1 / (1 + rank))
                if query.with_payload.enable:
                    hit.MergeFrom(messages.ScoredPoint(payload=self._points[id_].payload))
                elif not asked:
                    hit.payload["id"].CopyFrom(self._points[id_].payload["id"])
        return answer

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        return _DONE

    def CollectionExists(self, request: Any, context: Any) -> Any:
        return messages.CollectionExistsResponse(result=messages.CollectionExists(exists=self._exists))

    def ListAliases(self, request: Any, context: Any) -> Any:
        return messages.ListAliasesResponse()

    def Create(self, request: Any, context: Any) -> Any:
        self._exists = True
        return messages.CollectionOperationResponse(result=True)

    def Delete(self, request: Any, context: Any) -> Any:
        self._points.clear()
        self._exists = False
        return messages.CollectionOperationResponse(result=True)


def _chosen(point: Any, *, with_vectors: bool) -> Any:
    return point if with_vectors else messages.RetrievedPoint(id=point.id, payload=point.payload)


def _serve(port_to: Connection, delay_s: float) -> None:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(2), options=unlimited)
    sink = Sink(delay_s)
    add_PointsServicer_to_server(sink, server)  # type: ignore[no-untyped-call]
    add_CollectionsServicer_to_server(sink, server)  # type: ignore[no-untyped-call]
    port_to.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


@contextmanager
def sink(delay_s: float = 0.0) -> Iterator[int]:
    """Run the process, and yield its port for gRPC."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, delay_s), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()
