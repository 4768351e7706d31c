"""Points to and from a server by gRPC, against what qdrant-client makes of the same records."""

from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, grpc, models
from qdrant_client.conversions.conversion import RestToGrpc

from m3_integrations import M3Vectors, Record, Store, open_store
from m3_integrations.store.packed import PackedPoints, pack_points
from m3_integrations.store.point_ids import hashed_point_id
from m3_integrations.store.points import as_payload, name_vectors
from m3_integrations.store.server import ServerStore
from m3_integrations.vectors import MODES, LexicalRows, Mode, MultiVectorRows, offsets_of
from tests.fakes import TOKEN_DIM
from tests.store.grpc_server import GrpcServer, grpc_server
from tests.store.oracle import add, records, vectors

pytestmark = pytest.mark.enable_socket


@pytest.fixture
def server() -> Iterator[tuple[GrpcServer, int]]:
    with grpc_server() as (served, port):
        yield served, port


def open_served(port: int, **settings: Any) -> Store:
    return open_store("http://127.0.0.1:1", grpc_port=port, **settings)


def ragged(random: np.random.Generator, dim: int, n_tokens: list[int], n_weights: list[int]) -> M3Vectors:
    """Vectors in all modes, some without values."""
    indices = [np.sort(random.choice(250_000, n, replace=False)) for n in n_weights]
    return M3Vectors(
        dense=random.standard_normal((len(n_tokens), 2 * dim), np.float32)[:, ::2],  # not in one piece
        lexical=LexicalRows(
            offsets_of(n_weights), np.concatenate(indices).astype(np.int32), random.random(sum(n_weights), np.float32)
        ),
        multi_vector=MultiVectorRows(offsets_of(n_tokens), random.standard_normal((sum(n_tokens), dim), np.float32)),
    )


@pytest.mark.parametrize("modes", [MODES, ("dense",), ("lexical",), ("dense", "lexical"), ("lexical", "multi_vector")])
@pytest.mark.parametrize("dim", [1, 31, 32, 256, 4096])
def test_packed_points_are_those_of_the_client(modes: tuple[Mode, ...], dim: int, random: np.random.Generator) -> None:
    of_all = ragged(random, dim, [3, 0, 1, 7], [2, 5, 0, 130]).select(modes)
    metadata: list[dict[str, Any]] = [
        {"size": 3, "big": 2**60, "part": 0.1, "is_new": True, "none": None, "tags": ["a", 1, [], {}]},
        {},
        {"deep": {"er": {"est": ["x"]}}, "text": "\x00 é 漢 \U0001f600"},
        {"day": "2024-05-01"},
    ]
    payloads = [as_payload(f"r{i}", f"text {i}", each, is_pooled=i == 3) for i, each in enumerate(metadata)]
    rows = [2, 0, 3, 1]
    chosen = [payloads[row] for row in rows]
    plain = [
        RestToGrpc.convert_point_struct(
            models.PointStruct(id=hashed_point_id(payload["id"]), vector=named, payload=payload)  # type: ignore[arg-type]
        )
        for payload, named in zip(chosen, name_vectors(of_all, modes, rows, models.SparseVector), strict=True)
    ]
    packed = pack_points(chosen, of_all, rows, hashed_point_id)
    assert packed == grpc.UpsertPoints(points=plain)
    read = grpc.UpsertPoints.FromString(packed.SerializeToString())
    assert read.SerializeToString(deterministic=True) == grpc.UpsertPoints(points=plain).SerializeToString(
        deterministic=True
    )


def test_a_server_gets_one_message_for_a_batch(server: tuple[GrpcServer, int], random: np.random.Generator) -> None:
    served, port = server
    with open_served(port, collection="c", token_pooling=2) as store:
        add(store, records(random, [f"r{i}" for i in range(120)]))
    assert [len(message.points) for message in served.upserted] == [50, 50, 20]
    assert {(message.collection_name, message.wait) for message in served.upserted} == {("c", True)}
    assert served.local.count("c").count == 120


