"""A collection of 40 documents behind a fake encoder, and one of six sentences behind a small random network."""

from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document

from m3_integrations.langchain import M3HybridRetriever
from tests.adapters.drivers import SENTENCES, WORDS
from tests.fakes import FakeEncoder
from tests.test_filters import random_metadata


@pytest.fixture
def documents() -> list[Document]:
    random = np.random.default_rng(5)
    return [
        Document(
            id=f"d{row:02}",
            page_content=" ".join(WORDS[i] for i in random.integers(0, len(WORDS), 4)) + f" {row}",
            metadata={**random_metadata(random), "row": row, "nested": {"list": [row]}},
        )
        for row in range(40)
    ]


@pytest.fixture
def fake() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def retriever(fake: FakeEncoder, documents: list[Document]) -> M3HybridRetriever:
    filled = M3HybridRetriever.from_documents(documents, encoder=fake)
    fake.encoded.clear()
    return filled


@pytest.fixture
def sentences(small: Path) -> M3HybridRetriever:
    """Handles on the network that the process shares, ids s0 to s5."""
    ids = [f"s{row}" for row in range(len(SENTENCES))]
    return M3HybridRetriever.from_texts(
        SENTENCES, [{"row": row} for row in range(len(SENTENCES))], ids=ids, model=str(small)
    )
