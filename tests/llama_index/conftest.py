"""Nodes behind a fake encoder, six sentences behind a small random network, and recorders of LlamaIndex's events."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.schema import BaseNode, NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

from m3_integrations import M3Vectors
from m3_integrations.llama_index import M3HybridRetriever
from m3_integrations.vectors import Kind, Mode
from tests.adapters.drivers import SENTENCES, WORDS
from tests.fakes import FakeEncoder


class CountingEncoder(FakeEncoder):
    """Counts texts per call too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Kind, int, Sequence[Mode] | None]] = []

    def encode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        self.calls.append((kind, len(texts), modes))
        return super().encode(texts, kind=kind, modes=modes)


class CallbackRecorder(BaseCallbackHandler):
    """Keeps the events of one type that a callback manager reports."""

    def __init__(self, wanted: CBEventType) -> None:
        super().__init__([], [])
        self.wanted = wanted
        self.events: list[tuple[str, str]] = []
        self.starts: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        if event_type == self.wanted:
            self.events.append(("start", event_id))
            self.starts.append(payload or {})
        return event_id

    def on_event_end(
        self, event_type: CBEventType, payload: dict[str, Any] | None = None, event_id: str = "", **kwargs: Any
    ) -> None:
        if event_type == self.wanted:
            self.events.append(("end", event_id))
            self.ends.append(payload or {})

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        pass


class EventRecorder(BaseEventHandler):
    """Keeps the events of the instrumentation."""

    events: list[BaseEvent] = []  # noqa: RUF012 - a field, which pydantic copies

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)

    def names(self, part: str) -> list[str]:
        return [event.class_name() for event in self.events if part in event.class_name()]


@pytest.fixture
def instrumentation() -> Iterator[EventRecorder]:
    recorder, root = EventRecorder(), get_dispatcher()
    before = list(root.event_handlers)
    root.add_event_handler(recorder)
    yield recorder
    root.event_handlers[:] = before


@pytest.fixture
def nodes() -> list[TextNode]:
    """Forty nodes of eight documents; some of their metadata is in no text for the embedding model."""
    random = np.random.default_rng(5)
    return [
        TextNode(
            id_=f"n{row:02}",
            text=" ".join(WORDS[i] for i in random.integers(0, len(WORDS), 4)),
            metadata={
                "row": row,
                "color": ["red", "blue", "green"][row % 3],
                "tags": [["new", "old", "x"][i] for i in range(row % 4)],
                "path": f"/docs/{row}",
            },
            excluded_embed_metadata_keys=["path", "tags"],
            excluded_llm_metadata_keys=["path"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{row % 8}")},
        )
        for row in range(40)
    ]


@pytest.fixture
def fake() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture
def retriever(fake: CountingEncoder, nodes: list[TextNode]) -> M3HybridRetriever:
    filled = M3HybridRetriever.from_nodes(nodes, encoder=fake, similarity_top_k=4)
    fake.encoded.clear()
    fake.calls.clear()
    return filled


@pytest.fixture
def sentences() -> list[TextNode]:
    return [TextNode(id_=f"s{row}", text=text, metadata={"row": row}) for row, text in enumerate(SENTENCES)]


@pytest.fixture
def on_network(small: Path, sentences: list[TextNode]) -> M3HybridRetriever:
    """The sentences behind handles on the network that the process shares."""
    return M3HybridRetriever.from_nodes(sentences, model=str(small))


def ids_of(found: Sequence[NodeWithScore]) -> list[str]:
    return [each.node.node_id for each in found]


def with_scores(nodes: Sequence[BaseNode]) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=row / 10) for row, node in enumerate(nodes)]
