"""`M3StoreRetriever`: the retriever that `M3VectorStore.as_retriever` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import ConfigDict, Field, PrivateAttr, SkipValidation

from m3_integrations.langchain.fields import snapshot
from m3_integrations.langchain.retriever import M3HybridRetriever
from m3_integrations.search import OPTION_NAMES, Searcher, SearchOptions


class M3StoreRetriever(M3HybridRetriever, VectorStoreRetriever):  # type: ignore[misc] # keywords for **kwargs
    """An `M3HybridRetriever` that is also the `VectorStoreRetriever` of its vector store.

    LangChain's classes and `configurable_fields` set `search_type` and `search_kwargs`, which are laid over the options
    in the other fields.
    """

    model_config = ConfigDict(extra="forbid")

    vectorstore: SkipValidation[VectorStore] = Field(exclude=True, repr=False)
    """The `M3VectorStore` whose encoder, store and BM25 index are used."""

    _given: bytes = PrivateAttr(default=b"")

    def model_post_init(self, context: Any, /) -> None:
        """Share the vector store's searcher, then check the fields as in `M3HybridRetriever`."""
        store: Any = self.vectorstore
        self._made = b"", store._searcher
        super().model_post_init(context)

    def _searcher(self) -> Searcher:
        given = snapshot([self.search_type, self.search_kwargs])
        if given != self._given and self._made is not None:
            self._made = b"", self._made[1]  # its options are made anew
        self._given = given
        return super()._searcher()

    def _options(self) -> SearchOptions:
        options = super()._options()
        return options.changed(**self.search_kwargs) if self.search_type == "similarity" else options

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        if self.search_type == "similarity":
            return super()._get_relevant_documents(query, run_manager=run_manager, **options)
        every = self._all_options(options)
        return VectorStoreRetriever._get_relevant_documents(self, query, run_manager=run_manager, **every)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        if self.search_type == "similarity":
            return await super()._aget_relevant_documents(query, run_manager=run_manager, **options)
        every = self._all_options(options)
        return await VectorStoreRetriever._aget_relevant_documents(self, query, run_manager=run_manager, **every)

    def _all_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields, `search_kwargs` and a call's options as the arguments of the vector store's own search."""
        own = {name: getattr(self, name) for name in OPTION_NAMES}
        if self.search_type == "similarity_score_threshold":
            del own["score_threshold"]  # the one in search_kwargs has another scale
        return {**own, **self.search_kwargs, **options}
