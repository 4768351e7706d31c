"""The vector store inside everything of LangChain that takes one: each answer is checked, and each text is one pass."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from langchain_classic.chains.hyde.base import HypotheticalDocumentEmbedder
from langchain_classic.chains.query_constructor.schema import AttributeInfo
from langchain_classic.retrievers import (
    MultiVectorRetriever,
    ParentDocumentRetriever,
    SelfQueryRetriever,
    TimeWeightedVectorStoreRetriever,
)
from langchain_classic.retrievers.multi_vector import SearchType
from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.documents import Document
from langchain_core.example_selectors import MaxMarginalRelevanceExampleSelector, SemanticSimilarityExampleSelector
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.outputs import Generation
from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.stores import InMemoryStore
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery
from langchain_core.vectorstores import VectorStoreRetriever
from langchain_text_splitters import RecursiveCharacterTextSplitter

from m3_integrations import M3Encoder
from m3_integrations.langchain import M3Document, M3Embeddings, M3Translator, M3VectorStore
from m3_integrations.store import matches, parse_filter


@pytest.fixture
def tiny() -> Iterator[M3Encoder]:
    """A network of its own, with nothing in its cache."""
    with M3Encoder("tiny", shared=False) as encoder:
        yield encoder


class Passes:
    """How many texts went through the network since it was last asked."""

    def __init__(self, encoder: M3Encoder) -> None:
        self._encoder = encoder
        self.new()

    def new(self) -> int:
        before = getattr(self, "_seen", 0)
        self._seen = self._encoder.stats.encoded_texts
        return self._seen - before


@pytest.fixture
def passes(tiny: M3Encoder) -> Passes:
    return Passes(tiny)


FACTS = [
    Document("The signing keys of the vault are rotated every month.", metadata={"topic": "keys", "year": 2024}),
    Document("Lost keys of the vault are reported to the guard.", metadata={"topic": "keys", "year": 2019}),
    Document("The museum is closed on Mondays.", metadata={"topic": "museum", "year": 2024}),
    Document("Green tea is brewed below boiling.", metadata={"topic": "tea", "year": 2021}),
]


@pytest.fixture
def facts(tiny: M3Encoder, passes: Passes) -> M3VectorStore:
    vectors = M3VectorStore.from_documents(FACTS, encoder=tiny)
    passes.new()
    return vectors


# Self-querying


def years_from(year: int, topic: str) -> Operation:
    of_topic = Comparison(Comparator.EQ, "topic", topic)
    return Operation(Operator.AND, [of_topic, Comparison(Comparator.GTE, "year", year)])


async def test_a_self_query_is_a_search_with_a_filter(facts: M3VectorStore, passes: Passes) -> None:
    """The model's answer is parsed by hand, as LangChain's own parser needs a package more."""
    model = FakeListChatModel(responses=['{"query": "when are they rotated", "year": 2020, "topic": "keys"}'])

    def parse(answer: Any) -> StructuredQuery:
        found = json.loads(answer.content)
        return StructuredQuery(found["query"], years_from(found["year"], found["topic"]), limit=3)

    retriever = SelfQueryRetriever(
        llm_chain=RunnableLambda(lambda asked: asked["query"]) | model | RunnableLambda(parse),
        vectorstore=facts,
        structured_query_translator=M3Translator(),
    )
    expected = [FACTS[0].page_content]
    assert [d.page_content for d in retriever.invoke("since 2020, when are keys rotated?")] == expected
    assert [d.page_content for d in await retriever.ainvoke("since 2020, when are keys rotated?")] == expected
    assert passes.new() == 1


async def test_a_self_query_in_langchains_query_language(facts: M3VectorStore) -> None:
    pytest.importorskip("lark", reason="LangChain parses its query language with lark: it is in the extra dev")
    answer = {"query": "when", "filter": 'and(eq("topic", "keys"), not(lt("year", 2020)))', "limit": None}
    retriever = SelfQueryRetriever.from_llm(
        FakeListChatModel(responses=[f"```json\n{json.dumps(answer)}\n```"]),
        facts,
        "facts",
        [
            AttributeInfo(name="topic", description="what it is about", type="string"),
            AttributeInfo(name="year", description="of which year it is", type="integer"),
        ],
        structured_query_translator=M3Translator(),
    )
    assert [d.page_content for d in await retriever.ainvoke("since 2020")] == [FACTS[0].page_content]


def kept(filter_: Any, *metadatas: dict[str, Any]) -> list[int]:
    """Which of these metadata match."""
    parsed = parse_filter(M3Translator().visit_structured_query(StructuredQuery("q", filter_))[1].get("filter"))
    return [row for row, metadata in enumerate(metadatas) if matches(parsed, metadata)]


def test_every_comparator_and_operator_means_what_it_says() -> None:
    numbers: list[dict[str, Any]] = [{"n": n} for n in (1, 2, 3)]
    for comparator, value, rows in (
        (Comparator.EQ, 2, [1]),
        (Comparator.NE, 2, [0, 2]),
        (Comparator.GT, 2, [2]),
        (Comparator.GTE, 2, [1, 2]),
        (Comparator.LT, 2, [0]),
        (Comparator.LTE, 2, [0, 1]),
        (Comparator.IN, [1, 3], [0, 2]),
        (Comparator.NIN, [1, 3], [1]),
    ):
        assert kept(Comparison(comparator, "n", value), *numbers) == rows
    lists: list[dict[str, Any]] = [{"tags": ["a", "b"]}, {"tags": ["ab"]}, {"tags": []}]
    assert kept(Comparison(Comparator.CONTAIN, "tags", "a"), *lists) == [0]
    one, three = Comparison(Comparator.EQ, "n", 1), Comparison(Comparator.EQ, "n", 3)
    assert kept(Operation(Operator.OR, [one, three]), *numbers) == [0, 2]
    assert kept(Operation(Operator.AND, [one, three]), *numbers) == []
    assert kept(Operation(Operator.NOT, [Operation(Operator.OR, [one, three])]), *numbers) == [1]
    days: list[dict[str, Any]] = [{"day": day} for day in ("2024-04-30", datetime(2024, 5, 1, 12), "2024-05-02")]
    in_may = Comparison(Comparator.GTE, "day", {"date": "2024-05-01", "type": "date"})
    assert kept(in_may, *days) == [1, 2]
    after_noon = Comparison(Comparator.GT, "day", {"datetime": "2024-05-01T12:00:00", "type": "datetime"})
    assert kept(after_noon, *days) == [2]
    may_1 = {"date": "2024-05-01", "type": "date"}
    assert kept(Comparison(Comparator.IN, "day", [may_1, {"date": "2024-04-30", "type": "date"}]), *days) == [0]
    assert kept(Comparison(Comparator.NIN, "day", [{"date": "2024-05-02", "type": "date"}]), *days) == [0, 1]
    assert kept(None, *days) == [0, 1, 2]


def test_a_value_for_a_list_and_a_list_for_a_value_mean_what_models_mean() -> None:
    numbers: list[dict[str, Any]] = [{"n": n} for n in (1, 2, 3)]
    assert kept(Comparison(Comparator.IN, "n", 2), *numbers) == [1]
    assert kept(Comparison(Comparator.NIN, "n", 2), *numbers) == [0, 2]
    lists: list[dict[str, Any]] = [{"tags": ["a", "b"]}, {"tags": ["b"]}, {"tags": []}]
    assert kept(Comparison(Comparator.CONTAIN, "tags", ["b"]), *lists) == [0, 1]
    assert kept(Comparison(Comparator.CONTAIN, "tags", ["a", "b"]), *lists) == [0]
    with pytest.raises(ValueError, match="'contain' on 'tags' needs a value"):
        kept(Comparison(Comparator.CONTAIN, "tags", []), *lists)
    with pytest.raises(ValueError, match="tags"):  # no operator of ours
        kept(Comparison(Comparator.CONTAIN, "tags", {"$ne": "a"}), *lists)


def test_what_no_filter_can_honour_is_refused() -> None:
    translator = M3Translator()
    with pytest.raises(ValueError, match="disallowed comparator like"):
        translator.visit_comparison(Comparison(Comparator.LIKE, "n", "a%"))
    one = Comparison(Comparator.EQ, "n", 1)
    with pytest.raises(ValueError, match="'not' takes one condition, got 2"):
        translator.visit_operation(Operation(Operator.NOT, [one, one]))


# Small pieces found, large ones returned

PARENTS = [
    Document(
        "The vault keeps the keys. It has one door. Rotate the signing keys every month.", metadata={"source": "vault"}
    ),
    Document("The museum opens on Tuesdays. Its cloakroom is free.", metadata={"source": "museum"}),
]
SPLITTER = RecursiveCharacterTextSplitter(chunk_size=40, chunk_overlap=0, separators=[". "], keep_separator="end")


async def test_a_parent_document_is_found_by_its_child_and_added_again_once(tiny: M3Encoder, passes: Passes) -> None:
    children = SPLITTER.split_documents(PARENTS)
    vectors = M3VectorStore(encoder=tiny)
    retriever = ParentDocumentRetriever(
        vectorstore=vectors, docstore=InMemoryStore(), child_splitter=SPLITTER, search_kwargs={"k": 1}
    )
    for run in range(3):
        # The arguments that LangChain hands on reach the store.
        await retriever.aadd_documents(PARENTS, ids=["vault", "museum"], source_key="source")
        assert vectors.store.count() == len(children)
        assert passes.new() == (0 if run else len(children))
    for question, parent in (("How often are keys rotated?", PARENTS[0]), ("Is the cloakroom free?", PARENTS[1])):
        assert retriever.invoke(question) == await retriever.ainvoke(question) == [parent]
    assert passes.new() == 2


@pytest.mark.parametrize(
    ("search_type", "search_kwargs"),
    [
        (SearchType.similarity, {"k": 1}),
        (SearchType.mmr, {"k": 1, "fetch_k": 3}),
        (SearchType.similarity_score_threshold, {"score_threshold": 0.75, "mode": "multi_vector"}),
    ],
)
async def test_a_document_is_found_by_any_of_its_summaries(
    tiny: M3Encoder, passes: Passes, search_type: SearchType, search_kwargs: dict[str, Any]
) -> None:
    vectors = M3VectorStore(encoder=tiny)
    docstore: InMemoryStore = InMemoryStore()
    docstore.mset([("vault", PARENTS[0]), ("museum", PARENTS[1])])
    summaries = {"vault": ["How keys are kept", "A door"], "museum": ["When the museum opens", "Where coats go"]}
    vectors.add_documents(
        [Document(text, metadata={"doc_id": id_}) for id_, texts in summaries.items() for text in texts]
    )
    assert passes.new() == 4
    retriever = MultiVectorRetriever(
        vectorstore=vectors, docstore=docstore, search_type=search_type, search_kwargs=search_kwargs
    )
    for question, parent in (("How are keys kept?", PARENTS[0]), ("Where do coats go?", PARENTS[1])):
        assert retriever.invoke(question) == await retriever.ainvoke(question) == [parent]
    assert passes.new() == 2


# Time


async def test_a_time_weighted_retriever_weighs_relevance_against_age(tiny: M3Encoder, passes: Passes) -> None:
    now = datetime.now()
    hours = {0: 90, 1: 90, 2: 0, 3: 0}
    memories = [
        Document(fact.page_content, metadata={"last_accessed_at": now - timedelta(hours=hours[row]), "row": row})
        for row, fact in enumerate(FACTS)
    ]

    def rows(decay_rate: float) -> tuple[list[int], TimeWeightedVectorStoreRetriever]:
        vectors = M3VectorStore(encoder=tiny)
        retriever = TimeWeightedVectorStoreRetriever(vectorstore=vectors, decay_rate=decay_rate, k=2)
        retriever.add_documents(memories, current_time=now)
        return [document.metadata["row"] for document in retriever.invoke("how often are keys rotated?")], retriever

    found, retriever = rows(decay_rate=1e-6)
    relevant = M3VectorStore.from_documents(FACTS, encoder=tiny).similarity_search("how often are keys rotated?", 2)
    assert found == [FACTS.index(Document(d.page_content, metadata=d.metadata)) for d in relevant]
    assert found[0] == 0
    assert sorted(rows(decay_rate=0.9)[0]) == [2, 3]
    assert passes.new() == len(FACTS) + 1  # the rest came from the cache
    assert [d.metadata["row"] for d in await retriever.ainvoke("how often are keys rotated?")] == found
    (stored,) = retriever.vectorstore.similarity_search("keys", 1, filter={"row": 0})
    assert stored.metadata["last_accessed_at"] == now - timedelta(hours=90)


# Caches and examples


class SemanticCache(BaseCache):
    """Answers to prompts that are nearly the same, as a user builds one on any vector store."""

    def __init__(self, vectors: M3VectorStore) -> None:
        self._vectors = vectors

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        found = self._vectors.similarity_search_with_relevance_scores(
            prompt, k=1, score_threshold=0.9, mode="dense", filter={"llm": llm_string}
        )
        return [Generation(text=text) for document, _ in found for text in document.metadata["answers"]] or None

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        metadata = {"llm": llm_string, "answers": [generation.text for generation in return_val]}
        self._vectors.add_texts([prompt], [metadata])

    def clear(self, **kwargs: Any) -> None:
        self._vectors.delete(**kwargs)


async def test_a_semantic_cache_answers_what_was_asked_in_nearly_the_same_words(
    tiny: M3Encoder, passes: Passes
) -> None:
    vectors = M3VectorStore(encoder=tiny)
    cache = SemanticCache(vectors)
    model = FakeListLLM(responses=["every month", "on Mondays", "every year"], cache=cache)
    assert model.invoke("How often are the keys rotated?") == "every month"
    assert model.invoke("how often are the keys rotated") == "every month"
    assert await model.ainvoke("When is the museum closed?") == "on Mondays"
    assert await model.ainvoke("When is the museum closed?!") == "on Mondays"
    assert vectors.store.count() == 2
    assert passes.new() == 4  # what is stored was encoded when it was looked up
    cache.clear()
    assert model.invoke("How often are the keys rotated?") == "every year"


EXAMPLES = [
    {"question": "How often are the keys rotated?", "answer": "Every month."},
    {"question": "How often are the keys rotated, then?", "answer": "Monthly."},
    {"question": "When is the museum closed?", "answer": "On Mondays."},
]


async def test_example_selectors_choose_by_likeness_and_by_difference(tiny: M3Encoder, passes: Passes) -> None:
    embeddings = M3Embeddings(encoder=tiny)
    asked = {"question": "How often are keys rotated, and is the museum closed?"}
    settings: dict[str, Any] = {"k": 2, "input_keys": ["question"], "mode": "dense"}
    alike = SemanticSimilarityExampleSelector.from_examples(EXAMPLES, embeddings, M3VectorStore, **settings)
    assert passes.new() == 3
    assert alike.select_examples(asked) == await alike.aselect_examples(asked) == EXAMPLES[:2]
    unlike = await MaxMarginalRelevanceExampleSelector.afrom_examples(EXAMPLES, embeddings, M3VectorStore, **settings)
    assert unlike.select_examples(asked) == await unlike.aselect_examples(asked) == [EXAMPLES[0], EXAMPLES[2]]
    assert passes.new() == 1  # the examples' vectors were in the cache, and the question's after the first time
    await alike.aadd_example({"question": "What is green?", "answer": "Tea."})
    prompt = FewShotPromptTemplate(
        example_selector=alike,
        example_prompt=PromptTemplate.from_template("{question} {answer}"),
        suffix="{question}",
        input_variables=["question"],
    )
    assert prompt.format(question="What is green, what?").startswith("What is green? Tea.")


# Hypothetical documents


async def test_a_hypothetical_document_finds_what_is_like_it(facts: M3VectorStore, passes: Passes) -> None:
    invented = "The keys of the vault are rotated every week."
    hyde = HypotheticalDocumentEmbedder.from_llm(
        FakeListLLM(responses=[invented]), facts.embeddings, prompt_key="web_search"
    )
    vector = hyde.embed_query("what happens there each month?")
    found = facts.similarity_search_by_vector(vector, 2)
    assert passes.new() == 1
    assert found == await facts.asimilarity_search_by_vector(vector, 2)
    assert found == facts.similarity_search(invented, 2, mode="dense")
    assert found[0].page_content == FACTS[0].page_content
    assert scores(found) == sorted(scores(found), reverse=True)
    with pytest.raises(TypeError, match="must be M3Embeddings, got HypotheticalDocumentEmbedder"):
        M3VectorStore(hyde)


def scores(documents: Sequence[Document]) -> list[float]:
    return [document.score for document in documents if isinstance(document, M3Document)]


def test_where_langchain_demands_its_own_retriever_it_can_be_made(facts: M3VectorStore) -> None:
    retriever = VectorStoreRetriever(vectorstore=facts, search_kwargs={"k": 1})
    retriever.add_documents([Document("Rain is expected in Bergen.")])
    (found,) = retriever.invoke("is rain expected?")
    assert found.page_content == "Rain is expected in Bergen."
