"""`M3Embedding`: the dense vectors, for any index, vector store or pipeline of LlamaIndex."""

from __future__ import annotations

import asyncio

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding, SimilarityMode
from pydantic import Field

from m3_integrations.llama_index.fields import NamedEncoderFields
from m3_integrations.vectors import FloatArray


class M3Embedding(NamedEncoderFields, BaseEmbedding):
    """BGE-M3's dense vectors as a LlamaIndex embedding model.

    `pip install 'PATH_TO_THE_CLONE[llama-index]'`

    An `IngestionPipeline` makes the key of its cache from `model_name`, `model_kwargs` and the text. A passed `encoder`
    appears there only by its name: use separate caches for two encoders whose settings differ.

    Args:
        model_name: A checkpoint folder, or a repository of the hub; `model` means the same.
        encoder: An existing encoder, instead of `model_name`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model_name`.
        embed_batch_size: Texts passed to the encoder at a time, 1 to 2048. The encoder plans its forward passes itself,
            so there is no reason to lower this.
        callback_manager: Receives LlamaIndex's embedding events.
        num_workers: The number of batches that the asynchronous methods embed at a time.
        embeddings_cache: A key-value store of LlamaIndex that keeps vectors by text.

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), if neither model_name nor
            encoder is given, or if they disagree.
        FileNotFoundError: If the model does not exist.

    Examples:
        ```python
        from llama_index.core import Settings
        from m3_integrations.llama_index import M3Embedding

        Settings.embed_model = M3Embedding(model_name="BAAI/bge-m3")
        vector = Settings.embed_model.get_query_embedding("how do I rotate the keys?")
        ```
    """

    embed_batch_size: int = Field(default=2048, gt=0, le=2048)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "M3Embedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return _floats(self.encoder.encode([query], kind="query", modes=("dense",)).dense)[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return _floats((await self.encoder.aencode([query], kind="query", modes=("dense",))).dense)[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return _floats(self.encoder.encode(texts, modes=("dense",)).dense)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors = await self.encoder.aencode(texts, modes=("dense",))
        return await asyncio.to_thread(_floats, vectors.dense)


class QueryEmbedding(M3Embedding):
    """Embeds queries only, for a vector store that encodes the texts itself.

    The embedding of a text is an empty list and not None, because `IngestionPipeline` drops nodes without an embedding.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "M3QueryEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [[] for _ in texts]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [[] for _ in texts]

    def similarity(
        self, embedding1: Embedding, embedding2: Embedding, mode: SimilarityMode = SimilarityMode.DEFAULT
    ) -> float:
        """Return the similarity of two embeddings; raise ValueError if one is that of a text, which is empty."""
        if not len(embedding1) or not len(embedding2):
            raise ValueError(
                "this model embeds only queries, because its vector store encodes the texts: use M3Embedding here"
            )
        return super().similarity(embedding1, embedding2, mode)


def _floats(dense: FloatArray) -> list[list[float]]:
    # Row by row: one call for all rows would hold the interpreter's lock, and so block the event loop.
    return [row.tolist() for row in dense]
