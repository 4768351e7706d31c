"""Lexical weights for LlamaIndex: `M3SparseEmbedding`, and the functions that `QdrantVectorStore` takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from pydantic import Field

from m3_integrations.llama_index.fields import NamedEncoderFields
from m3_integrations.scoring import lexical_scores
from m3_integrations.vectors import Encoder, Kind, LexicalRows, LexicalWeights, check_heads

SparseFn = Callable[[list[str]], tuple[list[list[int]], list[list[float]]]]
"""A function for `QdrantVectorStore`: it maps texts to token ids and weights, one list of each per text."""


class M3SparseEmbedding(NamedEncoderFields, BaseSparseEmbedding):
    """BGE-M3's lexical weights as a LlamaIndex sparse embedding model: {token id: weight}.

    `pip install 'PATH_TO_THE_CLONE[llama-index]'`

    Together with `M3Embedding` of the same model it costs no second forward pass: the encoder's cache returns the
    weights of a text that was just encoded.

    Args:
        model_name: A checkpoint folder, or a repository of the hub; `model` means the same.
        encoder: An existing encoder, instead of `model_name`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model_name`.
        embed_batch_size: Texts passed to the encoder at a time, 1 to 2048.
        num_workers: The number of batches that the asynchronous methods embed at a time.

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), if neither model_name nor
            encoder is given, if they disagree, or if the checkpoint has no head for lexical weights.
        FileNotFoundError: If the model does not exist.

    Examples:
        ```python
        from m3_integrations.llama_index import M3SparseEmbedding

        sparse = M3SparseEmbedding(model_name="BAAI/bge-m3")
        query, text = sparse.get_query_embedding("rotate keys"), sparse.get_text_embedding("Keys rotate monthly.")
        sparse.similarity(query, text)
        ```
    """

    embed_batch_size: int = Field(default=2048, gt=0, le=2048)

    def model_post_init(self, context: Any, /) -> None:
        """Open the encoder, and raise ValueError if it has no lexical weights."""
        super().model_post_init(context)
        check_heads(self.encoder.model, self.encoder.modes, ("lexical",))

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "M3SparseEmbedding"

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        return self.encoder.encode([query], kind="query", modes=("lexical",)).lexical[0].to_dict()

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        return (await self.encoder.aencode([query], kind="query", modes=("lexical",))).lexical[0].to_dict()

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return _dicts(self.encoder.encode(texts, modes=("lexical",)).lexical)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        vectors = await self.encoder.aencode(texts, modes=("lexical",))
        return await asyncio.to_thread(_dicts, vectors.lexical)

    def similarity(self, embedding1: SparseEmbedding, embedding2: SparseEmbedding) -> float:
        """Return the lexical score: the weights' products summed over shared tokens, 0 or more and not bounded.

        This is the dot product of the BGE-M3 paper (section 3.2); the base class computes a cosine.
        """
        return float(lexical_scores(_weights(embedding1), LexicalRows.from_weights([_weights(embedding2)]))[0])


def sparse_doc_fn(encoder: Encoder) -> SparseFn:
    """Return the function that `QdrantVectorStore` takes as its `sparse_doc_fn`.

    A node that `M3Embedding` of the same model has just embedded is not encoded again.

    Examples:
        ```python
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from m3_integrations.llama_index import sparse_doc_fn, sparse_query_fn

        store = QdrantVectorStore(
            "notes",
            client=client,
            enable_hybrid=True,
            sparse_doc_fn=sparse_doc_fn(encoder),
            sparse_query_fn=sparse_query_fn(encoder),
        )
        ```

    Raises:
        ValueError: If the checkpoint has no head for lexical weights.
    """
    check_heads(encoder.model, encoder.modes, ("lexical",))
    return partial(_columns, encoder, "document")


def sparse_query_fn(encoder: Encoder) -> SparseFn:
    """Return the function that `QdrantVectorStore` takes as its `sparse_query_fn`; see `sparse_doc_fn`."""
    check_heads(encoder.model, encoder.modes, ("lexical",))
    return partial(_columns, encoder, "query")


def _columns(encoder: Encoder, kind: Kind, texts: Sequence[str]) -> tuple[list[list[int]], list[list[float]]]:
    rows = encoder.encode(texts, kind=kind, modes=("lexical",)).lexical
    return [row.indices.tolist() for row in rows], [row.values.tolist() for row in rows]


def _dicts(rows: LexicalRows) -> list[SparseEmbedding]:
    return [row.to_dict() for row in rows]


def _weights(embedding: SparseEmbedding) -> LexicalWeights:
    indices = sorted(embedding)
    values = [embedding[index] for index in indices]
    return LexicalWeights(np.array(indices, dtype=np.int32), np.array(values, dtype=np.float32))
