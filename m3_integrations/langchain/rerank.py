"""`M3Rerank` and `M3CrossEncoder`: rerank documents by the score of all three modes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field

from m3_integrations.langchain.documents import checked_documents, with_scores
from m3_integrations.langchain.fields import EncoderFields, Integer, MaybeStore, Weights
from m3_integrations.search import Ranked, check_ranking, rerank
from m3_integrations.vectors import resolve_weights


class M3Rerank(EncoderFields, BaseDocumentCompressor):
    """Ranks documents by BGE-M3's combined score: dense, lexical and multi-vector, weighted.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain]'
        ```

    Key init args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        top_n: How many documents to keep; None for all.
        score_threshold: Only documents whose combined score is at least this. `compress_documents` states its range.
        weights: How much each mode counts: `ModeWeights`, a preset such as "miracl", or three numbers; equal if None.
        store: Vectors are read from it for a document whose id and text equal a record's; only other documents are
            encoded.

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
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), if neither model nor
            encoder is given, or if they disagree.
        FileNotFoundError: If the model does not exist.
    """

    weights: Weights = None
    top_n: Integer | None = Field(default=3, ge=1)
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    store: MaybeStore = Field(default=None, exclude=True, repr=False)

    def model_post_init(self, context: Any, /) -> None:
        """Open the encoder, and warn of one that lacks modes."""
        super().model_post_init(context)
        check_ranking(self.encoder, self.weights)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the best documents, best first; equal scores keep their order.

        Returns:
            Copies of the class `M3Document`. Their metadata have two more keys: "relevance_score", the combined score,
            and "m3_scores", the raw score in every mode. The attributes `score` and `m3_scores` have the same values,
            as in a retriever's results. Dense and multi-vector scores are in [-1, 1], up to the rounding of stored
            vectors (1e-4 in float16); lexical scores are 0 or more and not bounded. So the combined score is -1 or
            more, and it can exceed 1 unless the lexical weight is 0. It ranks the documents of one query. It is not a
            probability.

        Raises:
            TypeError: If query is not a string, or documents is a single one or holds anything but documents.
            ValueError: If the store holds another model's vectors.
        """
        del callbacks  # no step in here reports to callbacks
        documents = checked_documents(documents)
        ranked = rerank(
            self.encoder,
            query,
            [document.page_content for document in documents],
            ids=[document.id for document in documents],
            store=self.store,
            weights=self.weights,
            top_n=self.top_n,
            score_threshold=self.score_threshold,
        )
        return [_with_results(documents[each.row], each) for each in ranked]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rank documents as `compress_documents` does, without blocking the event loop."""
        return await asyncio.to_thread(self.compress_documents, documents, query, callbacks)


def _with_results(document: Document, ranked: Ranked) -> Document:
    metadata = {**document.metadata, "relevance_score": ranked.score, "m3_scores": ranked.scores}
    return with_scores(document.model_copy(update={"metadata": metadata}), ranked.score, ranked.scores)


class M3CrossEncoder(EncoderFields, BaseCrossEncoder):
    """BGE-M3's combined score for classes of LangChain that take a cross-encoder, such as `CrossEncoderReranker`.

    `M3Rerank` does more: scores in the results, a threshold, stored vectors, async.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain]'
        ```

    Key init args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        weights: How much each mode counts: `ModeWeights`, a preset such as "miracl", or three numbers; equal if None.

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
        ValueError: For an unknown argument or unknown weights (pydantic's ValidationError), if neither model nor
            encoder is given, or if they disagree.
        FileNotFoundError: If the model does not exist.
    """

    weights: Weights = None

    def model_post_init(self, context: Any, /) -> None:
        """Open the encoder, and warn of one that lacks modes."""
        super().model_post_init(context)
        check_ranking(self.encoder, self.weights)

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return the combined score of every pair of a query and a text, in their order; higher is better.

        `M3Rerank.compress_documents` states the range.

        Raises:
            TypeError: If a query or a text is not a string.
        """
        found = self.encoder.score_pairs(text_pairs, weights=resolve_weights(self.weights))
        return [float(score) for score in found.combined]
