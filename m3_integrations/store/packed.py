"""Sending points to and from a Qdrant server by gRPC, without making a Python number of every float of a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

import numpy as np
from qdrant_client import QdrantClient, grpc
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.qdrant_remote import QdrantRemote

from m3_integrations.vectors import FloatArray, M3Vectors

_NUMBER_BYTES: Final = 4
"""The bytes of a float32; protobuf has the numbers of a vector one after another, lowest byte first."""


class _Sparse(NamedTuple):
    indices: Sequence[int]
    values: Sequence[float]


class Point(NamedTuple):
    """A point that a server returned: its UUID, payload, vectors by name, and its score if it was searched."""

    id: str
    payload: dict[str, Any]
    vector: dict[str, Any] | None = None
    score: float = 0.0


class Answer(NamedTuple):
    """The points that one search has found, best first."""

    points: list[Point]


class PackedPoints:
    """The calls of a client that carry vectors, under the names that the client has for them.

    The messages, their metadata and the errors are the same as with the client's own calls.
    """

    def __init__(self, client: QdrantClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    @classmethod
    def of(cls, client: QdrantClient) -> Self | None:
        """Return these calls of a client; None if it talks by REST or is qdrant-client's local mode."""
        options = client.init_options
        if not options["prefer_grpc"]:
            return None
        try:
            _ = client.grpc_points
        except NotImplementedError:  # the local mode
            return None
        return cls(client, options["timeout"] or QdrantRemote.DEFAULT_GRPC_TIMEOUT)

    def upsert(self, collection: str, request: grpc.UpsertPoints, *, wait: bool) -> None:
        """Add the points of `pack_points`, replacing those with the same ids."""
        request.collection_name, request.wait = collection, wait
        self._client.grpc_points.Upsert(request, timeout=self._timeout_s)

    def retrieve(
        self, collection: str, points: Sequence[str], *, with_payload: bool, with_vectors: bool, consistency: Any = None
    ) -> list[Point]:
        """Return the existing ones of these points."""
        request = grpc.GetPoints(
            collection_name=collection,
            ids=[grpc.PointId(uuid=point) for point in points],
            with_payload=grpc.WithPayloadSelector(enable=with_payload),
            with_vectors=grpc.WithVectorsSelector(enable=with_vectors),
            read_consistency=_as_message(consistency),
        )
        return [_read_point(found) for found in self._client.grpc_points.Get(request, timeout=self._timeout_s).result]

    def query_batch_points(self, collection: str, requests: Sequence[Any], consistency: Any = None) -> list[Answer]:
        """Return the answer of each of the searches."""
        converted = [RestToGrpc.convert_query_request(request, collection) for request in requests]
        request = grpc.QueryBatchPoints(
            collection_name=collection, query_points=converted, read_consistency=_as_message(consistency)
        )
        answers = self._client.grpc_points.QueryBatch(request, timeout=self._timeout_s).result
        return [Answer([_read_hit(hit) for hit in answer.result]) for answer in answers]


def pack_points(
    payloads: Sequence[dict[str, Any]], vectors: M3Vectors, rows: Sequence[int], point_id: Callable[[str], str]
) -> grpc.UpsertPoints:
    """Return records as the points of a message for `PackedPoints.upsert`.

    The message is filled in place, because protobuf copies a message that is put into another one.

    Args:
        payloads: The payloads of n records, as `as_payload` returns them.
        vectors: The vectors of any number of texts, in every mode to be kept. A vector without values is left out:
            servers refuse it.
        rows: The row of each of the n records in vectors.
        point_id: A function that makes the UUID of a record's point of its id.
    """
    request = grpc.UpsertPoints()
    dense = vectors.dense if "dense" in vectors.modes else None
    lexical = vectors.lexical if "lexical" in vectors.modes else None
    tokens = vectors.multi_vector if "multi_vector" in vectors.modes else None
    for payload, row in zip(payloads, rows, strict=True):
        id_ = grpc.PointId(uuid=point_id(payload["id"]))
        point = request.points.add(id=id_, payload=RestToGrpc.convert_payload(payload))
        point.vectors.vectors.SetInParent()  # the field must exist even if every vector is left out
        named = point.vectors.vectors.vectors
        if dense is not None:
            named["dense"].dense.MergeFromString(_dense_head(dense.shape[1]) + _as_bytes(dense[row]))
        if lexical is not None and (start := lexical.offsets[row]) < (end := lexical.offsets[row + 1]):
            sparse = named["lexical"].sparse
            sparse.indices.extend(lexical.indices[start:end].tolist())
            sparse.values.extend(lexical.values[start:end].tolist())
        if tokens is not None and (start := tokens.offsets[row]) < (end := tokens.offsets[row + 1]):
            named["multi_vector"].multi_dense.MergeFromString(_pack_rows(tokens.flat[start:end]))
    return request


