"""The events of `M3Rerank`: complete, and balanced on results, on nothing and on errors."""

from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import QueryBundle, TextNode

from m3_integrations import M3Encoder
from m3_integrations.llama_index import M3Rerank
from tests.llama_index.conftest import CallbackRecorder, CountingEncoder, EventRecorder, with_scores


class Watched:
    """A reranker with a recorder on its callback manager."""

    def __init__(self, **settings: Any) -> None:
        self.callbacks = CallbackRecorder(CBEventType.RERANKING)
        self.reranker = M3Rerank(callback_manager=CallbackManager([self.callbacks]), **settings)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.callbacks.events]


async def test_events_say_what_was_reranked_and_what_came_out(
    fake: CountingEncoder, nodes: list[TextNode], instrumentation: EventRecorder
) -> None:
    watched, inputs, query = Watched(encoder=fake, top_n=2), with_scores(nodes), QueryBundle("keys")
    for is_async in (False, True):
        if is_async:
            found = await watched.reranker.apostprocess_nodes(inputs, query)
        else:
            found = watched.reranker.postprocess_nodes(inputs, query)
        assert watched.callbacks.starts.pop() == {
            EventPayload.NODES: inputs,
            EventPayload.MODEL_NAME: "fake",
            EventPayload.QUERY_STR: "keys",
            EventPayload.TOP_K: 2,
        }
        assert watched.callbacks.ends.pop() == {EventPayload.NODES: found}
        start, end = (event for event in instrumentation.events if "ReRank" in event.class_name())
        assert (start.query, start.nodes, start.top_n, start.model_name) == (query, inputs, 2, "fake")  # type: ignore[attr-defined]
        assert end.nodes == found  # type: ignore[attr-defined]
        instrumentation.events.clear()
    assert watched.names == ["start", "end"] * 2
    assert len({event_id for _, event_id in watched.callbacks.events}) == 2


async def test_events_are_balanced_on_no_nodes(fake: CountingEncoder, instrumentation: EventRecorder) -> None:
    watched = Watched(encoder=fake)
    assert watched.reranker.postprocess_nodes([], query_str="keys") == []
    assert await watched.reranker.apostprocess_nodes([], query_str="keys") == []
    assert watched.names == ["start", "end"] * 2
    assert instrumentation.names("ReRank") == ["ReRankStartEvent", "ReRankEndEvent"] * 2
    assert fake.calls == []


async def test_a_missing_query_is_an_error_before_any_event(
    fake: CountingEncoder, nodes: list[TextNode], instrumentation: EventRecorder
) -> None:
    watched = Watched(encoder=fake)
    with pytest.raises(ValueError, match="reranking needs a query"):
        watched.reranker.postprocess_nodes(with_scores(nodes))
    with pytest.raises(ValueError, match="reranking needs a query"):
        await watched.reranker.apostprocess_nodes(with_scores(nodes))
    assert watched.names == instrumentation.names("ReRank") == []


async def test_events_are_balanced_on_errors(
    encoder: M3Encoder, sentences: list[TextNode], instrumentation: EventRecorder
) -> None:
    watched, root, spans = Watched(encoder=encoder), get_dispatcher(), SimpleSpanHandler()
    encoder.close()
    root.add_span_handler(spans)
    try:
        with pytest.raises(RuntimeError, match="was closed") as raised:
            watched.reranker.postprocess_nodes(with_scores(sentences), query_str="keys")
        assert watched.callbacks.ends == [{EventPayload.EXCEPTION: raised.value}]
        with pytest.raises(RuntimeError, match="was closed"):
            await watched.reranker.apostprocess_nodes(with_scores(sentences), query_str="keys")
    finally:
        root.span_handlers.remove(spans)
    assert watched.names == ["start", "end"] * 2
    assert instrumentation.names("ReRank") == ["ReRankStartEvent", "ReRankEndEvent"] * 2
    assert spans.open_spans == {}
