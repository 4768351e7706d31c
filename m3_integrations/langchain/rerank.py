"""`M3Rerank` and `M3CrossEncoder`: documents ranked anew by the score of all three modes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, SkipValidation, field_validator

from m3_integrations.langchain.fields import WeightsFields, check_store
from m3_integrations.scoring import top_rows
from m3_integrations.search import rerank, resolve_weights
from m3_integrations.store import Store
from m3_integrations.vectors import M3Scores


class M3Rerank(WeightsFields, BaseDocumentCompressor):
    """Ranks documents by BGE-M3's combined score: dense, lexical and multi-vector, weighted.

    Setup:
        ```bash
        pip install 'm3-integrations[langchain]'
        ```

    Key init args:
        model: A checkpoint folder, or a repository of the hub.
        encoder: In the place of `model`: an encoder that is there already.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        top_n: How many documents to keep; None for all.
        score_threshold: Only documents whose combined score is at least this.
        weights: How the modes count; equal if None.
        store: Documents whose id and text a record in it has are scored from its vectors; only others are encoded.

    Instantiate:
        ```python
        from m3_integrations.langchain import M3Rerank

        reranker = M3Rerank(model="BAAI/bge-m3", top_n=3)
        ```

    Usage:
        ```python
        best = reranker.compress_documents(documents, "how do I rotate the keys?")
        best[0].metadata["relevance_score"], best[0].metadata["m3_scores"]
        ```

    Use within a chain:
        ```python
        from langchain_classic.retrievers import ContextualCompressionRetriever

        retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=any_retriever)
        retriever.invoke("how do I rotate the keys?")
        ```

    Async:
        ```python
        best = await reranker.acompress_documents(documents, "how do I rotate the keys?")
        ```

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), or unless there is one of
            model and encoder.
        FileNotFoundError: If there is no such model.
    """

    top_n: int | None = Field(default=3, ge=1)
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    store: SkipValidation[Store] | None = Field(default=None, exclude=True, repr=False)

    @field_validator("store", mode="before")
    @classmethod
    def _check_store(cls, store: Store | None) -> Store | None:
        return check_store(store)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Give the best documents, best first; equal scores keep their order.

        Returns:
            Copies. Their metadata holds besides what it held "relevance_score", the combined score, and "m3_scores",
            the raw score in every mode.

        Raises:
            TypeError: If query is no string.
            ValueError: If the store holds another model's vectors.
        """
        del callbacks  # there is no step inside that could report to them
        if not documents:
            return []
        texts, ids = [document.page_content for document in documents], [document.id for document in documents]
        scores = rerank(self.encoder, query, texts, ids=ids, store=self.store, weights=self.weights)
        best = top_rows(scores.combined, len(documents) if self.top_n is None else self.top_n).tolist()
        return [
            _scored(documents[row], scores, row)
            for row in best
            if self.score_threshold is None or scores.combined[row] >= self.score_threshold
        ]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Do what `compress_documents` does without blocking the event loop."""
        return await asyncio.to_thread(self.compress_documents, documents, query, callbacks)


def _scored(document: Document, scores: M3Scores, row: int) -> Document:
    metadata: dict[str, Any] = {
        **document.metadata,
        "relevance_score": float(scores.combined[row]),
        "m3_scores": {mode: float(getattr(scores, mode)[row]) for mode in scores.modes},
    }
    return document.model_copy(update={"metadata": metadata})


class M3CrossEncoder(WeightsFields, BaseCrossEncoder):
    """BGE-M3's combined score where LangChain expects a cross-encoder, as in `CrossEncoderReranker`.

    `M3Rerank` does more: scores in the results, a threshold, stored vectors, async.

    Setup:
        ```bash
        pip install 'm3-integrations[langchain]'
        ```

    Key init args:
        model: A checkpoint folder, or a repository of the hub.
        encoder: In the place of `model`: an encoder that is there already.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        weights: How the modes count; equal if None.

    Instantiate:
        ```python
        from m3_integrations.langchain import M3CrossEncoder

        cross_encoder = M3CrossEncoder(model="BAAI/bge-m3")
        ```

    Usage:
        ```python
        scores = cross_encoder.score([("how do I rotate the keys?", "Keys are rotated monthly.")])
        ```

    Use within a chain:
        ```python
        from langchain_classic.retrievers.document_compressors import CrossEncoderReranker

        reranker = CrossEncoderReranker(model=cross_encoder, top_n=3)
        ```

    Raises:
        ValueError: For an unknown argument or weights (pydantic's ValidationError), or unless there is one of model
            and encoder.
        FileNotFoundError: If there is no such model.
    """

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Give the combined score of every pair of a query and a text, in their order; higher is better.

        Raises:
            TypeError: If a query or a text is no string.
        """
        scores: list[float] = self.encoder.score_pairs(
            text_pairs, weights=resolve_weights(self.weights)
        ).combined.tolist()
        return scores
