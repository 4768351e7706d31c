"""`M3VectorStore`: an encoder and a store as a LangChain vector store.

Long because LangChain needs every method twice, once for coroutines.
"""

# LangChain's own methods accept any keyword, even a misspelt one. The methods here name each keyword.
# mypy: disable-error-code="override"

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, Self, Unpack

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore

from m3_integrations.langchain.documents import as_documents
from m3_integrations.langchain.embeddings import M3Embeddings
from m3_integrations.langchain.retriever import M3HybridRetriever
from m3_integrations.search import (
    OPTION_NAMES,
    Hit,
    RankingKeywords,
    Searcher,
    SearchOptions,
    as_integer,
    as_number,
    diverse_hits,
    relevance,
)
from m3_integrations.store import FilterLike, Store
from m3_integrations.vectors import Encoder, FloatArray

_DELETED_AT_ONCE: Final = 1000
_WITH_OWN_COROUTINES: Final = (
    "similarity_search",
    "similarity_search_with_score",
    "similarity_search_with_relevance_scores",
    "similarity_search_by_vector",
    "max_marginal_relevance_search",
    "max_marginal_relevance_search_by_vector",
    "get_by_ids",
)
"""The methods whose coroutines do not call them."""

_LEAST_SCORE: Final = -1.0
"""Every score is at least this, so as a threshold it keeps all."""


