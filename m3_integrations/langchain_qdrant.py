"""`M3SparseEmbeddings`: the lexical weights as langchain-qdrant's sparse vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from m3_integrations.search import open_encoder
from m3_integrations.vectors import Encoder, LexicalWeights, check_heads

try:
    from langchain_qdrant import SparseEmbeddings, SparseVector
except ModuleNotFoundError as error:
    if error.name != "langchain_qdrant":
        raise
    raise ImportError(
        "m3_integrations.langchain_qdrant needs langchain-qdrant: pip install 'PATH_TO_THE_CLONE[langchain-qdrant]'"
    ) from error

__all__ = ["M3SparseEmbeddings"]


class M3SparseEmbeddings(SparseEmbeddings):
    """BGE-M3's lexical weights for `QdrantVectorStore` in sparse or hybrid mode.

    Together with `M3Embeddings` of the same model it costs no second forward pass: the encoder's cache returns the
    weights of a text that was just encoded.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain-qdrant]'
        ```

    Key init args:
        model: A checkpoint folder or a repository of the hub such as "BAAI/bge-m3", which the process loads once; or
            the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`, such as device; only with `model`.

    Instantiate:
        ```python
        from langchain_qdrant import QdrantVectorStore, RetrievalMode
        from m3_integrations.langchain import M3Embeddings
        from m3_integrations.langchain_qdrant import M3SparseEmbeddings

        store = QdrantVectorStore.from_documents(
            documents,
            embedding=M3Embeddings(model="BAAI/bge-m3"),
            sparse_embedding=M3SparseEmbeddings(model="BAAI/bge-m3"),
            retrieval_mode=RetrievalMode.HYBRID,
            url="http://localhost:6333",
        )
        ```

    Embed single text:
        ```python
        sparse = M3SparseEmbeddings(model="BAAI/bge-m3")
        sparse.embed_query("how do I rotate the keys?").indices
        ```

    Embed multiple text:
        ```python
        weights = sparse.embed_documents(["Keys are rotated monthly.", "The vault is sealed at night."])
        ```

    Async:
        ```python
        weights = await sparse.aembed_query("how do I rotate the keys?")
        ```

    Raises:
        ValueError: If neither model nor encoder is given, they disagree, or the checkpoint has no lexical head.
        FileNotFoundError: If the model does not exist.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        encoder: Encoder | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.encoder = open_encoder(model, encoder=encoder, model_kwargs=model_kwargs)
        check_heads(self.encoder.model, self.encoder.modes, ("lexical",))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.encoder!r})"

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Return the lexical weights of every text; the indices are the model's token ids.

        Raises:
            TypeError: If texts is one string, or holds something that is not a string.
        """
        parts = self.encoder.encode_batches(texts, modes=("lexical",))
        return [_sparse_vector(weights) for part in parts for weights in part.lexical]

    def embed_query(self, text: str) -> SparseVector:
        """Return the lexical weights of a query.

        Raises:
            TypeError: If text is not a string.
        """
        return _sparse_vector(self.encoder.encode([text], kind="query", modes=("lexical",)).lexical[0])

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed texts as `embed_documents` does, without blocking the event loop."""
        vectors = await self.encoder.aencode(texts, modes=("lexical",))
        return await asyncio.to_thread(lambda: [_sparse_vector(weights) for weights in vectors.lexical])

    async def aembed_query(self, text: str) -> SparseVector:
        """Embed a query as `embed_query` does, without blocking the event loop."""
        return _sparse_vector((await self.encoder.aencode([text], kind="query", modes=("lexical",))).lexical[0])


def _sparse_vector(weights: LexicalWeights) -> SparseVector:
    return SparseVector(indices=weights.indices.tolist(), values=weights.values.tolist())