def _as_message(consistency: Any) -> grpc.ReadConsistency | None:
    return None if consistency is None else RestToGrpc.convert_read_consistency(consistency)


def _read_point(found: grpc.RetrievedPoint) -> Point:
    named = {name: _read_vector(vector) for name, vector in found.vectors.vectors.vectors.items()}
    return Point(found.id.uuid, GrpcToRest.convert_payload(found.payload), named)


def _read_hit(found: grpc.ScoredPoint) -> Point:
    payload = found.payload  # most hits have none, and converting hundreds of empty ones takes time
    return Point(found.id.uuid, GrpcToRest.convert_payload(payload) if payload else {}, None, found.score)


def _read_vector(vector: grpc.VectorOutput) -> Any:
    """Return a vector as an array, (d,) or (tokens, d) float32, or as its indices and values."""
    kind = vector.WhichOneof("vector")
    if kind == "dense":
        size = len(vector.dense.data)
        packed = vector.dense.SerializeToString()
        return np.frombuffer(packed, "<f4", size, len(_dense_head(size))).astype(np.float32)
    if kind == "sparse":
        return _Sparse(list(vector.sparse.indices), list(vector.sparse.values))
    if kind == "multi_dense" and vector.multi_dense.vectors:
        return _read_rows(vector.multi_dense)
    return GrpcToRest.convert_vector_output(vector)  # the format of servers before 1.17


def _read_rows(multi: grpc.MultiDenseVector) -> FloatArray:
    size = len(multi.vectors[0].data)
    head = np.frombuffer(_row_head(size), np.uint8)
    packed = np.frombuffer(multi.SerializeToString(), np.uint8)
    if packed.size == len(multi.vectors) * (head.size + _NUMBER_BYTES * size):
        rows = packed.reshape(len(multi.vectors), -1)
        if (rows[:, : head.size] == head).all():
            numbers = np.ascontiguousarray(rows[:, head.size :]).view("<f4")
            return numbers.astype(np.float32, copy=False)
    # A later server may add fields that this client does not know.
    return np.array([row.data for row in multi.vectors], np.float32)


def _pack_rows(rows: FloatArray) -> bytes:
    """Return rows, (tokens, d) float32, as protobuf's bytes of a MultiDenseVector."""
    head = np.frombuffer(_row_head(rows.shape[1]), np.uint8)
    packed = np.empty((len(rows), head.size + _NUMBER_BYTES * rows.shape[1]), np.uint8)
    packed[:, : head.size] = head
    packed[:, head.size :] = np.ascontiguousarray(rows, "<f4").view(np.uint8)
    return packed.tobytes()


def _as_bytes(row: FloatArray) -> bytes:
    return row.astype("<f4", copy=False).tobytes()


@lru_cache
def _dense_head(size: int) -> bytes:
    """Return the bytes before the numbers in protobuf's bytes of a DenseVector."""
    packed: bytes = grpc.DenseVector(data=[0.0] * size).SerializeToString()
    return packed[: -_NUMBER_BYTES * size]


@lru_cache
def _row_head(size: int) -> bytes:
    """Return the bytes before the numbers of each row in protobuf's bytes of a MultiDenseVector."""
    row = grpc.DenseVector(data=[0.0] * size)
    packed: bytes = grpc.MultiDenseVector(vectors=[row]).SerializeToString()
    return packed[: -_NUMBER_BYTES * size]
