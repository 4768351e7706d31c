"""`M3Embedding`: the dense vectors, for any index, vector store or pipeline of LlamaIndex."""

from __future__ import annotations

import asyncio

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import Field

from m3_integrations.llama_index.fields import NamedEncoderFields
from m3_integrations.vectors import FloatArray


class M3Embedding(NamedEncoderFields, BaseEmbedding):
    """BGE-M3's dense vectors as a LlamaIndex embedding model.

    `pip install 'PATH_TO_THE_CLONE[llama-index]'`

    In an `IngestionPipeline` the key of the cache is made of `model_name`, `model_kwargs` and the text. An `encoder`
    that was passed is known by its name alone: give two that differ in their settings a cache each.

    Args:
        model_name: A checkpoint folder, or a repository of the hub; `model` says the same.
        encoder: Instead of `model_name`: an encoder that exists already.
        model_kwargs: Further arguments of `M3Encoder`; only with `model_name`.
        embed_batch_size: Texts handed to the encoder at a time, 1 to 2048. It plans its own forward passes, so there
            is no reason to lower it.
        callback_manager: Who is told about embedding events.
        num_workers: How many batches the asynchronous methods have under way.
        embeddings_cache: A key-value store of LlamaIndex that keeps vectors by text.

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), or unless there is one of
            model_name and encoder.
        FileNotFoundError: If there is no such model.

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


def _floats(dense: FloatArray) -> list[list[float]]:
    # Row by row: one call for all would hold the interpreter's lock, and so the event loop, for as long as it takes.
    return [row.tolist() for row in dense]
