"""Forty texts behind a fake encoder and six sentences behind a small random network, for each framework."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adapters.drivers import (
    SENTENCES,
    WORDS,
    LangChainReranker,
    LangChainRetriever,
    LlamaIndexReranker,
    LlamaIndexRetriever,
    Reranker,
    Retriever,
)
from tests.fakes import FakeEncoder
from tests.test_filters import random_metadata


@pytest.fixture(params=[LangChainRetriever, LlamaIndexRetriever], ids=["langchain", "llama_index"])
def make(request: pytest.FixtureRequest) -> type[Retriever]:
    """The class of a framework's retriever."""
    made: type[Retriever] = request.param
    return made


@pytest.fixture(params=[LangChainReranker, LlamaIndexReranker], ids=["langchain", "llama_index"])
def make_reranker(request: pytest.FixtureRequest) -> type[Reranker]:
    made: type[Reranker] = request.param
    return made


@pytest.fixture
def fake() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def texts() -> dict[str, tuple[str, dict[str, Any]]]:
    """Text and metadata by id."""
    random = np.random.default_rng(5)
    return {
        f"d{row:02}": (
            " ".join(WORDS[i] for i in random.integers(0, len(WORDS), 4)) + f" {row}",
            {**random_metadata(random), "row": row, "nested": {"list": [row]}},
        )
        for row in range(40)
    }


@pytest.fixture
def filled(make: type[Retriever], fake: FakeEncoder, texts: dict[str, tuple[str, dict[str, Any]]]) -> Retriever:
    retriever = make(encoder=fake, k=4)
    retriever.add((text for text, _ in texts.values()), ids=texts, metadatas=[own for _, own in texts.values()])
    fake.encoded.clear()
    return retriever


@pytest.fixture
def on_network(make: type[Retriever], small: Path) -> Retriever:
    """The sentences behind handles on the network that the process shares, ids s0 to s5."""
    retriever = make(model=str(small), k=4)
    ids = [f"s{row}" for row in range(len(SENTENCES))]
    retriever.add(SENTENCES, ids=ids, metadatas=[{"row": row} for row in range(len(SENTENCES))])
    return retriever
