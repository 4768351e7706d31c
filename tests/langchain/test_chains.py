"""The classes inside LangChain's own chains and retrievers, with offline chat models."""

from typing import Any

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever, MultiQueryRetriever
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, FakeListChatModel, ParrotFakeChatModel
from langchain_core.load import dumps
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.stores import InMemoryByteStore
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore

from m3_integrations import M3Encoder
from m3_integrations.langchain import M3Embeddings, M3HybridRetriever, M3Rerank
from tests.adapters.drivers import SENTENCES
from tests.langchain.test_retriever_contract import Recorder

PROMPT = ChatPromptTemplate.from_template("Answer from this:\n{context}\nQuestion: {input}")
QUESTION = "which keys are rotated?"


def joined(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


def filled_prompt(retriever: M3HybridRetriever, separator: str) -> str:
    """What a model that repeats its prompt has to answer."""
    context = separator.join(document.page_content for document in retriever.invoke(QUESTION))
    return f"Answer from this:\n{context}\nQuestion: {QUESTION}"


def lcel_chain(retriever: BaseRetriever, model: BaseChatModel) -> Runnable[Any, str]:
    return {"context": retriever | joined, "input": RunnablePassthrough()} | PROMPT | model | StrOutputParser()


async def test_an_lcel_chain_puts_what_was_retrieved_into_the_prompt(sentences: M3HybridRetriever) -> None:
    chain = lcel_chain(sentences, ParrotFakeChatModel())
    expected = filled_prompt(sentences, "\n")
    assert chain.invoke(QUESTION) == await chain.ainvoke(QUESTION) == expected
    assert chain.batch([QUESTION, QUESTION]) == await chain.abatch([QUESTION, QUESTION]) == [expected] * 2


async def test_an_lcel_chain_streams_the_answer(sentences: M3HybridRetriever, recorder: Recorder) -> None:
    chain = lcel_chain(sentences, FakeListChatModel(responses=["every month"])).with_config(callbacks=[recorder])
    chunks = list(chain.stream(QUESTION))
    assert "".join(chunks) == "every month"
    assert len(chunks) > 1
    assert "".join([chunk async for chunk in chain.astream(QUESTION)]) == "every month"
    assert recorder.names == ["start", "end"] * 2


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def test_events_of_a_chain_name_the_retriever_and_its_documents(sentences: M3HybridRetriever) -> None:
    chain = lcel_chain(sentences, FakeListChatModel(responses=["x"]))
    events = [event async for event in chain.astream_events(QUESTION, version="v2")]
    (end,) = [event for event in events if event["event"] == "on_retriever_end"]
    assert end["data"]["output"] == sentences.invoke(QUESTION)


async def test_the_classic_retrieval_chain_answers_sync_async_and_streaming(sentences: M3HybridRetriever) -> None:
    chain = create_retrieval_chain(sentences, create_stuff_documents_chain(ParrotFakeChatModel(), PROMPT))
    expected = {
        "input": QUESTION,
        "context": sentences.invoke(QUESTION),
        "answer": filled_prompt(sentences, "\n\n"),
    }
    assert chain.invoke({"input": QUESTION}) == await chain.ainvoke({"input": QUESTION}) == expected
    merged: dict[str, Any] = {}
    for chunk in [*chain.stream({"input": QUESTION})]:
        merged.update({key: merged[key] + value if key in merged else value for key, value in chunk.items()})
    assert merged == expected


async def test_a_compression_retriever_reranks_with_all_modes(sentences: M3HybridRetriever) -> None:
    encoder = sentences.encoder
    assert isinstance(encoder, M3Encoder)
    dense_only = sentences.model_copy(update={"mode": "dense", "k": 6})
    reranker = M3Rerank(encoder=encoder, store=sentences.store, top_n=2)
    retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=dense_only)
    combined = encoder.score(QUESTION, SENTENCES).combined
    expected = [f"s{row}" for row in sorted(range(6), key=lambda row: -combined[row])[:2]]
    before = encoder.stats.forward_passes
    found = retriever.invoke(QUESTION)
    assert [d.id for d in found] == [d.id for d in await retriever.ainvoke(QUESTION)] == expected
    assert [d.metadata["relevance_score"] for d in found] == pytest.approx(sorted(combined)[:-3:-1], abs=1e-5)
    assert len(retriever.invoke(QUESTION, filter={"row": 3})) == 1
    assert encoder.stats.forward_passes == before


async def test_an_ensemble_joins_this_retriever_with_another(sentences: M3HybridRetriever) -> None:
    vectors = InMemoryVectorStore(M3Embeddings(encoder=sentences.encoder))
    vectors.add_texts(["A text that only the other one knows."])
    ours = sentences.model_copy(update={"k": 2})
    ensemble = EnsembleRetriever(retrievers=[ours, vectors.as_retriever()], weights=[0.7, 0.3])
    texts = [d.page_content for d in ours.invoke(QUESTION)]
    found = ensemble.invoke(QUESTION)
    assert [d.page_content for d in found] == [*texts, "A text that only the other one knows."]
    assert [d.page_content for d in await ensemble.ainvoke(QUESTION)] == [d.page_content for d in found]


async def test_the_retriever_works_as_a_tool(sentences: M3HybridRetriever) -> None:
    tool = create_retriever_tool(sentences, "search", "Searches the sentences.", response_format="content_and_artifact")
    call = {"name": "search", "args": {"query": QUESTION}, "id": "1", "type": "tool_call"}
    for message in (tool.invoke(call), await tool.ainvoke(call)):
        assert message.artifact == sentences.invoke(QUESTION)


def test_embeddings_work_in_a_vector_store_and_behind_a_cache(encoder: M3Encoder) -> None:
    embeddings = M3Embeddings(encoder=encoder)
    cached = CacheBackedEmbeddings.from_bytes_store(
        embeddings, InMemoryByteStore(), namespace=embeddings.model, key_encoder="sha256"
    )
    dense = encoder.score(QUESTION, SENTENCES).dense
    for used in (embeddings, cached, cached):
        store = InMemoryVectorStore(used)
        store.add_texts(list(SENTENCES))
        found = store.similarity_search_with_score(QUESTION, k=6)
        assert [score for _, score in found] == pytest.approx(sorted(dense.tolist(), reverse=True), abs=1e-5)
        assert found[0][0].page_content == SENTENCES[int(dense.argmax())]


def test_recipes_that_compare_documents_see_one_document_as_one(encoder: M3Encoder) -> None:
    documents = [Document(id=str(i), page_content=f"{word} keys", metadata={"i": i}) for i, word in enumerate("abc")]
    retriever = M3HybridRetriever.from_documents(documents, encoder=encoder, k=3)
    model = FakeListChatModel(responses=["one question\nanother question\na third question"])
    found = MultiQueryRetriever.from_llm(retriever, model).invoke("keys")
    assert sorted(str(document.id) for document in found) == sorted(str(document.id) for document in documents)

    fused: dict[str, float] = {}  # as RAG fusion has it
    for query in ("one", "another", "a third"):
        for rank, document in enumerate(retriever.invoke(query)):
            fused[dumps(document)] = fused.get(dumps(document), 0.0) + 1 / (rank + 60)
    assert len(fused) == 3

    both: list[Runnable[str, list[Document]]] = [retriever, retriever.model_copy(update={"mode": "dense"})]
    ensemble = EnsembleRetriever(retrievers=both, weights=[0.5, 0.5])
    assert len(ensemble.invoke("keys")) == 3
