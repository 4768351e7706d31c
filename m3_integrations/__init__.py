"""BGE-M3 for LangChain and LlamaIndex: dense, lexical and multi-vector views from one load and one forward pass."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3_integrations.encoder import M3Encoder
    from m3_integrations.engine import EncoderStats
    from m3_integrations.remote import RemoteEncoder
    from m3_integrations.search import Hit, IncompleteAddError, Searcher, SearchOptions
    from m3_integrations.store import Record, Store, open_store
    from m3_integrations.vectors import PRESETS, Encoder, LexicalWeights, M3Scores, M3Vectors, ModeWeights

__all__ = [
    "PRESETS",
    "Encoder",
    "EncoderStats",
    "Hit",
    "IncompleteAddError",
    "LexicalWeights",
    "M3Encoder",
    "M3Scores",
    "M3Vectors",
    "ModeWeights",
    "Record",
    "RemoteEncoder",
    "SearchOptions",
    "Searcher",
    "Store",
    "open_store",
]

_HOMES = {
    "EncoderStats": "engine",
    "M3Encoder": "encoder",
    "RemoteEncoder": "remote",
    **dict.fromkeys(("Hit", "IncompleteAddError", "SearchOptions", "Searcher"), "search"),
    **dict.fromkeys(("Record", "Store", "open_store"), "store"),
    **dict.fromkeys(("PRESETS", "Encoder", "LexicalWeights", "M3Scores", "M3Vectors", "ModeWeights"), "vectors"),
}

_FRAMEWORKS = {
    **dict.fromkeys(("M3Excerpt", "M3HybridRetriever", "M3Rerank", "M3VectorStore"), ("langchain", "llama_index")),
    **dict.fromkeys(("M3CrossEncoder", "M3Document", "M3Embeddings", "M3Translator"), ("langchain",)),
    **dict.fromkeys(("M3Embedding", "M3NodeWithScore", "M3SparseEmbedding"), ("llama_index",)),
    "M3SparseEmbeddings": ("langchain_qdrant", "langchain_milvus"),
}


def __getattr__(name: str) -> Any:
    # On first use, so that importing the package loads neither torch nor transformers.
    if name == "__version__":
        return version("m3-integrations")
    if name in _FRAMEWORKS:
        homes = " or ".join(f"{__name__}.{module}" for module in _FRAMEWORKS[name])
        # Not an AttributeError: `from m3_integrations import ...` would replace its message.
        raise ImportError(f"{name} depends on the framework, so {__name__} does not have it: import it from {homes}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
