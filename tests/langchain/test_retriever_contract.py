"""The retriever as LangChain handles it: configuration, callbacks, batches, pickling."""

import pickle
from pathlib import Path
from typing import Any, get_type_hints
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField
from langchain_core.runnables.config import RunnableConfig
from pydantic import ValidationError

from m3_integrations import M3Encoder, open_store
from m3_integrations.langchain import M3HybridRetriever
from m3_integrations.langchain.settings import RetrieverSettings
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


def found_ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


async def test_k_of_a_call_counts_sync_and_async(retriever: M3HybridRetriever) -> None:
    for k in (1, 3, 7):
        assert len(retriever.invoke("keys", k=k)) == len(await retriever.ainvoke("keys", k=k)) == k
        assert len(retriever.bind(k=k).invoke("keys")) == k
    assert len(retriever.invoke("keys")) == 4


@pytest.mark.parametrize("unknown", ["top_k", "filters", "verbose"])
async def test_unknown_arguments_of_a_call_are_refused(retriever: M3HybridRetriever, unknown: str) -> None:
    with pytest.raises(TypeError, match=unknown):
        retriever.invoke("keys", None, **{unknown: 1})
    with pytest.raises(TypeError, match=unknown):
        await retriever.ainvoke("keys", None, **{unknown: 1})


def test_unknown_and_impossible_arguments_of_the_constructor_are_refused(
    fake: FakeEncoder, documents: list[Document]
) -> None:
    for settings, message in (
        ({"top_k": 3}, "top_k"),
        ({"K": 3}, "K"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"pool_size": 0}, "pool_size must be at least 1"),
        ({"mode": "sparse"}, "mode"),
        ({"weights": "best"}, "unknown weights 'best'"),
        ({"filter": {"a": {"$near": 1}}}, r"unknown \$near"),
        ({"score_threshold": float("nan")}, "score_threshold must be finite"),
    ):
        with pytest.raises(ValidationError, match=message):
            M3HybridRetriever(encoder=fake, **settings)
        with pytest.raises(ValidationError, match=message):
            M3HybridRetriever.from_documents(documents, encoder=fake, **settings)
        with pytest.raises(ValidationError, match=message):
            M3HybridRetriever.from_texts(["a"], encoder=fake, **settings)
    with pytest.raises(TypeError, match=r"store must be a store, got './folder': open one with open_store"):
        M3HybridRetriever(encoder=fake, store="./folder")  # type: ignore[arg-type]
    assert fake.encoded == []


async def test_impossible_arguments_of_a_call_are_refused(retriever: M3HybridRetriever) -> None:
    for asked, message in (
        ({"k": 0}, "k must be at least 1"),
        ({"weights": "best"}, "unknown weights"),
        ({"mode": "sparse"}, "mode must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            retriever.invoke("keys", **asked)
        with pytest.raises(ValueError, match=message):
            await retriever.ainvoke("keys", **asked)
    with pytest.raises(TypeError, match="weights must be ModeWeights"):
        retriever.invoke("keys", weights=(1, -1, 1))


def test_no_store_is_a_new_one_in_memory(fake: FakeEncoder) -> None:
    one, two = M3HybridRetriever(encoder=fake), M3HybridRetriever.from_texts(["b"], encoder=fake, store=None)
    one.add_texts(["a"])
    assert [d.page_content for d in one.invoke("a")] == ["a"]
    assert [d.page_content for d in two.invoke("a")] == ["b"]


def test_a_store_that_is_still_empty_is_used(fake: FakeEncoder) -> None:
    store = open_store()
    M3HybridRetriever.from_texts(["a"], encoder=fake, store=store)
    assert store.count() == 1


def test_the_settings_type_names_every_field() -> None:
    assert set(get_type_hints(RetrieverSettings)) == set(M3HybridRetriever.model_fields)


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
    with pytest.raises(ValidationError, match="comes with a model"):
        configurable.invoke("keys", {"configurable": {"model": "other"}})


def test_alternatives_can_be_chosen_at_run_time(retriever: M3HybridRetriever, fake: FakeEncoder) -> None:
    other = M3HybridRetriever.from_texts(["something else"], encoder=fake)
    chosen = retriever.configurable_alternatives(ConfigurableField(id="which"), other=other)
    (found,) = chosen.invoke("keys", {"configurable": {"which": "other"}})
    assert found.page_content == "something else"


def test_a_copy_with_another_store_searches_that_store(retriever: M3HybridRetriever) -> None:
    retriever.invoke("keys")
    empty = retriever.model_copy(update={"store": open_store()})
    assert empty.invoke("keys") == []
    assert len(retriever.invoke("keys")) == 4
    retriever.store = open_store()
    assert retriever.invoke("keys") == []


def test_the_representation_shows_settings_and_neither_encoder_nor_store(retriever: M3HybridRetriever) -> None:
    settled = M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, k=3, filter={"a": 1}, tags=["t"])
    assert repr(settled) == "M3HybridRetriever(tags=['t'], model='fake', k=3, filter={'a': 1})"
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
    queries = [f"keys {i}" for i in range(40)]
    configs: list[RunnableConfig] = [{"callbacks": [recorder], "metadata": {"row": i}} for i in range(40)]
    expected = [retriever.invoke(query, k=2) for query in queries]
    assert retriever.batch(queries, configs, k=2) == expected
    assert await retriever.abatch(queries, configs, k=2) == expected
    assert sorted(start["metadata"]["row"] for start in recorder.starts) == sorted([*range(40)] * 2)
    assert sorted(recorder.names) == ["end"] * 80 + ["start"] * 80
    assert retriever.batch([]) == await retriever.abatch([]) == []


async def test_the_queries_of_a_batch_share_forward_passes(sentences: M3HybridRetriever) -> None:
    encoder = sentences.encoder
    assert isinstance(encoder, M3Encoder)
    before = encoder.stats
    sentences.batch([f"sync {i}" for i in range(40)])
    await sentences.abatch([f"async {i}" for i in range(40)])
    assert encoder.stats.encoded_texts - before.encoded_texts == 80
    assert encoder.stats.forward_passes - before.forward_passes == 6  # 16, 16 and 8 queries, twice


async def test_one_bad_query_of_a_batch_leaves_the_others_alone(sentences: M3HybridRetriever) -> None:
    queries: list[Any] = ["keys", None, "\ud800", "tea"]
    for results in (
        sentences.batch(queries, return_exceptions=True, k=1),
        await sentences.abatch(queries, return_exceptions=True, k=1),
    ):
        assert results[0] == sentences.invoke("keys", k=1)
        assert [type(result) for result in results[1:3]] == [TypeError, UnicodeEncodeError]
        assert results[3] == sentences.invoke("tea", k=1)
    with pytest.raises(TypeError):
        sentences.batch(queries)


def test_a_retriever_over_memory_refuses_to_be_pickled_and_names_the_way_out(retriever: M3HybridRetriever) -> None:
    with pytest.raises(TypeError, match="use a server store"):
        pickle.dumps(retriever)


def test_a_store_of_another_model_is_refused(small: Path, retriever: M3HybridRetriever) -> None:
    other = M3HybridRetriever(model=str(small), store=retriever.store)
    with pytest.raises(ValueError, match="vectors of the model fa4e"):
        other.invoke("keys")