@pytest.mark.parametrize("pooling", [1, 3])
def test_what_a_server_returns_is_what_was_stored(
    pooling: int, server: tuple[GrpcServer, int], random: np.random.Generator
) -> None:
    served, port = server
    added = records(random, ["a", "b", "c"])
    empty = M3Vectors(
        dense=vectors(random, 1).dense,
        lexical=LexicalRows(offsets_of([0]), np.empty(0, np.int32), np.empty(0, np.float32)),
        multi_vector=MultiVectorRows(offsets_of([0]), np.empty((0, TOKEN_DIM), np.float32)),
    )
    added.append(Record("empty", "", {}, empty))
    with (
        open_served(port, token_pooling=pooling) as store,
        ServerStore("local", client=QdrantClient(":memory:"), token_pooling=pooling) as plain,
    ):
        for each in (store, plain):
            add(each, added)
        got, wanted = (each.get(["c", "a", "empty"], with_vectors=True) for each in (store, plain))
        assert [(r.id, r.text, r.metadata) for r in got] == [(r.id, r.text, r.metadata) for r in wanted]
        assert [r.is_pooled for r in got] == [r.is_pooled for r in wanted] == [pooling > 1, pooling > 1, False]
        for one, other in zip(got, wanted, strict=True):
            assert one.vectors is not None
            assert other.vectors is not None
            np.testing.assert_array_equal(one.vectors.dense, other.vectors.dense)
            np.testing.assert_array_equal(one.vectors.lexical.indices, other.vectors.lexical.indices)
            np.testing.assert_array_equal(one.vectors.lexical.values, other.vectors.lexical.values)
            np.testing.assert_array_equal(one.vectors.multi_vector.flat, other.vectors.multi_vector.flat)
            assert one.vectors.multi_vector.flat.dtype == np.float32
            one.vectors.multi_vector.flat[:] = 0  # a copy, for the caller to change
    assert "Get" in served.calls


def test_vectors_are_read_in_the_forms_of_earlier_and_later_servers(
    server: tuple[GrpcServer, int], random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, port = server
    (record,) = records(random, ["a"])
    assert record.vectors is not None
    tokens, weights = record.vectors.multi_vector[0], record.vectors.lexical[0]
    earlier = grpc.VectorsOutput()
    named = earlier.vectors.vectors
    named["dense"].data.extend(record.vectors.dense[0].tolist())
    named["lexical"].data.extend(weights.values.tolist())
    named["lexical"].indices.data.extend(weights.indices.tolist())
    named["multi_vector"].data.extend(tokens.ravel().tolist())
    named["multi_vector"].vectors_count = len(tokens)
    later = grpc.VectorsOutput()
    named = later.vectors.vectors
    unknown = b"\x7d\x00\x00\x80\x3f"  # field 15, four bytes
    named["dense"].dense.MergeFromString(grpc.DenseVector(data=record.vectors.dense[0]).SerializeToString() + unknown)
    named["lexical"].sparse.MergeFrom(grpc.SparseVector(indices=weights.indices, values=weights.values))
    for row in tokens:
        named["multi_vector"].multi_dense.vectors.add().MergeFromString(
            grpc.DenseVector(data=row).SerializeToString() + unknown
        )
    with open_served(port) as store:
        add(store, [record])
        for form in (earlier, later):
            point = RestToGrpc.convert_record(served.local.retrieve("m3", [hashed_point_id("a")])[0])
            point.vectors.CopyFrom(form)
            monkeypatch.setattr(served, "Get", lambda *_, point=point: grpc.GetResponse(result=[point]))
            (found,) = store.get(["a"], with_vectors=True)
            assert found.vectors is not None
            np.testing.assert_array_equal(found.vectors.dense[0], record.vectors.dense[0])
            np.testing.assert_array_equal(found.vectors.multi_vector[0], tokens)
            assert found.vectors.lexical[0].to_dict() == weights.to_dict()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_the_key_goes_along_with_every_call(server: tuple[GrpcServer, int], random: np.random.Generator) -> None:
    served, port = server
    query = vectors(random, 1)
    with open_served(port, api_key="secret") as store:
        add(store, records(random, ["a"]))
        for use in (lambda: add(store, records(random, ["b"])), lambda: store.get(["a"])):
            served.metadata = {}
            use()
            assert served.metadata["api-key"] == "secret"
        served.metadata = {}
        store.candidates(query, {"dense": 1})
        assert served.metadata["api-key"] == "secret"


def test_a_server_that_takes_too_long_is_an_error(
    server: tuple[GrpcServer, int], random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, port = server
    with open_served(port, timeout_s=1) as store:
        add(store, records(random, ["a"]))
        monkeypatch.setattr(served, "Upsert", lambda _, context: wait_for_the_end(context))
        with pytest.raises(ConnectionError, match="Deadline Exceeded"):
            add(store, records(random, ["b"]))
        assert store.count() == 1


def wait_for_the_end(context: Any) -> None:
    ended = Event()
    context.add_callback(ended.set)
    ended.wait(30)


def test_clients_that_do_not_talk_by_grpc_are_used_as_they_are() -> None:
    rest = QdrantClient(url="http://127.0.0.1:1", check_compatibility=False)
    assert PackedPoints.of(rest) is None
    rest.close()
    assert PackedPoints.of(QdrantClient(":memory:")) is None
    assert PackedPoints.of(QdrantClient(":memory:", prefer_grpc=True)) is None
