"""Options that are None, thresholds of two scales, subclasses, and documents with an empty id."""

import asyncio
from typing import Any

import pytest
from langchain_core.documents import Document
from pydantic import model_validator

from m3_integrations import M3Encoder
from m3_integrations.langchain import M3Excerpt, M3HybridRetriever, M3Rerank, M3VectorStore
from tests.fakes import FakeEncoder

TENANTS = [
    Document("one key", id="A", metadata={"tenant": "a"}),
    Document("two keys", id="B", metadata={"tenant": "b"}),
]


def ids_of(documents: list[Document]) -> set[str | None]:
    return {document.id for document in documents}


@pytest.mark.parametrize("search_type", ["similarity", "mmr"])
def test_an_option_that_is_none_leaves_the_stores_own_in_force(fake: FakeEncoder, search_type: str) -> None:
    vectors = M3VectorStore.from_documents(TENANTS, encoder=fake, filter={"tenant": "a"}, mode="dense")
    for settings in ({"search_kwargs": {"filter": None, "mode": None, "k": None}}, {"search_kwargs": None}):
        retriever = vectors.as_retriever(search_type=search_type, **settings)
        assert ids_of(retriever.invoke("key")) == ids_of(vectors.similarity_search("key", filter=None)) == {"A"}
    assert ids_of(vectors.as_retriever(filter=None).invoke("key")) == {"A"}
    assert ids_of(vectors.as_retriever(filter={}).invoke("key")) == {"A", "B"}


class OfOneTenant(M3VectorStore):
    def similarity_search(self, query: str, k: int | None = None, **options: Any) -> list[Document]:
        return super().similarity_search(query, k, **options | {"filter": {"tenant": "a"}})

    def get_by_ids(self, ids: Any, /) -> list[Document]:
        return [document for document in super().get_by_ids(ids) if document.metadata["tenant"] == "a"]


class OfOneTenantLater(M3VectorStore):
    async def asimilarity_search(self, query: str, k: int | None = None, **options: Any) -> list[Document]:
        return await super().asimilarity_search(query, k, **options | {"filter": {"tenant": "a"}})


async def test_a_subclasss_method_counts_for_its_coroutine_too(fake: FakeEncoder) -> None:
    vectors = OfOneTenant.from_documents(TENANTS, encoder=fake)
    retriever = vectors.as_retriever()
    assert ids_of(retriever.invoke("key")) == ids_of(await retriever.ainvoke("key")) == {"A"}
    assert ids_of(await vectors.asimilarity_search("key", 5)) == {"A"}
    assert ids_of(await vectors.aget_by_ids(["A", "B"])) == {"A"}
    assert len(await vectors.asimilarity_search_with_score("key")) == 2  # not replaced


async def test_a_subclasss_coroutine_is_what_its_retriever_calls(fake: FakeEncoder) -> None:
    vectors = OfOneTenantLater.from_documents(TENANTS, encoder=fake)
    assert ids_of(await vectors.as_retriever().ainvoke("key")) == {"A"}
    assert ids_of(vectors.as_retriever().invoke("key")) == {"A", "B"}  # its other method is not replaced


class Shorter(M3VectorStore):
    """Its method is made from its coroutine."""

    def similarity_search(self, query: str, k: int | None = None, **options: Any) -> list[Document]:
        return asyncio.run(self.asimilarity_search(query, k, **options))[:1]


class Longer(OfOneTenantLater):
    def similarity_search(self, query: str, k: int | None = None, **options: Any) -> list[Document]:
        return []


async def test_a_method_may_be_made_from_its_coroutine_and_another_coroutine_stays(fake: FakeEncoder) -> None:
    vectors = Shorter.from_documents(TENANTS, encoder=fake)
    assert len(await asyncio.to_thread(vectors.similarity_search, "key")) == 1
    assert len(await vectors.asimilarity_search("key")) == 1
    assert ids_of(await Longer.from_documents(TENANTS, encoder=fake).asimilarity_search("key")) == {"A"}


