"""`M3Embeddings`: the dense vectors, for any vector store of LangChain."""

from __future__ import annotations

import asyncio

from langchain_core.embeddings import Embeddings

from m3_integrations.langchain.fields import EncoderFields
from m3_integrations.vectors import FloatArray


class M3Embeddings(EncoderFields, Embeddings):
    """BGE-M3's dense vectors as LangChain embeddings.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain]'
        ```

    Key init args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        show_progress: Whether `embed_documents` draws a progress bar.

    Instantiate:
        ```python
        from m3_integrations.langchain import M3Embeddings

        embeddings = M3Embeddings(model="BAAI/bge-m3", model_kwargs={"device": "cuda"})
        ```

    Embed single text:
        ```python
        vector = embeddings.embed_query("how do I rotate the keys?")
        ```

    Embed multiple text:
        ```python
        vectors = embeddings.embed_documents(["Keys are rotated monthly.", "The vault is sealed at night."])
        ```

    Async:
        ```python
        vector = await embeddings.aembed_query("how do I rotate the keys?")
        ```

    Raises:
        ValueError: For an unknown argument (pydantic's ValidationError), if neither model nor encoder is given, or if
            they disagree.
        FileNotFoundError: If the model does not exist.
    """

    show_progress: bool = False

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the dense vector of every text: d floats each, unit length.

        Raises:
            TypeError: If texts is one string, or holds something that is not a string.
        """
        parts = self.encoder.encode_batches(texts, modes=("dense",), show_progress=self.show_progress)
        return [row for part in parts for row in _floats(part.dense)]

    def embed_query(self, text: str) -> list[float]:
        """Return the dense vector of a query: d floats, unit length.

        Raises:
            TypeError: If text is not a string.
        """
        return _floats(self.encoder.encode([text], kind="query", modes=("dense",)).dense)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts as `embed_documents` does, without blocking the event loop."""
        if self.show_progress:
            return await asyncio.to_thread(self.embed_documents, texts)
        vectors = await self.encoder.aencode(texts, modes=("dense",))
        return await asyncio.to_thread(_floats, vectors.dense)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query as `embed_query` does, without blocking the event loop."""
        vectors = await self.encoder.aencode([text], kind="query", modes=("dense",))
        return _floats(vectors.dense)[0]


def _floats(dense: FloatArray) -> list[list[float]]:
    # Row by row: one call for all rows would hold the interpreter's lock, and so block the event loop.
    return [row.tolist() for row in dense]
