"""The retriever as LangChain handles it: configuration, callbacks, batches, pickling."""

from functools import partial
from typing import Any, Optional, get_type_hints
from uuid import UUID

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField
from langchain_core.runnables.config import RunnableConfig
from pydantic import ValidationError

from m3_integrations import M3Encoder, open_store
from m3_integrations.langchain import M3Document, M3HybridRetriever
from m3_integrations.search import OPTION_NAMES, SearchKeywords, SearchOptions
from tests.fakes import FakeEncoder


class Recorder(BaseCallbackHandler):
    """Keeps the events of retrievers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, UUID]] = []
        self.starts: list[dict[str, Any]] = []
        self.ends: list[Any] = []

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, **kwargs: Any) -> None:
        self.events.append(("start", run_id))
        self.starts.append({"query": query, **kwargs})

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.events.append(("end", run_id))
        self.ends.append(documents)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.events.append(("error", run_id))
        self.ends.append(error)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_the_fields_are_the_options_of_a_search(fake: FakeEncoder) -> None:
    """With the same names, types and defaults; each may be None in a call."""
    fields, keywords = get_type_hints(M3HybridRetriever), get_type_hints(SearchKeywords)
    assert [name for name in M3HybridRetriever.model_fields if name in OPTION_NAMES] == list(OPTION_NAMES)
    assert {name: Optional[fields[name]] for name in OPTION_NAMES} == keywords  # noqa: UP045
    assert M3HybridRetriever(encoder=fake)._searcher().options == SearchOptions()


def test_what_is_neither_field_nor_option_is_refused(fake: FakeEncoder, documents: list[Document]) -> None:
    makers: list[Any] = [
        M3HybridRetriever,
        partial(M3HybridRetriever.from_documents, documents),
        partial(M3HybridRetriever.from_texts, ["a"]),
    ]
    for make in makers:
        for settings, message in (({"top_k": 3}, "top_k"), ({"k": 0}, "k must be at least 1, got 0")):
            with pytest.raises(ValidationError, match=message):
                make(encoder=fake, **settings)
    assert fake.encoded == []


def test_options_of_a_call_can_be_bound(retriever: M3HybridRetriever) -> None:
    assert retriever.bind(k=7).invoke("keys") == retriever.invoke("keys", k=7)
    assert len(retriever.invoke("keys")) == 4


async def test_configurable_fields_keep_encoder_and_store(retriever: M3HybridRetriever) -> None:
    configurable = retriever.configurable_fields(
        k=ConfigurableField(id="k"), filter=ConfigurableField(id="filter"), mode=ConfigurableField(id="mode")
    )
    for settings in ({"k": 2}, {"k": 9, "filter": {"row": {"$lt": 6}}}, {"mode": "lexical"}):
        config: RunnableConfig = {"configurable": settings}
        expected = retriever.invoke("keys tea", **settings)
        assert configurable.invoke("keys tea", config) == expected
        assert await configurable.ainvoke("keys tea", config) == expected
    assert configurable.invoke("keys tea") == retriever.invoke("keys tea")


def test_configuring_another_model_is_refused_and_not_ignored(retriever: M3HybridRetriever) -> None:
    configurable = retriever.configurable_fields(model=ConfigurableField(id="model"))
    with pytest.raises(ValidationError, match="already has a model"):
        configurable.invoke("keys", {"configurable": {"model": "other"}})


def test_alternatives_can_be_chosen_at_run_time(retriever: M3HybridRetriever, fake: FakeEncoder) -> None:
    other = M3HybridRetriever.from_texts(["something else"], encoder=fake)
    chosen = retriever.configurable_alternatives(ConfigurableField(id="which"), other=other)
    (found,) = chosen.invoke("keys", {"configurable": {"which": "other"}})
    assert found.page_content == "something else"


def test_a_field_that_is_replaced_or_changed_in_place_counts_from_the_next_call(retriever: M3HybridRetriever) -> None:
    whole = [document.id for document in retriever.invoke("keys", k=40)]
    copied = retriever.model_copy(update={"k": 6, "filter": {"row": {"$in": [1, 2]}}})
    assert sorted(d.metadata["row"] for d in copied.invoke("keys")) == [1, 2]
    assert len(retriever.invoke("keys")) == 4
    assert isinstance(copied.filter, dict)
    copied.filter["row"]["$in"].append(3)
    assert sorted(d.metadata["row"] for d in copied.invoke("keys")) == [1, 2, 3]
    copied.filter["row"] = True  # equals 1 in Python, and no row in the language of filters
    assert copied.invoke("keys") == []
    copied.filter, copied.mode = None, "dense"
    assert [list(d.m3_scores) for d in copied.invoke("keys") if isinstance(d, M3Document)] == [["dense"]] * 6
    retriever.k = 40
    assert [document.id for document in retriever.invoke("keys")] == whole
    retriever.k = 0
    with pytest.raises(ValueError, match="k must be at least 1"):
        retriever.invoke("keys")


def test_a_filter_by_a_large_or_exact_array_is_told_from_another(fake: FakeEncoder) -> None:
    """Numpy shortens the text of an array of more than 1,000 values, and rounds numbers in it."""
    retriever = M3HybridRetriever.from_texts(
        [f"t {i}" for i in range(1500)], [{"n": i, "x": i / 3} for i in range(1500)], encoder=fake, k=1500
    )
    allowed = np.arange(1100)
    for last in (1099, 1400):
        allowed[500] = last
        retriever.filter = {"n": {"$in": allowed}}
        assert {d.metadata["n"] for d in retriever.invoke("t")} == set(allowed.tolist())
    retriever.filter = {"x": {"$in": np.array([100 / 3 + 1e-9])}}
    assert retriever.invoke("t") == []
    retriever.filter = {"x": {"$in": np.array([100 / 3])}}
    assert [d.metadata["n"] for d in retriever.invoke("t")] == [100]


def test_a_copy_with_another_store_searches_that_store(retriever: M3HybridRetriever) -> None:
    retriever.invoke("keys")
    empty = retriever.model_copy(update={"store": open_store()})
    assert empty.invoke("keys") == []
    assert len(retriever.invoke("keys")) == 4
    retriever.store = open_store()
    assert retriever.invoke("keys") == []


def test_options_are_parsed_and_a_bm25_index_is_made_only_when_something_changed(
    retriever: M3HybridRetriever,
) -> None:
    made = retriever._searcher()
    assert retriever._searcher() is made
    retriever.k = 2
    other = retriever._searcher()
    assert (other.options.k, other._bm25) == (2, made._bm25)
    assert retriever.model_copy()._searcher() is other


def test_the_representation_shows_settings_and_the_store_and_not_the_encoder(retriever: M3HybridRetriever) -> None:
    settled = M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, k=3, filter={"a": 1}, tags=["t"])
    assert (
        repr(settled)
        == "M3HybridRetriever(tags=['t'], model='fake', k=3, filter={'a': 1}, store=MemoryStore(40 records))"
    )
    assert set(settled.model_dump()) == set(M3HybridRetriever.model_fields) - {"encoder", "store"}


def test_a_callback_sees_query_tags_metadata_and_tracing_parameters(
    fake: FakeEncoder, documents: list[Document], recorder: Recorder
) -> None:
    retriever = M3HybridRetriever.from_documents(documents, encoder=fake, tags=["own"], metadata={"team": "search"})
    config: RunnableConfig = {"callbacks": [recorder], "tags": ["call"], "metadata": {"user": 7}}
    found = retriever.invoke("keys", config, k=2)
    (start,) = recorder.starts
    assert start["query"] == "keys"
    assert start["name"] == "M3HybridRetriever"
    assert sorted(start["tags"]) == ["call", "own"]
    assert start["metadata"] == {
        "team": "search",
        "user": 7,
        "ls_retriever_name": "m3hybrid",
        "ls_vector_store_provider": "MemoryStore",
        "ls_embedding_provider": "m3_integrations",
        "ls_embedding_model": "fake",
    }
    assert recorder.ends == [found]


async def test_events_are_balanced_on_results_on_nothing_and_on_errors(
    retriever: M3HybridRetriever, fake: FakeEncoder, recorder: Recorder
) -> None:
    config: RunnableConfig = {"callbacks": [recorder]}
    empty = M3HybridRetriever(encoder=fake)
    assert retriever.invoke("", config) == await retriever.ainvoke("", config) != []
    assert empty.invoke("keys", config) == await empty.ainvoke("keys", config) == []
    assert recorder.names == ["start", "end"] * 4
    for asked in ({"kk": 1}, {"k": 0}):
        for is_async in (False, True):
            with pytest.raises((TypeError, ValueError)) as raised:
                _ = (
                    await retriever.ainvoke("q", config, **asked)
                    if is_async
                    else retriever.invoke("q", config, **asked)
                )
            assert recorder.ends[-1] is raised.value
    assert recorder.names[8:] == ["start", "error"] * 4
    assert all(first[1] == second[1] for first, second in zip(*[iter(recorder.events)] * 2, strict=True))


async def test_an_error_of_the_encoder_reaches_caller_and_callback(
    sentences: M3HybridRetriever, recorder: Recorder
) -> None:
    assert isinstance(sentences.encoder, M3Encoder)
    sentences.encoder.close()
    with pytest.raises(RuntimeError, match="was closed"):
        sentences.invoke("keys", {"callbacks": [recorder]})
    with pytest.raises(RuntimeError, match="was closed"):
        await sentences.ainvoke("keys", {"callbacks": [recorder]})
    assert recorder.names == ["start", "error"] * 2


async def test_a_batch_gives_what_single_queries_give(retriever: M3HybridRetriever, recorder: Recorder) -> None:
    queries = [f"keys {i}" for i in range(20)]
    configs: list[RunnableConfig] = [{"callbacks": [recorder], "metadata": {"row": i}} for i in range(20)]
    expected = [retriever.invoke(query, k=2) for query in queries]
    assert retriever.batch(queries, configs, k=2) == expected
    assert await retriever.abatch(queries, configs, k=2) == expected
    assert sorted(start["metadata"]["row"] for start in recorder.starts) == sorted([*range(20)] * 2)
    assert sorted(recorder.names) == ["end"] * 40 + ["start"] * 40
    assert retriever.batch([]) == await retriever.abatch([]) == []


async def test_the_queries_of_a_batch_share_forward_passes(uncached: M3Encoder) -> None:
    """LangChain asks them one by one, from threads or tasks; the encoder's queue joins them, without a cache."""
    retriever = M3HybridRetriever.from_texts(["the vault keeps the keys", "green tea"], encoder=uncached)
    before = uncached.stats
    retriever.batch([f"sync {i}" for i in range(20)])
    assert uncached.stats.encoded_texts - before.encoded_texts == 20
    before = uncached.stats
    await retriever.abatch([f"async {i}" for i in range(20)])
    assert uncached.stats.encoded_texts - before.encoded_texts == 20
    assert uncached.stats.forward_passes - before.forward_passes <= 6


async def test_one_bad_query_of_a_batch_leaves_the_others_alone(sentences: M3HybridRetriever) -> None:
    queries: list[Any] = ["keys", None, "\ud800", "tea"]
    for results in (
        sentences.batch(queries, return_exceptions=True, k=1),
        await sentences.abatch(queries, return_exceptions=True, k=1),
    ):
        assert results[0] == sentences.invoke("keys", k=1)
        errors: list[Any] = results[1:3]
        assert [type(error) for error in errors] == [TypeError, ValueError]
        assert results[3] == sentences.invoke("tea", k=1)
    with pytest.raises(TypeError):
        sentences.batch(queries)
    with pytest.raises((TypeError, ValueError)):  # whichever of the two is refused first
        await sentences.abatch(queries)