class M3VectorStore(VectorStore):
    """An encoder and a store as a LangChain vector store: a search uses all three modes of BGE-M3.

    For chains, `as_retriever` or `M3HybridRetriever` is enough. This class is for functions and classes that take a
    vector store: `index`, `SelfQueryRetriever` (with `M3Translator`), `ParentDocumentRetriever`,
    `MultiVectorRetriever`, `TimeWeightedVectorStoreRetriever`, example selectors, semantic caches.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain]'
        ```

    Key init args:
        embedding: An `M3Embeddings`, whose encoder is used for all modes. No other class is accepted, because lexical
            weights and multi-vectors come from the same forward pass as the dense vector.
        model, encoder, model_kwargs: Instead of `embedding`, as for `M3HybridRetriever`.
        store: The store for the documents; a new one in memory if None.
        k, mode, weights, filter, score_threshold, pool_size, fusion, rrf_k, bm25, calibration, min_probability: Options
            of a search; `m3_integrations.SearchOptions` explains each.
        show_progress: Whether adding documents draws a progress bar.

    Instantiate:
        ```python
        from m3_integrations.langchain import M3VectorStore

        vectors = M3VectorStore(model="BAAI/bge-m3")  # store=open_store("./my-index"), or it is in memory
        ```

    Add documents:
        A document replaces the document with the same id. Three ways to run a script again without duplicates:

        - `index(documents, record_manager, vectors, cleanup="full", key_encoder="sha256")` encodes only new texts, and
          deletes documents whose source is gone. It needs a record manager.
        - `vectors.add_documents(documents, source_key="source")` encodes only new texts, and replaces all documents of
          each source in the call. So each call must pass all documents of its sources. Other sources stay;
          `delete(filter={"source": ..})` deletes one.
        - Pass `ids`: documents with these ids are encoded again and replaced. No other document is deleted.

        Documents added without ids in any other way are new each time.

        ```python
        vectors.add_documents(documents, source_key="source")
        vectors.delete(["an-id"])
        ```

    Usage:
        Each call takes the options of a search too. None means the constructor's option, and the filter `{}` means no
        filter.

        ```python
        vectors.similarity_search("how do I rotate the keys?", k=3, filter={"product": "vault"}, weights="miracl")
        vectors.similarity_search_with_score("how do I rotate the keys?")  # the score of all modes, as ranked
        vectors.similarity_search_with_relevance_scores("how do I rotate the keys?", score_threshold=0.5)
        vectors.similarity_search_by_vector(vectors.embeddings.embed_query("keys"))  # by the dense mode alone
        vectors.max_marginal_relevance_search("how do I rotate the keys?", lambda_mult=0.3)
        ```

    Async:
        ```python
        await vectors.asimilarity_search("how do I rotate the keys?", k=3)
        ```

    Use as Retriever:
        ```python
        retriever = vectors.as_retriever(search_kwargs={"k": 3, "mode": "dense+lexical"})
        retriever.invoke("how do I rotate the keys?")
        ```

    Args:
        embedding: As above.
        show_progress: As above.
        **settings: As above: the fields of `M3HybridRetriever`.

    Raises:
        TypeError: If embedding is of another class.
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), or if none of embedding,
            model and encoder is given.
        FileNotFoundError: If the model does not exist.
    """

    def __init__(self, embedding: Embeddings | None = None, *, show_progress: bool = False, **settings: Any) -> None:
        if embedding is not None:
            if not isinstance(embedding, M3Embeddings):
                raise TypeError(f"embedding must be M3Embeddings, got {type(embedding).__name__}: {_hint(embedding)}")
            if given := [name for name in ("model", "encoder", "model_kwargs") if settings.get(name)]:
                raise ValueError(f"embedding= already has a model: leave out {given[0]}=")
            settings["encoder"] = embedding.encoder
        # The retriever holds the fields and the search that both classes share.
        self._retriever = M3HybridRetriever(show_progress=show_progress, **settings)
        self._embeddings = embedding or M3Embeddings(encoder=self._retriever.encoder)

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Let the coroutine of a method that a subclass replaces call the new one, unless that is replaced too."""
        super().__init_subclass__(**keywords)
        for name in _WITH_OWN_COROUTINES:
            coroutine = getattr(cls, f"a{name}")
            if name in vars(cls) and coroutine is getattr(M3VectorStore, f"a{name}"):
                setattr(cls, f"a{name}", _coroutine_of(name, coroutine))

    def __repr__(self) -> str:
        return f"M3VectorStore(model={self.encoder.model!r}, store={type(self.store).__name__})"

    @property
    def embeddings(self) -> M3Embeddings:
        """`M3Embeddings` with the same encoder, for code that embeds texts itself."""
        return self._embeddings

    @property
    def encoder(self) -> Encoder:
        """The encoder of queries and documents."""
        return self._retriever.encoder

    @property
    def store(self) -> Store:
        """The store of the documents."""
        return self._retriever.store

    @property
    def _searcher(self) -> Searcher:
        return self._retriever._searcher()

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **settings: Any,
    ) -> Self:
        """Make a vector store and add texts to it, as `add_texts` does.

        Args:
            texts: Encoded as documents.
            embedding: `M3Embeddings`, or None if settings have `model` or `encoder`.
            metadatas: One per text; None for a text without metadata.
            ids: One per text; None makes a random id.
            **settings: The constructor's arguments.

        Raises:
            TypeError: For the reasons of the constructor and `add_texts`.
            ValueError: For the reasons of the constructor and `add_texts`.
        """
        vectors = cls(embedding, **settings)
        vectors.add_texts(texts, metadatas, ids=ids)
        return vectors

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **settings: Any,
    ) -> Self:
        """Make a vector store as `from_texts` does, without blocking the event loop."""
        return await asyncio.to_thread(cls.from_texts, texts, embedding, metadatas, ids=ids, **settings)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        source_key: str | None = None,
        **settings: Any,
    ) -> Self:
        """Make a vector store and add documents to it, as `add_documents` does.

        Args:
            documents: They are not changed.
            embedding: `M3Embeddings`, or None if settings have `model` or `encoder`.
            ids: One per document; by default the documents' own ids.
            source_key: As for `add_documents`.
            **settings: The constructor's arguments.

        Raises:
            TypeError: For the reasons of the constructor.
            ValueError: For the reasons of the constructor and `add_documents`.
        """
        vectors = cls(embedding, **settings)
        vectors.add_documents(documents, ids=ids, source_key=source_key)
        return vectors

    @classmethod
    async def afrom_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        source_key: str | None = None,
        **settings: Any,
    ) -> Self:
        """Make a vector store as `from_documents` does, without blocking the event loop."""
        return await asyncio.to_thread(
            cls.from_documents, documents, embedding, ids=ids, source_key=source_key, **settings
        )

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **unused: Any,
    ) -> list[str]:
        """Add texts as `M3HybridRetriever.add_texts` does; texts with the same ids are replaced.

        Args:
            texts: Encoded as documents.
            metadatas: One per text; None for a text without metadata.
            ids: One per text; None makes a random id.
            **unused: `batch_size` and `current_time` are accepted, because classes of LangChain pass them, and have no
                effect: the encoder plans batches by tokens. Other arguments are refused.

        Returns:
            The ids.

        Raises:
            TypeError: For an unknown argument, and as for `M3HybridRetriever.add_texts`.
            ValueError: For the reasons of `M3HybridRetriever.add_texts`.
            IncompleteAddError: For the reasons of `M3HybridRetriever.add_texts`.
        """
        _refuse_unknown(unused)
        return self._retriever.add_texts(texts, metadatas, ids=ids)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **unused: Any,
    ) -> list[str]:
        """Add texts as `add_texts` does, without blocking the event loop."""
        return await asyncio.to_thread(self.add_texts, texts, metadatas, ids=ids, **unused)

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Iterable[str | None] | None = None,
        source_key: str | None = None,
        **unused: Any,
    ) -> list[str]:
        """Add documents as `M3HybridRetriever.add_documents` does; documents with the same ids are replaced.

        Args:
            documents: They are not changed.
            ids: One per document; by default the documents' own ids. None makes a random id, or with source_key the
                same id in every run.
            source_key: If given, the documents replace all stored documents of their sources. A text that is already
                stored keeps its vectors.
            **unused: As for `add_texts`.

        Returns:
            The ids.

        Raises:
            TypeError: For an unknown argument, or source_key in `upsert_kwargs` of `index`, because `index` passes only
                the new documents of a source.
            ValueError: For the reasons of `M3HybridRetriever.add_documents`.
            IncompleteAddError: For the reasons of `M3HybridRetriever.add_texts`.
        """
        _refuse_unknown(unused)
        if source_key is not None and "batch_size" in unused:
            raise TypeError(
                "index() passes only new documents of a source, so source_key= would delete its others: use "
                "index(cleanup=...) without it, or add_documents(documents, source_key=...) without index()"
            )
        return self._retriever.add_documents(documents, ids=ids, source_key=source_key)

    async def aadd_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Iterable[str | None] | None = None,
        source_key: str | None = None,
        **unused: Any,
    ) -> list[str]:
        """Add documents as `add_documents` does, without blocking the event loop."""
        return await asyncio.to_thread(self.add_documents, documents, ids=ids, source_key=source_key, **unused)

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> bool:  # noqa: A002
        """Delete documents by their ids or by a filter; without arguments delete all, as LangChain specifies.

        Args:
            ids: Ids of the documents to delete; unknown ids are skipped.
            filter: Instead of ids: delete the documents that match. The filter `{}` is refused.

        Returns:
            True.

        Raises:
            TypeError: If ids is one string.
            ValueError: If both are given, or the filter is empty.
        """
        if ids is not None or filter is not None:
            self._retriever.delete(ids, filter=filter)
            return True
        everything = [record.id for record in self.store.records()]
        for start in range(0, len(everything), _DELETED_AT_ONCE):
            self.store.delete(everything[start : start + _DELETED_AT_ONCE])
        return True

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> bool:  # noqa: A002
        """Delete documents as `delete` does, without blocking the event loop."""
        return await asyncio.to_thread(self.delete, ids, filter=filter)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return copies of the documents with these ids, in the given order; unknown ids are skipped."""
        return self._retriever.get_by_ids(ids)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents as `get_by_ids` does, without blocking the event loop."""
        return await self._retriever.aget_by_ids(ids)

    def similarity_search(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: FilterLike = None,  # noqa: A002
        **options: Unpack[RankingKeywords],
    ) -> list[Document]:
        """Return the documents that answer a query best, best first, as `M3HybridRetriever.invoke` does.

        Args:
            query: Encoded once, as a query.
            k: How many at most.
            filter: Only documents whose metadata match.
            **options: As `m3_integrations.SearchOptions` describes them.

        Raises:
            TypeError: For the reasons of `Searcher.search`.
            ValueError: For the reasons of `Searcher.search`.
        """
        return as_documents(self._searcher.search(query, k=k, filter=filter, **options))

    async def asimilarity_search(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: FilterLike = None,  # noqa: A002
        **options: Unpack[RankingKeywords],
    ) -> list[Document]:
        """Search as `similarity_search` does, without blocking the event loop."""
        return as_documents(await self._searcher.asearch(query, k=k, filter=filter, **options))

    def similarity_search_with_score(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: FilterLike = None,  # noqa: A002
        **options: Unpack[RankingKeywords],
    ) -> list[tuple[Document, float]]:
        """Return documents as `similarity_search` does, each with the score that ranks it; higher is better.

        By default this is the weighted mean of the scores in all modes. `M3Document.m3_scores` has each mode's score.
        """
        return _with_score(self._searcher.search(query, k=k, filter=filter, **options))

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: FilterLike = None,  # noqa: A002
        **options: Unpack[RankingKeywords],
    ) -> list[tuple[Document, float]]:
        """Search as `similarity_search_with_score` does, without blocking the event loop."""
        return _with_score(await self._searcher.asearch(query, k=k, filter=filter, **options))

    def similarity_search_with_relevance_scores(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: FilterLike = None,  # noqa: A002
        **options: Unpack[RankingKeywords],
    ) -> list[tuple[Document, float]]:
        """Return documents as `similarity_search` does, each with its score on a scale from 0 to 1.

        The formula is that of `m3_integrations.search.relevance`: (score + c) / (1 + c), at most 1, where c is the
        share of the dense and the multi-vector mode in the weights.

        Args:
            query: Encoded once, as a query.
            k: How many at most.
            filter: Only documents whose metadata match.
            **options: As `m3_integrations.SearchOptions` describes them, but `score_threshold` is on the scale 0 to 1.
                It replaces the constructor's, which is on the scale of the scores.

        Raises:
            TypeError: For the reasons of `Searcher.search`.
            ValueError: For the reasons of `Searcher.search`.
        """
        searcher, least = self._searcher, _least(options)
        hits = searcher.search(query, k=k, filter=filter, **options)
        return _with_relevance(hits, searcher.options.changed(**options), least)

    async def asimilarity_search_with_relevance_scores(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: FilterLike = None,  # noqa: A002
        **options: Unpack[RankingKeywords],
    ) -> list[tuple[Document, float]]:
        """Search as `similarity_search_with_relevance_scores` does, without blocking the event loop."""
        searcher, least = self._searcher, _least(options)
        hits = await searcher.asearch(query, k=k, filter=filter, **options)
        return _with_relevance(hits, searcher.options.changed(**options), least)

    def similarity_search_by_vector(
        self,
        embedding: Sequence[float] | FloatArray,
        k: int | None = None,
        *,
        filter: FilterLike = None,  # noqa: A002
        score_threshold: float | None = None,
        min_probability: float | None = None,
    ) -> list[Document]:
        """Return the documents whose dense vectors are most like this one.

        Only the dense mode ranks, whatever the constructor's options are: the other modes need the query's text.
        Nothing is encoded.

        Args:
            embedding: d numbers, as `embeddings` makes them; scaled to unit length.
            k: How many at most.
            filter: Only documents whose metadata match.
            score_threshold: Only documents whose cosine is at least this.
            min_probability: 0 to search although the constructor has a `min_probability`, which needs a query's text.

        Raises:
            TypeError: If an argument is not a number of its kind.
            ValueError: If the vector is not of the model's size or not finite, or an option is out of range. Also if
                the constructor's `min_probability` applies.
        """
        hits = self._searcher.search(
            None,
            dense=_vector(embedding),
            k=k,
            filter=filter,
            score_threshold=score_threshold,
            min_probability=min_probability,
            fusion="weighted",
        )
        return as_documents(hits)

    async def asimilarity_search_by_vector(
        self,
        embedding: Sequence[float] | FloatArray,
        k: int | None = None,
        *,
        filter: FilterLike = None,  # noqa: A002
        score_threshold: float | None = None,
        min_probability: float | None = None,
    ) -> list[Document]:
        """Search as `similarity_search_by_vector` does, without blocking the event loop."""
        hits = await self._searcher.asearch(
            None,
            dense=_vector(embedding),
            k=k,
            filter=filter,
            score_threshold=score_threshold,
            min_probability=min_probability,
            fusion="weighted",
        )
        return as_documents(hits)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: FilterLike = None,  # noqa: A002
        **options: Unpack[RankingKeywords],
    ) -> list[Document]:
        """Return documents that answer a query and differ from one another, in the order they are chosen.

        The candidates are the best documents by all modes, as `similarity_search` ranks them. Likeness to the query and
        among the documents is computed from dense vectors.

        Args:
            query: Encoded once, as a query.
            k: How many at most.
            fetch_k: How many candidates; never fewer than k.
            lambda_mult: From 0 (only diversity counts) to 1 (only likeness to the query counts).
            filter: Only documents whose metadata match.
            **options: As `m3_integrations.SearchOptions` describes them.

        Raises:
            TypeError: For the reasons of `Searcher.search`.
            ValueError: For the reasons of `Searcher.search`, if lambda_mult is out of range, or if the dense mode does
                not rank.
        """
        searcher, n = self._searcher, self._n(k)
        hits = searcher.search(query, k=max(n, as_integer(fetch_k, "fetch_k")), filter=filter, **options)
        return as_documents(diverse_hits(self.store, hits, n, lambda_mult))

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: FilterLike = None,  # noqa: A002
        **options: Unpack[RankingKeywords],
    ) -> list[Document]:
        """Search as `max_marginal_relevance_search` does, without blocking the event loop."""
        searcher, n = self._searcher, self._n(k)
        hits = await searcher.asearch(query, k=max(n, as_integer(fetch_k, "fetch_k")), filter=filter, **options)
        return as_documents(await asyncio.to_thread(diverse_hits, self.store, hits, n, lambda_mult))

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float] | FloatArray,
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: FilterLike = None,  # noqa: A002
        score_threshold: float | None = None,
        min_probability: float | None = None,
    ) -> list[Document]:
        """Return documents as `max_marginal_relevance_search` does; the candidates are the best by the dense mode.

        Args:
            embedding: d numbers, as `embeddings` makes them; scaled to unit length.
            k: How many at most.
            fetch_k: How many candidates; never fewer than k.
            lambda_mult: From 0 (only diversity counts) to 1 (only likeness to the vector counts).
            filter: Only documents whose metadata match.
            score_threshold: As for `similarity_search_by_vector`.
            min_probability: Likewise.

        Raises:
            TypeError: If an argument is not a number of its kind.
            ValueError: If the vector is not of the model's size or not finite, or lambda_mult is out of range. Also if
                the constructor's `min_probability` applies.
        """
        n = self._n(k)
        hits = self._searcher.search(
            None,
            dense=_vector(embedding),
            k=max(n, as_integer(fetch_k, "fetch_k")),
            filter=filter,
            score_threshold=score_threshold,
            min_probability=min_probability,
        )
        return as_documents(diverse_hits(self.store, hits, n, lambda_mult))

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float] | FloatArray,
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: FilterLike = None,  # noqa: A002
        score_threshold: float | None = None,
        min_probability: float | None = None,
    ) -> list[Document]:
        """Search as `max_marginal_relevance_search_by_vector` does, without blocking the event loop."""
        n = self._n(k)
        hits = await self._searcher.asearch(
            None,
            dense=_vector(embedding),
            k=max(n, as_integer(fetch_k, "fetch_k")),
            filter=filter,
            score_threshold=score_threshold,
            min_probability=min_probability,
        )
        return as_documents(await asyncio.to_thread(diverse_hits, self.store, hits, n, lambda_mult))

    def _n(self, k: int | None) -> int:
        return self._searcher.options.changed(k=k).k

    def as_retriever(self, **settings: Any) -> BaseRetriever:
        """Return a retriever over the same encoder and store.

        Args:
            **settings: `search_type`, by default "similarity"; `search_kwargs`, a mapping of options; `tags`,
                `metadata` and `name`, as LangChain describes them. Options may also be passed directly, such as `k=3`.

        Returns:
            For "similarity" an `M3HybridRetriever` with this store's options; each call can override them, and an
            option that is None is this store's. For "mmr" and "similarity_score_threshold" LangChain's
            `VectorStoreRetriever`, which passes a call's options on too; the threshold is a relevance from 0 to 1. A
            subclass with another `similarity_search` or `asimilarity_search` gets that too. If other code needs a
            `VectorStoreRetriever`, construct it: `VectorStoreRetriever(vectorstore=vectors)`.

        Raises:
            ValueError: For an unknown search type or option (pydantic's ValidationError), or one out of range.
        """
        search_type = settings.pop("search_type", "similarity")
        searches = (type(self).similarity_search, type(self).asimilarity_search)
        is_overridden = searches != (M3VectorStore.similarity_search, M3VectorStore.asimilarity_search)
        search_kwargs = {name: settings.pop(name) for name in OPTION_NAMES if name in settings}
        search_kwargs |= settings.pop("search_kwargs", None) or {}
        if search_type != "similarity" or is_overridden:
            return super().as_retriever(search_type=search_type, search_kwargs=search_kwargs, **settings)
        settings |= {name: value for name, value in search_kwargs.items() if value is not None}
        own = {name: getattr(self._retriever, name) for name in type(self._retriever).model_fields}
        settings["tags"] = settings.get("tags") or [*(own["tags"] or []), *self._get_retriever_tags()]
        retriever = M3HybridRetriever(**own | settings)
        retriever._made = (b"", self._searcher)  # share the searcher and its BM25 index
        return retriever


def _hint(embedding: object) -> str:
    if not isinstance(embedding, Embeddings):
        return "pass model='BAAI/bge-m3', or encoder= with an M3Encoder"
    return (
        "this store encodes texts in three modes, and other embeddings have one. To search by a vector of this model "
        "that was made elsewhere, use similarity_search_by_vector"
    )


_called: ContextVar[frozenset[tuple[int, str]]] = ContextVar("_called", default=frozenset())
"""The stores and methods that a coroutine of `_coroutine_of` calls now: such a method may itself call the coroutine."""


def _coroutine_of(name: str, usual: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine that calls a method in a thread; called by that method, it does what is usual."""

    async def call(self: M3VectorStore, *arguments: Any, **options: Any) -> Any:
        if (id(self), name) in _called.get():
            return await usual(self, *arguments, **options)
        token = _called.set(_called.get() | {(id(self), name)})
        try:
            return await asyncio.to_thread(getattr(self, name), *arguments, **options)
        finally:
            _called.reset(token)

    return call


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    """Raise TypeError for an argument other than those that `index` and `TimeWeightedVectorStoreRetriever` pass."""
    if unknown := sorted(given.keys() - {"batch_size", "current_time"}):
        raise TypeError(f"there is no argument {unknown[0]}: documents are added with ids= or source_key=")


def _with_score(hits: Sequence[Hit]) -> list[tuple[Document, float]]:
    return [(document, hit.score) for document, hit in zip(as_documents(hits), hits, strict=True)]


def _least(options: RankingKeywords) -> float | None:
    """Take the threshold of relevance out of a call's options; then the constructor's, a score, does not apply."""
    least = options.get("score_threshold")
    if least is None:
        return None
    options["score_threshold"] = _LEAST_SCORE
    return as_number(least, "score_threshold")


def _with_relevance(hits: Sequence[Hit], asked: SearchOptions, least: float | None) -> list[tuple[Document, float]]:
    found = [(document, relevance(hit, asked)) for document, hit in zip(as_documents(hits), hits, strict=True)]
    return found if least is None else [each for each in found if each[1] >= least]


def _vector(embedding: Sequence[float] | FloatArray) -> FloatArray:
    return np.asarray(embedding, dtype=np.float32)
