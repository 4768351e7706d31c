"""A server that speaks Qdrant's gRPC on the loopback, over qdrant-client's local mode, and notes what it was asked."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

import grpc
from qdrant_client import QdrantClient
from qdrant_client import grpc as messages
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer, add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server

_DONE = messages.PointsOperationResponse(
    result=messages.UpdateResult(operation_id=0, status=messages.UpdateStatus.Completed)
)


class GrpcServer(PointsServicer, CollectionsServicer):
    """The calls that a store makes.

    Attributes:
        calls: The names of the calls, in the order in which they came.
        upserted: The messages of `Upsert`.
        metadata: What came with the last call.
    """

    def __init__(self) -> None:
        self.local = QdrantClient(":memory:")
        self.calls, self.upserted, self.metadata = list[str](), list[Any](), dict[str, Any]()
        self.lock = Lock()  # the local mode is for one thread at a time

    def note(self, name: str, context: Any) -> None:
        self.calls.append(name)
        self.metadata = dict(context.invocation_metadata())

    def Upsert(self, request: Any, context: Any) -> Any:
        self.note("Upsert", context)
        self.upserted.append(request)
        self.local.upsert(request.collection_name, [GrpcToRest.convert_point_struct(each) for each in request.points])
        return _DONE

    def Get(self, request: Any, context: Any) -> Any:
        self.note("Get", context)
        found = self.local.retrieve(
            request.collection_name,
            [GrpcToRest.convert_point_id(each) for each in request.ids],
            with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
            with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
        )
        return messages.GetResponse(result=[as_retrieved(each) for each in found])

    def Scroll(self, request: Any, context: Any) -> Any:
        self.note("Scroll", context)
        offset = GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None
        found, after = self.local.scroll(request.collection_name, limit=request.limit, offset=offset)
        next_page = None if after is None else RestToGrpc.convert_extended_point_id(after)
        return messages.ScrollResponse(result=[as_retrieved(each) for each in found], next_page_offset=next_page)

    def QueryBatch(self, request: Any, context: Any) -> Any:
        self.note("QueryBatch", context)
        asked = [GrpcToRest.convert_query_points(each) for each in request.query_points]
        with self.lock:
            answers = self.local.query_batch_points(request.collection_name, asked)
        found = [[RestToGrpc.convert_scored_point(hit) for hit in answer.points] for answer in answers]
        return messages.QueryBatchResponse(result=[messages.BatchResult(result=hits) for hits in found])

    def Count(self, request: Any, context: Any) -> Any:
        self.note("Count", context)
        where = GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None
        count = self.local.count(request.collection_name, count_filter=where).count
        return messages.CountResponse(result=messages.CountResult(count=count))

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        self.note("CreateFieldIndex", context)
        return _DONE

    def CollectionExists(self, request: Any, context: Any) -> Any:
        self.note("CollectionExists", context)
        exists = self.local.collection_exists(request.collection_name)
        return messages.CollectionExistsResponse(result=messages.CollectionExists(exists=exists))

    def ListAliases(self, request: Any, context: Any) -> Any:
        self.note("ListAliases", context)
        return messages.ListAliasesResponse(
            aliases=map(RestToGrpc.convert_alias_description, self.local.get_aliases().aliases)
        )

    def Create(self, request: Any, context: Any) -> Any:
        self.note("Create", context)
        self.local.create_collection(
            request.collection_name,
            vectors_config=GrpcToRest.convert_vectors_config(request.vectors_config),
            sparse_vectors_config=GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config),
            metadata=GrpcToRest.convert_payload(request.metadata),
        )
        return messages.CollectionOperationResponse(result=True)

    def Update(self, request: Any, context: Any) -> Any:
        self.note("Update", context)
        self.local.update_collection(request.collection_name, metadata=GrpcToRest.convert_payload(request.metadata))
        return messages.CollectionOperationResponse(result=True)


class _Late:
    """A servicer whose calls are looked up when they come, so that a test can change them."""

    def __init__(self, servicer: GrpcServer) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Any:
        def call(request: Any, context: Any) -> Any:
            return getattr(self._servicer, name)(request, context)

        return call


def as_retrieved(record: Any) -> Any:
    record.vector = record.vector or {}
    return RestToGrpc.convert_record(record)


@contextmanager
def grpc_server() -> Iterator[tuple[GrpcServer, int]]:
    """Run a server, and yield it with its port."""
    servicer = GrpcServer()
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, options=unlimited)
        add_PointsServicer_to_server(_Late(servicer), server)  # type: ignore[no-untyped-call]
        add_CollectionsServicer_to_server(_Late(servicer), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield servicer, port
        finally:
            server.stop(None).wait()
