"""The standard suite of langchain-tests on a vector store in memory and in a folder; its asynchronous half included."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from m3_integrations import open_store
from m3_integrations.langchain import M3VectorStore


class TestInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, small: Path) -> VectorStore:
        return M3VectorStore(model=str(small))


class TestInAFolder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, small: Path, tmp_path: Path) -> Iterator[VectorStore]:
        with open_store(tmp_path / "store") as store:
            yield M3VectorStore(model=str(small), store=store)
