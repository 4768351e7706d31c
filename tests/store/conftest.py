"""The stores that are held to one behaviour."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from m3_integrations import Store
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.points import MultiVectorStorage
from m3_integrations.store.served import ServedStore
from m3_integrations.store.server import ServerStore
from tests.serve.conftest import serving_store
from tests.store.real import open_real, real_client

DURABLE = [
    "folder",
    "local",
    pytest.param("served folder", marks=pytest.mark.enable_socket),
    pytest.param("server", marks=[pytest.mark.server, pytest.mark.enable_socket]),
]
"""In a folder, over qdrant-client's local mode, in a folder behind `m3 serve`, and on a real server."""

STORES = ["memory", pytest.param("served memory", marks=pytest.mark.enable_socket), *DURABLE]
"""Those, and in memory, in this process or behind `m3 serve`."""

OpenStore = Callable[..., Store]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # qdrant-client's local mode says that it is exact and has no payload indexes: what a stand-in should be.
        item.add_marker(pytest.mark.filterwarnings("ignore:Local mode performs exact"))
        item.add_marker(pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local"))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def open_kind(tmp_path: Path) -> Iterator[OpenStore]:
    """A new store of a kind, with these settings; closed and gone after the test."""
    with ExitStack() as stack:

        def open_one(
            kind: str, *, multi_vector: MultiVectorStorage | None = None, token_pooling: int | None = None
        ) -> Store:
            settings = {"multi_vector": multi_vector, "token_pooling": token_pooling}
            if kind == "memory":
                return stack.enter_context(MemoryStore())
            if kind == "folder":
                return stack.enter_context(EdgeStore(tmp_path / uuid.uuid4().hex, **settings))  # type: ignore[arg-type]
            if kind.startswith("served"):
                behind = open_one(kind.removeprefix("served "), **settings)  # type: ignore[arg-type]
                return stack.enter_context(ServedStore(stack.enter_context(serving_store(behind))))
            if kind == "local":
                return stack.enter_context(ServerStore("local", client=QdrantClient(":memory:"), **settings))  # type: ignore[arg-type]
            name = f"test-{uuid.uuid4()}"
            client = real_client()
            stack.callback(client.close)
            stack.callback(client.delete_collection, name)
            return stack.enter_context(open_real(collection=name, **settings))

        yield open_one


def begun_in_version_2(folder: Path) -> EdgeStore:
    """An empty store in a folder of the second version of the format, whose points are those of the first."""
    EdgeStore(folder).close()
    file = folder / "m3-store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 2}))
    return EdgeStore(folder)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, open_kind: OpenStore) -> Store:
    """A new store of every kind."""
    return open_kind(request.param)


@pytest.fixture(params=DURABLE)
def durable(request: pytest.FixtureRequest, open_kind: OpenStore) -> Store:
    """A new store of every kind but the one in memory."""
    return open_kind(request.param)
