"""A stand-in for a Qdrant cluster: nodes that answer gRPC on loopback over one local mode, and fail as real ones do."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
from grpc import StatusCode
from qdrant_client import QdrantClient
from qdrant_client import grpc as wire
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer, add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server

GOING = "Service internal error: 1 of 1 read operations failed:\n  Service internal error: Tonic status error"
"""What a cluster answers where the node that it would ask has just gone."""

NO_SHARDS = "Service internal error: 0 of 0 read operations failed"
"""What it answers while a collection is being made: it exists, its shards do not yet."""

Fault = tuple[StatusCode, str]


class Node:
    """A node of a cluster. Those over one local mode hold the same collections.

    Attributes:
        port: Of gRPC.
        asked: The methods that it was asked for, in their order.
        faults: By method, what it answers next instead of doing what it was asked, one after the other.
        lost: By method, what it answers next after doing it: the answer was lost on its way.
        always: What it answers whatever it is asked; None to do it.
    """

    def __init__(self, local: QdrantClient) -> None:
        self._local, self._doing = local, threading.Lock()
        self.asked: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self.lost: dict[str, list[Fault]] = {}
        self.always: Callable[[], Fault | None] = lambda: None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Its URL, whose port for REST nobody listens at."""
        return "http://127.0.0.1:1"

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        add_PointsServicer_to_server(_Points(self), self._server)  # type: ignore[no-untyped-call]
        add_CollectionsServicer_to_server(_Collections(self), self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def do(self, method: str, context: Any, call: Callable[[QdrantClient], Any]) -> Any:
        """Return what the local mode answers, or abort as it was planned."""
        with self._doing:
            self.asked.append(method)
            planned = self.faults.get(method)
            if fault := self.always() or (planned.pop(0) if planned else None):
                context.abort(*fault)
            try:
                answer = call(self._local)
            except ValueError as error:
                context.abort(StatusCode.ALREADY_EXISTS, str(error))
            if self.lost.get(method):
                context.abort(*self.lost[method].pop(0))
            return answer


class _Points(PointsServicer):
    def __init__(self, node: Node) -> None:
        self._node = node

    def Upsert(self, request: Any, context: Any) -> Any:
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        done = self._node.do("Upsert", context, lambda local: local.upsert(request.collection_name, points))
        return wire.PointsOperationResponse(result=RestToGrpc.convert_update_result(done))

    def Delete(self, request: Any, context: Any) -> Any:
        chosen = GrpcToRest.convert_points_selector(request.points)
        done = self._node.do("Delete", context, lambda local: local.delete(request.collection_name, chosen))
        return wire.PointsOperationResponse(result=RestToGrpc.convert_update_result(done))

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        self._node.do("CreateFieldIndex", context, lambda _: None)
        return wire.PointsOperationResponse(result=wire.UpdateResult(status=wire.UpdateStatus.Completed))

    def Get(self, request: Any, context: Any) -> Any:
        ids = [GrpcToRest.convert_point_id(id_) for id_ in request.ids]
        payload = GrpcToRest.convert_with_payload_selector(request.with_payload)
        vectors = GrpcToRest.convert_with_vectors_selector(request.with_vectors)
        name = request.collection_name
        found = self._node.do(
            "Get", context, lambda local: local.retrieve(name, ids, with_payload=payload, with_vectors=vectors)
        )
        for record in found:
            record.payload = record.payload or {}
        return wire.GetResponse(result=map(RestToGrpc.convert_record, found))

    def Scroll(self, request: Any, context: Any) -> Any:
        offset = GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None
        page = {"limit": request.limit, "offset": offset}
        found, after = self._node.do("Scroll", context, lambda local: local.scroll(request.collection_name, **page))
        following = None if after is None else RestToGrpc.convert_extended_point_id(after)
        return wire.ScrollResponse(result=map(RestToGrpc.convert_record, found), next_page_offset=following)

    def Count(self, request: Any, context: Any) -> Any:
        where = GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None
        found = self._node.do("Count", context, lambda local: local.count(request.collection_name, where))
        return wire.CountResponse(result=RestToGrpc.convert_count_result(found))

    def QueryBatch(self, request: Any, context: Any) -> Any:
        asked = [GrpcToRest.convert_query_points(query) for query in request.query_points]
        name = request.collection_name
        found = self._node.do("QueryBatch", context, lambda local: local.query_batch_points(name, asked))
        results = [wire.BatchResult(result=map(RestToGrpc.convert_scored_point, answer.points)) for answer in found]
        return wire.QueryBatchResponse(result=results)


class _Collections(CollectionsServicer):
    def __init__(self, node: Node) -> None:
        self._node = node

    def CollectionExists(self, request: Any, context: Any) -> Any:
        there = self._node.do(
            "CollectionExists", context, lambda local: local.collection_exists(request.collection_name)
        )
        return wire.CollectionExistsResponse(result=wire.CollectionExists(exists=there))

    def ListAliases(self, request: Any, context: Any) -> Any:
        there = self._node.do("ListAliases", context, lambda local: local.get_aliases()).aliases
        return wire.ListAliasesResponse(aliases=map(RestToGrpc.convert_alias_description, there))

    def Get(self, request: Any, context: Any) -> Any:
        info = self._node.do(
            "Get of a collection", context, lambda local: local.get_collection(request.collection_name)
        )
        return wire.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def Create(self, request: Any, context: Any) -> Any:
        config: dict[str, Any] = {
            "vectors_config": GrpcToRest.convert_vectors_config(request.vectors_config),
            "sparse_vectors_config": GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config),
            "metadata": GrpcToRest.convert_payload(request.metadata),
        }
        made = self._node.do(
            "Create", context, lambda local: local.create_collection(request.collection_name, **config)
        )
        return wire.CollectionOperationResponse(result=made)

    def Update(self, request: Any, context: Any) -> Any:
        metadata = GrpcToRest.convert_payload(request.metadata)
        done = self._node.do(
            "Update", context, lambda local: local.update_collection(request.collection_name, metadata=metadata)
        )
        return wire.CollectionOperationResponse(result=done)


def resetting_port(stack: Any) -> int:
    """Return a port at which every stream of gRPC is reset, as by a node that goes; closed with the stack."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    settings, reset = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x02"

    def reset_all() -> None:
        with suppress(OSError):  # closed with the test
            while True:
                peer, _ = listener.accept()
                stack.callback(peer.close)
                peer.sendall(settings)
                while b"\x01\x04\x00\x00\x00\x01" not in peer.recv(65536):  # the headers of the first stream
                    pass
                peer.sendall(reset)

    threading.Thread(target=reset_all, daemon=True).start()
    return int(listener.getsockname()[1])
