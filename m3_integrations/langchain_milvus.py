"""`M3SparseEmbeddings`: the lexical weights as langchain-milvus's sparse vectors."""

# mypy: disable-error-code="import-not-found,import-untyped,misc"
# Type checks run without langchain-milvus, which clashes with LlamaIndex's Milvus package.

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from m3_integrations.search import open_encoder
from m3_integrations.vectors import Encoder, check_heads

try:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
except ModuleNotFoundError as error:
    if error.name != "langchain_milvus":
        raise
    raise ImportError(
        "m3_integrations.langchain_milvus needs langchain-milvus: pip install 'PATH_TO_THE_CLONE[langchain-milvus]'"
    ) from error

__all__ = ["M3SparseEmbeddings"]


class M3SparseEmbeddings(BaseSparseEmbedding):
    """BGE-M3's lexical weights for a sparse field of langchain-milvus's `Milvus`.

    Together with `M3Embeddings` of the same model it costs no second forward pass: the encoder's cache returns the
    weights of a text that was just encoded.

    Milvus refuses an empty sparse vector, which an empty text or white space has: leave such documents out.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain-milvus]'
        ```

    Key init args:
        model: A checkpoint folder or a repository of the hub such as "BAAI/bge-m3", which the process loads once; or
            the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`, such as device; only with `model`.

    Instantiate:
        ```python
        from langchain_milvus import Milvus
        from m3_integrations.langchain import M3Embeddings
        from m3_integrations.langchain_milvus import M3SparseEmbeddings

        store = Milvus.from_documents(
            documents,
            embedding=[M3Embeddings(model="BAAI/bge-m3"), M3SparseEmbeddings(model="BAAI/bge-m3")],
            vector_field=["dense", "sparse"],
            connection_args={"uri": "http://localhost:19530"},
        )
        ```

    Embed single text:
        ```python
        sparse = M3SparseEmbeddings(model="BAAI/bge-m3")
        sparse.embed_query("how do I rotate the keys?")  # {token id: weight}
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

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Return the lexical weights of every text, {token id: weight}.

        Raises:
            TypeError: If texts is one string, or holds something that is not a string.
        """
        parts = self.encoder.encode_batches(texts, modes=("lexical",))
        return [weights.to_dict() for part in parts for weights in part.lexical]

    def embed_query(self, query: str) -> dict[int, float]:
        """Return the lexical weights of a query, {token id: weight}.

        Raises:
            TypeError: If query is not a string.
        """
        return self.encoder.encode([query], kind="query", modes=("lexical",)).lexical[0].to_dict()

    async def aembed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Embed texts as `embed_documents` does, without blocking the event loop."""
        vectors = await self.encoder.aencode(texts, modes=("lexical",))
        return await asyncio.to_thread(lambda: [weights.to_dict() for weights in vectors.lexical])

    async def aembed_query(self, query: str) -> dict[int, float]:
        """Embed a query as `embed_query` does, without blocking the event loop."""
        return (await self.encoder.aencode([query], kind="query", modes=("lexical",))).lexical[0].to_dict()