@pytest.mark.parametrize("kind", [OfOneTenant, OfOneTenantLater])
async def test_a_subclasss_retriever_takes_options_directly(fake: FakeEncoder, kind: type[M3VectorStore]) -> None:
    retriever = kind.from_documents(TENANTS, encoder=fake).as_retriever(k=1, score_threshold=-1, mode="dense")
    assert len(retriever.invoke("key")) == len(await retriever.ainvoke("key")) == 1


async def test_a_calls_threshold_of_relevance_replaces_the_stores_threshold_of_scores(fake: FakeEncoder) -> None:
    vectors = M3VectorStore.from_documents(TENANTS, encoder=fake, score_threshold=0.99)
    assert vectors.similarity_search_with_relevance_scores("key") == []
    assert len(vectors.similarity_search_with_relevance_scores("key", score_threshold=0)) == 2
    assert len(await vectors.asimilarity_search_with_relevance_scores("key", score_threshold=0)) == 2
    vector = fake.encode(["key"]).dense[0]
    assert vectors.max_marginal_relevance_search_by_vector(vector) == []
    assert len(vectors.max_marginal_relevance_search_by_vector(vector, score_threshold=-1)) == 2
    assert len(await vectors.amax_marginal_relevance_search_by_vector(vector, score_threshold=-1)) == 2


def test_documents_with_an_empty_id_each_get_their_own(fake: FakeEncoder) -> None:
    vectors = M3VectorStore(encoder=fake)
    ids = vectors.add_documents([Document("one", id=""), Document("two", id="")])
    assert all(ids)
    assert [document.page_content for document in vectors.get_by_ids(ids)] == ["one", "two"]


def test_a_loaded_model_is_changed_by_assigning_an_encoder_alone(encoder: M3Encoder) -> None:
    tiny = M3Encoder("tiny", device="cpu")
    retriever = M3HybridRetriever(encoder=encoder)
    for field, value in (("model", "small"), ("model_kwargs", {"max_length": 9})):
        with pytest.raises(ValueError, match=f"{field} cannot be changed.* assign encoder=M3Encoder"):
            setattr(retriever, field, value)
    with pytest.raises(AttributeError):
        retriever.encoder = "tiny"  # type: ignore[assignment]
    assert (retriever.encoder, retriever.model) == (encoder, encoder.model)
    retriever.encoder = tiny
    assert (retriever.model, retriever.model_kwargs["device"]) == ("tiny", "cpu")
    assert M3HybridRetriever(**retriever.model_dump()).encoder.model == "tiny"


def test_a_subclass_may_set_fields_while_it_is_made(encoder: M3Encoder) -> None:
    class WithLimit(M3HybridRetriever):
        limit: int = 1

        @model_validator(mode="after")
        def _raise(self) -> "WithLimit":
            self.limit += 1
            return self

    class OfTiny(M3HybridRetriever):
        def model_post_init(self, context: Any, /) -> None:
            self.model = self.model or "tiny"
            super().model_post_init(context)

    assert WithLimit(encoder=encoder).limit == 2
    assert OfTiny(model_kwargs={"device": "cpu"}).encoder.model == "tiny"
    assert M3Rerank(encoder=encoder).model_dump(exclude_unset=True)["model"] == encoder.model


@pytest.mark.parametrize("kind", [M3Rerank, M3Excerpt])
def test_what_is_no_list_of_documents_is_named(encoder: M3Encoder, kind: Any) -> None:
    compressor, wrong = kind(encoder=encoder), [["abc"], Document("abc"), "abc"]
    for documents, named in zip(wrong, ("got str at position 0", "one Document", "one str"), strict=True):
        with pytest.raises(TypeError, match=named):
            compressor.compress_documents(documents, "keys")


def test_a_source_key_or_an_embedding_of_another_kind_is_named(fake: FakeEncoder) -> None:
    vectors: Any = M3VectorStore(encoder=fake)
    with pytest.raises(TypeError, match="source_key must be a string, got 1"):
        vectors.add_documents(TENANTS, source_key=1)
    with pytest.raises(TypeError, match=r"must be M3Embeddings, got FakeEncoder: pass model=.* or encoder="):
        M3VectorStore(fake)  # type: ignore[arg-type]
