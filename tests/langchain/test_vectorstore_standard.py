"""The standard suite of langchain-tests on vector stores in memory, in a folder and over qdrant-client's local mode."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from qdrant_client import QdrantClient

from m3_integrations import open_store
from m3_integrations.langchain import M3VectorStore
from m3_integrations.store.server import ServerStore


class TestInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, small: Path) -> VectorStore:
        return M3VectorStore(model=str(small))


class TestInAFolder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, small: Path, tmp_path: Path) -> Iterator[VectorStore]:
        with open_store(tmp_path / "store") as store:
            yield M3VectorStore(model=str(small), store=store)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local")
@pytest.mark.filterwarnings("ignore:Local mode performs exact")
class TestOverAServersClient(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, small: Path) -> Iterator[VectorStore]:
        with ServerStore("local", client=QdrantClient(":memory:")) as store:
            yield M3VectorStore(model=str(small), store=store)
