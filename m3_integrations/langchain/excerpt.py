"""`M3Excerpt`: documents cut down to the sentences that carry their match with the query."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field

from m3_integrations.langchain.documents import checked_documents
from m3_integrations.langchain.fields import EncoderFields, Integer, MaybeStore
from m3_integrations.search import Evidence, find_evidence


class M3Excerpt(EncoderFields, BaseDocumentCompressor):
    """Shortens each document to the sentences that match the query best, and the sentences after them.

    Token vectors and lexical weights show which sentences match, as `m3_integrations.search.Evidence` describes; no
    language model is called. A whole document may be one record, up to the model's length limit, so no splitter is
    needed.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain]'
        ```

    Key init args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        max_share: The largest length of the result as a share of the text's, over 0 and up to 1; separators count. The
            best sentence is always kept.
        max_characters: The most characters of a result, with its separators; None for no limit besides max_share.
        neighbours: How many sentences after a chosen one are preferred to the next best sentence.
        separator: Written in place of the text that was left out.
        store: Vectors are read from it for a document whose id and text equal a record's; only other documents are
            encoded.

    Instantiate:
        ```python
        from m3_integrations.langchain import M3Excerpt

        excerpt = M3Excerpt(model="BAAI/bge-m3", max_share=0.3)
        ```

    Usage:
        ```python
        shorter = excerpt.compress_documents(documents, "how often are the keys rotated?")
        shorter[0].page_content, shorter[0].metadata["m3_spans"]
        ```

    Use within a chain:
        ```python
        from langchain_classic.retrievers import ContextualCompressionRetriever

        retriever = ContextualCompressionRetriever(base_compressor=excerpt, base_retriever=any_retriever)
        retriever.invoke("how often are the keys rotated?")
        ```

    Async:
        ```python
        shorter = await excerpt.acompress_documents(documents, "how often are the keys rotated?")
        ```

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), if neither model nor
            encoder is given, or if they disagree.
        FileNotFoundError: If the model does not exist.
    """

    max_share: float = Field(default=0.5, gt=0, le=1)
    max_characters: Integer | None = Field(default=None, ge=1)
    neighbours: Integer = Field(default=1, ge=0)
    separator: str = " … "
    store: MaybeStore = Field(default=None, exclude=True, repr=False)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the shortened documents, in the given order.

        Returns:
            Copies. Their metadata have one more key, "m3_spans": start and end (exclusive) of each kept span, as
            offsets into the original text. A document without a sentence keeps its whole text.

        Raises:
            TypeError: If query is not a string, or documents is a single one or holds anything but documents.
            ValueError: If the store holds another model's vectors, or the checkpoint has dense vectors only.
        """
        del callbacks  # no step in here reports to callbacks
        documents = checked_documents(documents)
        found = find_evidence(
            self.encoder,
            query,
            [document.page_content for document in documents],
            ids=[document.id for document in documents],
            store=self.store,
        )
        return [self._shortened(document, evidence) for document, evidence in zip(documents, found, strict=True)]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Shorten documents as `compress_documents` does, without blocking the event loop."""
        return await asyncio.to_thread(self.compress_documents, documents, query, callbacks)

    def _shortened(self, document: Document, evidence: Evidence) -> Document:
        kept = evidence.keep(
            max_share=self.max_share,
            max_characters=self.max_characters,
            neighbours=self.neighbours,
            separator_characters=len(self.separator),
        )
        text = self.separator.join(evidence.text[start:end] for start, end in kept)
        metadata = {**document.metadata, "m3_spans": [list(span) for span in kept]}
        return document.model_copy(update={"page_content": text or evidence.text, "metadata": metadata})
