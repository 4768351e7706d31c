"""`M3HybridRetriever`: an encoder and a store as a LangChain retriever."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, Unpack

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import ConfigDict, Field, PrivateAttr, SkipValidation, field_validator, model_validator

from m3_integrations.fusion import DEFAULT_RRF_K
from m3_integrations.langchain.documents import as_document, as_stored
from m3_integrations.langchain.fields import WeightsFields, check_store
from m3_integrations.langchain.settings import RetrieverSettings
from m3_integrations.search import Bm25, Explanation, Fusion, Hit, Searcher, SearchMode, SearchOptions
from m3_integrations.store import FilterLike, Store, open_store, parse_filter
from m3_integrations.vectors import ModeWeights

_QUERIES_AHEAD = 16
"""Queries of a batch that are encoded in one call: as many long ones as the encoder's cache holds by default."""


class M3HybridRetriever(WeightsFields, BaseRetriever):
    r"""Finds documents by BGE-M3's dense and lexical vectors and ranks them by the exact score of all three modes.

    Setup:
        ```bash
        pip install 'm3-integrations[langchain]'
        ```

    Key init args:
        model: A checkpoint folder, or a repository of the hub.
        encoder: In the place of `model`: an encoder that is there already.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        store: Where the documents are; a new one in memory if None.
        k: How many documents to return at most.
        mode: Which modes rank: "all", "dense+lexical", "dense", "lexical" or "multi_vector".
        weights: How the modes count; equal if None.
        filter: Only documents whose metadata match, such as `{"year": {"$gte": 2024}}`.
        score_threshold: Only documents whose final score is at least this.
        pool_size: How many candidates the dense and the lexical leg find each.
        fusion: "weighted" mean of the exact scores, or "rrf".
        rrf_k: How little the first ranks stand out under "rrf".
        bm25: "extra" or "replace" lets BM25 find candidates too; for a store in memory.
        show_progress: Whether adding documents draws a progress bar.

    Instantiate:
        ```python
        from m3_integrations.langchain import M3HybridRetriever

        retriever = M3HybridRetriever.from_documents(documents, model="BAAI/bge-m3", k=5)
        ```

    Usage:
        `k`, `filter`, `weights`, `mode` and `score_threshold` of a call take the place of the constructor's; `filter`
        too, so `{}` asks for all documents, whatever the constructor's filter.

        ```python
        found = retriever.invoke("how do I rotate the keys?", k=3, filter={"product": "vault"})
        found[0].metadata["relevance_score"], found[0].metadata["m3_scores"]
        ```

    Use within a chain:
        ```python
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import ChatPromptTemplate
        from langchain_core.runnables import RunnablePassthrough

        def join(documents):
            return "\n\n".join(document.page_content for document in documents)

        prompt = ChatPromptTemplate.from_template("Answer from this:\n{context}\n\nQuestion: {question}")
        question = RunnablePassthrough()
        chain = {"context": retriever | join, "question": question} | prompt | chat_model | StrOutputParser()
        chain.invoke("how do I rotate the keys?")
        ```

    Async:
        ```python
        found = await retriever.ainvoke("how do I rotate the keys?", k=3)
        ```

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), or unless there is one of
            model and encoder.
        FileNotFoundError: If there is no such model.
    """

    model_config = ConfigDict(extra="forbid")  # BaseRetriever would drop what it does not know

    store: SkipValidation[Store] = Field(default_factory=open_store, exclude=True, repr=False)
    k: int = 4
    mode: SearchMode = "all"
    filter: SkipValidation[FilterLike] = None
    score_threshold: float | None = None
    pool_size: int = 100
    fusion: Fusion = "weighted"
    rrf_k: int = DEFAULT_RRF_K
    bm25: Bm25 = "off"
    show_progress: bool = False

    _searcher: Searcher | None = PrivateAttr(default=None)

    @field_validator("store", mode="before")
    @classmethod
    def _open_store(cls, store: Store | None) -> Store:
        return check_store(store) or open_store()

    @field_validator("filter", mode="before")
    @classmethod
    def _copy_filter(cls, filter: FilterLike) -> FilterLike:  # noqa: A002 - the word users know
        parse_filter(filter)
        return copy.deepcopy(filter)  # or a later change of the caller's mapping would change what may be seen

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        self._options()
        return self

    def _options(
        self,
        *,
        k: int | None = None,
        filter: FilterLike = None,  # noqa: A002
        weights: ModeWeights | str | None = None,
        mode: SearchMode | None = None,
        score_threshold: float | None = None,
    ) -> SearchOptions:
        """Give what is asked of a search: the constructor's settings where a call has none of its own."""
        return SearchOptions(
            k=self.k if k is None else k,
            mode=self.mode if mode is None else mode,
            weights=self.weights if weights is None else weights,
            filter=self.filter if filter is None else filter,
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
            pool_size=self.pool_size,
            fusion=self.fusion,
            rrf_k=self.rrf_k,
            bm25=self.bm25,
        )

    def _search(self) -> Searcher:
        # Not made once for all: model_copy and assignment replace encoder and store behind our back.
        made = self._searcher
        if made is None or made.encoder is not self.encoder or made.store is not self.store:
            made = self._searcher = Searcher(self.encoder, self.store)
        return made

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - no step inside could report to it
        k: int | None = None,
        filter: FilterLike = None,  # noqa: A002
        weights: ModeWeights | str | None = None,
        mode: SearchMode | None = None,
        score_threshold: float | None = None,
    ) -> list[Document]:
        options = self._options(k=k, filter=filter, weights=weights, mode=mode, score_threshold=score_threshold)
        return [_found(hit) for hit in self._search().search(query, options)]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - no step inside could report to it
        k: int | None = None,
        filter: FilterLike = None,  # noqa: A002
        weights: ModeWeights | str | None = None,
        mode: SearchMode | None = None,
        score_threshold: float | None = None,
    ) -> list[Document]:
        options = self._options(k=k, filter=filter, weights=weights, mode=mode, score_threshold=score_threshold)
        return [_found(hit) for hit in await self._search().asearch(query, options)]

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = type(self.store).__name__
        params["ls_embedding_provider"] = "m3_integrations"
        params["ls_embedding_model"] = self.encoder.model
        return params

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Give every query's documents; the queries are encoded together.

        That relies on the encoder's cache, which a call for each query then reads. With `return_exceptions` every
        query is encoded alone, so that one that cannot be encoded does not fail the others.
        """
        results: list[list[Document]] = []
        for queries, configs in _parts(inputs, config):
            if len(queries) > 1 and not return_exceptions:
                self.encoder.encode(queries, kind="query")
            results += super().batch(queries, configs, return_exceptions=return_exceptions, **kwargs)
        return results

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Do what `batch` does without blocking the event loop."""
        results: list[list[Document]] = []
        for queries, configs in _parts(inputs, config):
            if len(queries) > 1 and not return_exceptions:
                await self.encoder.aencode(queries, kind="query")
            results += await super().abatch(queries, configs, return_exceptions=return_exceptions, **kwargs)
        return results

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **settings: Unpack[RetrieverSettings],
    ) -> Self:
        """Make a retriever and add texts to it.

        Args:
            texts: Encoded as documents.
            metadatas: One per text.
            ids: One per text; None makes a random one.
            **settings: The constructor's arguments.

        Raises:
            TypeError: If texts is one string or holds anything but strings.
            ValueError: If the constructor refuses an argument, ids or metadatas are not as many as texts, or the store
                holds another model's vectors.
        """
        retriever = cls.model_validate(settings)
        retriever.add_texts(texts, metadatas, ids=ids)
        return retriever

    @classmethod
    def from_documents(cls, documents: Iterable[Document], **settings: Unpack[RetrieverSettings]) -> Self:
        """Make a retriever and add documents to it, as `add_documents` does.

        Args:
            documents: They are not changed.
            **settings: The constructor's arguments.

        Raises:
            ValueError: If the constructor refuses an argument, or the store holds another model's vectors.
        """
        retriever = cls.model_validate(settings)
        retriever.add_documents(documents)
        return retriever

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
    ) -> list[str]:
        """Add texts, replacing documents with the same ids.

        Args:
            texts: Encoded as documents.
            metadatas: One per text. The scores of an earlier search are not stored.
            ids: One per text; None makes a random one.

        Returns:
            The ids.

        Raises:
            TypeError: If texts is one string or holds anything but strings.
            ValueError: If ids or metadatas are not as many as texts, or the store holds another model's vectors.
        """
        stored = None if metadatas is None else [as_stored(metadata) for metadata in metadatas]
        return self._search().add(texts, ids=ids, metadatas=stored, show_progress=self.show_progress)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
    ) -> list[str]:
        """Do what `add_texts` does without blocking the event loop."""
        return await asyncio.to_thread(self.add_texts, texts, metadatas, ids=ids)

    def add_documents(self, documents: Iterable[Document], *, ids: Iterable[str | None] | None = None) -> list[str]:
        """Add documents, replacing those with the same ids.

        Args:
            documents: They are not changed. The scores of an earlier search in their metadata are not stored.
            ids: One per document; by default their own. None makes a random one.

        Returns:
            The ids.

        Raises:
            ValueError: If ids are not as many as documents, or the store holds another model's vectors.
        """
        documents = list(documents)
        return self.add_texts(
            [document.page_content for document in documents],
            [document.metadata for document in documents],
            ids=[document.id for document in documents] if ids is None else ids,
        )

    async def aadd_documents(
        self, documents: Iterable[Document], *, ids: Iterable[str | None] | None = None
    ) -> list[str]:
        """Do what `add_documents` does without blocking the event loop."""
        return await asyncio.to_thread(self.add_documents, documents, ids=ids)

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> int:  # noqa: A002
        """Delete documents by their ids, or those that match a filter.

        Args:
            ids: Those that are not there are passed over.
            filter: In the place of ids: which documents to delete.

        Returns:
            How many were deleted.

        Raises:
            TypeError: If ids is one string.
            ValueError: Unless there is one of ids and filter, or if the filter would match everything.
        """
        if isinstance(ids, str):
            raise TypeError(f"ids must be a sequence of strings, got the string {ids!r}: pass [{ids!r}]")
        if (ids is None) == (filter is None):
            raise ValueError(f"delete needs either ids or a filter, got ids={ids!r}, filter={filter!r}")
        if ids is not None:
            return self.store.delete(ids)
        parsed = parse_filter(filter)
        if parsed is None:
            raise ValueError("an empty filter matches everything: delete by ids if that is what you want")
        return self.store.delete_where(parsed)

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> int:  # noqa: A002
        """Do what `delete` does without blocking the event loop."""
        return await asyncio.to_thread(self.delete, ids, filter=filter)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Give the documents of these ids that are there, in the order of the ids; the caller's own copies."""
        return [as_document(record) for record in self.store.get(ids)]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Do what `get_by_ids` does without blocking the event loop."""
        return await asyncio.to_thread(self.get_by_ids, ids)

    def explain(self, query: str, id: str) -> Explanation:  # noqa: A002 - the document's id
        """Say why a document matches a query: its scores, the shared tokens, and what each query token found.

        Raises:
            KeyError: If there is no such document.
        """
        return self._search().explain(query, id)


def _parts(
    inputs: list[str], config: RunnableConfig | list[RunnableConfig] | None
) -> Iterator[tuple[list[str], list[RunnableConfig]]]:
    configs = get_config_list(config, len(inputs)) if inputs else []
    for start in range(0, len(inputs), _QUERIES_AHEAD):
        yield inputs[start : start + _QUERIES_AHEAD], configs[start : start + _QUERIES_AHEAD]


def _found(hit: Hit) -> Document:
    return as_document(hit, relevance_score=hit.score, m3_scores=hit.scores)
