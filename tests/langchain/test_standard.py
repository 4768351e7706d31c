"""The standard suites of langchain-tests."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from m3_integrations.langchain import M3Embeddings, M3HybridRetriever
from tests.adapters.drivers import SENTENCES


class _Embeddings:
    @pytest.fixture(autouse=True)
    def _checkpoint(self, small: Path) -> None:
        self.folder = str(small)

    @property
    def embeddings_class(self) -> type[M3Embeddings]:
        return M3Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.folder, "model_kwargs": {"device": "cpu"}}


class TestM3EmbeddingsUnit(_Embeddings, EmbeddingsUnitTests):
    pass


class TestM3EmbeddingsIntegration(_Embeddings, EmbeddingsIntegrationTests):
    pass


class TestM3HybridRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _checkpoint(self, small: Path) -> None:
        self.folder = str(small)

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return M3HybridRetriever.from_texts  # type: ignore[return-value]  # it is only called

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"texts": SENTENCES, "model": self.folder}

    @property
    def retriever_query_example(self) -> str:
        return "which keys are rotated?"
