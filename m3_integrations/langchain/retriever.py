"""`M3HybridRetriever`: an encoder and a store as a LangChain retriever."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self, Unpack

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, SkipValidation

from m3_integrations.langchain.documents import as_documents, checked_documents, without_scores
from m3_integrations.langchain.fields import Calibrated, EncoderFields, Integer, Weights, snapshot
from m3_integrations.search import (
    OPTION_NAMES,
    Bm25,
    Evidence,
    Explanation,
    Fusion,
    Missing,
    Searcher,
    SearchKeywords,
    SearchMode,
    SearchOptions,
    check_options,
    check_store,
    replace_sources,
)
from m3_integrations.store import FilterLike, Store, open_store


class M3HybridRetriever(EncoderFields, BaseRetriever):
    r"""A retriever that finds documents by dense and lexical vectors and ranks them by exact scores of all three modes.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain]'
        ```

    Key init args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        store: The store of the documents; a new one in memory if None.
        k, mode, weights, filter, score_threshold, pool_size, fusion, rrf_k, bm25, calibration, min_probability: The
            options of a search, such as `k=5, filter={"year": {"$gte": 2024}}`. `m3_integrations.SearchOptions`
            explains each.
        show_progress: Whether adding documents draws a progress bar.

    Instantiate:
        ```python
        from m3_integrations.langchain import M3HybridRetriever

        retriever = M3HybridRetriever.from_documents(documents, model="BAAI/bge-m3", k=5)
        ```

    Usage:
        Documents are equal to those that were added. Their scores are attributes of `M3Document`, not metadata.

        A call can set every option of a search. In a call, None means the constructor's option, and the filter `{}`
        means no filter.

        ```python
        found = retriever.invoke("how do I rotate the keys?", k=3, filter={"product": "vault"})
        found[0].score, found[0].m3_scores
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
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), if neither model nor
            encoder is given, or if they disagree.
        FileNotFoundError: If the model does not exist.
    """

    model_config = ConfigDict(extra="forbid")  # BaseRetriever would ignore unknown arguments

    store: Annotated[SkipValidation[Store], BeforeValidator(lambda store: check_store(store) or open_store())] = Field(
        default_factory=open_store, exclude=True, repr=False
    )
    k: Integer = SearchOptions.k
    mode: SearchMode = SearchOptions.mode
    weights: Weights = None
    # A copy: otherwise a later change of the caller's mapping would change which documents are found.
    filter: Annotated[SkipValidation[FilterLike], BeforeValidator(copy.deepcopy)] = SearchOptions.filter
    score_threshold: float | None = SearchOptions.score_threshold
    pool_size: Integer = SearchOptions.pool_size
    fusion: Fusion = SearchOptions.fusion
    rrf_k: Integer = SearchOptions.rrf_k
    bm25: Bm25 = SearchOptions.bm25
    calibration: Calibrated = SearchOptions.calibration
    min_probability: float | None = SearchOptions.min_probability
    show_progress: bool = False

    _made: tuple[bytes, Searcher] | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Check the options, then open the encoder: a wrong option is refused before a network is loaded."""
        check_options(self._options(), self.store)
        super().model_post_init(context)
        self._searcher()

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Return the fields for the representation, and the store, which is not in a dump."""
        return [*super().__repr_args__(), ("store", self.store)]

    def _options(self) -> SearchOptions:
        return SearchOptions(**{name: getattr(self, name) for name in OPTION_NAMES})

    def _searcher(self) -> Searcher:
        """Return the searcher that the fields describe, a new one only if a field has changed."""
        # Compared in every call: assignment, model_copy and a change of the filter in place do not notify us.
        fields = snapshot([getattr(self, name) for name in OPTION_NAMES])
        made_of, made = self._made or (b"", None)
        if made is None or made.encoder is not self.encoder or made.store is not self.store:
            made = Searcher(self.encoder, self.store, self._options())
        elif made_of != fields:
            made = made.with_options(self._options())
        self._made = fields, made
        return made

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Unpack[SearchKeywords]
    ) -> list[Document]:
        del run_manager  # a search has no inner step to report
        return as_documents(self._searcher().search(query, **options))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Unpack[SearchKeywords]
    ) -> list[Document]:
        del run_manager  # likewise
        return as_documents(await self._searcher().asearch(query, **options))

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = type(self.store).__name__
        params["ls_embedding_provider"] = "m3_integrations"
        params["ls_embedding_model"] = self.encoder.model
        return params

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **settings: Any,
    ) -> Self:
        """Make a retriever and add texts to it, as `add_texts` does.

        Args:
            texts: Encoded as documents.
            metadatas: One per text.
            ids: One per text; None makes a random one.
            **settings: The constructor's arguments.

        Raises:
            TypeError: If texts is one string or holds anything but strings.
            ValueError: If the constructor refuses an argument, there are not as many ids or metadatas as texts, or the
                store holds another model's vectors.
        """
        retriever = cls(**settings)
        retriever.add_texts(texts, metadatas, ids=ids)
        return retriever

    @classmethod
    def from_documents(cls, documents: Iterable[Document], **settings: Any) -> Self:
        """Make a retriever and add documents to it, as `add_documents` does.

        Args:
            documents: They are not changed.
            **settings: The constructor's arguments.

        Raises:
            ValueError: If the constructor refuses an argument, or the store holds another model's vectors.
        """
        retriever = cls(**settings)
        retriever.add_documents(documents)
        return retriever

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
    ) -> list[str]:
        """Add texts, replacing documents with the same ids.

        Args:
            texts: Encoded as documents.
            metadatas: One per text, None for none; `m3_integrations.store.values` describes what they may hold. The
                scores of an earlier `M3Rerank` are not stored.
            ids: One per text; None makes a random one.

        Returns:
            The ids.

        Raises:
            TypeError: If texts is one string or holds anything but strings, or an id is not a string.
            ValueError: If there are not as many ids or metadatas as texts, metadata have a value that cannot be kept,
                or the store holds another model's vectors. Then nothing was added.
            IncompleteAddError: If it fails after some texts may have been stored, for example on a full disk. It has
                all ids; adding again with these makes no duplicates.
        """
        if metadatas is not None and not isinstance(metadatas, Mapping):  # `add` refuses a single mapping
            metadatas = [without_scores(each) for each in metadatas]
        return self._searcher().add(texts, ids=ids, metadatas=metadatas, show_progress=self.show_progress)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
    ) -> list[str]:
        """Add texts as `add_texts` does, without blocking the event loop."""
        return await asyncio.to_thread(self.add_texts, texts, metadatas, ids=ids)

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Iterable[str | None] | None = None,
        source_key: str | None = None,
    ) -> list[str]:
        """Add documents, replacing those with the same ids, or all of the same sources.

        Args:
            documents: They are not changed. The scores of an earlier `M3Rerank` in their metadata are not stored.
            ids: One per document; by default their own. None makes a random id, or with source_key an id that is the
                same for the same text of a source. A document's own empty id counts as None.
            source_key: The key of the metadata with a document's source. Then these must be all documents of their
                sources: the store's other documents of these sources are deleted, last. A text that it has already
                keeps its vectors. A call with the same documents changes nothing. If None, nothing is deleted.

        Returns:
            The ids.

        Raises:
            TypeError: If documents is a single one, or holds anything but documents.
            ValueError: If there are not as many ids as documents, or the store holds another model's vectors. With
                source_key also if a document does not name its source, or two have the same id. Then nothing was
                changed.
            IncompleteAddError: For the reasons of `add_texts`. Then nothing was deleted.
        """
        documents = checked_documents(documents)
        texts = [document.page_content for document in documents]
        metadatas = [document.metadata for document in documents]
        chosen = [document.id or None for document in documents] if ids is None else ids
        if source_key is None:
            return self.add_texts(texts, metadatas, ids=chosen)
        return replace_sources(
            self._searcher(),
            texts,
            source_key=source_key,
            ids=chosen,
            metadatas=[without_scores(metadata) for metadata in metadatas],
            show_progress=self.show_progress,
        )

    async def aadd_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Iterable[str | None] | None = None,
        source_key: str | None = None,
    ) -> list[str]:
        """Add documents as `add_documents` does, without blocking the event loop."""
        return await asyncio.to_thread(self.add_documents, documents, ids=ids, source_key=source_key)

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> int:  # noqa: A002
        """Delete documents by their ids, or those that match a filter.

        Args:
            ids: The ids of the documents to delete; unknown ids are skipped.
            filter: A filter for the documents to delete, instead of ids.

        Returns:
            The number of deleted documents.

        Raises:
            TypeError: If ids is one string.
            ValueError: If not exactly one of ids and filter is given, or if the filter is empty.
        """
        return self._searcher().delete(ids, filter=filter)

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> int:  # noqa: A002
        """Delete documents as `delete` does, without blocking the event loop."""
        return await asyncio.to_thread(self.delete, ids, filter=filter)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return copies of the documents with these ids, in the given order; unknown ids are skipped."""
        return as_documents(self.store.get(ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents as `get_by_ids` does, without blocking the event loop."""
        return await asyncio.to_thread(self.get_by_ids, ids)

    def explain(self, query: str, id: str) -> Explanation:  # noqa: A002 - the document's id
        """Return why a document matches a query: its scores, the shared tokens, and each query token's nearest token.

        Raises:
            KeyError: If there is no document with this id.
        """
        return self._searcher().explain(query, id)

    def explain_missing(self, query: str, id: str, **options: Unpack[SearchKeywords]) -> Missing:  # noqa: A002 - likewise
        """Return why a call with these options does not find a document, as `Searcher.explain_missing` does."""
        return self._searcher().explain_missing(query, id, **options)

    def spans(self, query: str, ids: Iterable[str]) -> list[Evidence]:
        """Return the scored sentences of documents, as `Searcher.spans` does."""
        return self._searcher().spans(query, ids)
