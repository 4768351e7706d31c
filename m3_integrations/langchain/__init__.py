"""BGE-M3 for LangChain: embeddings, a hybrid retriever, a vector store, a reranker and more on one network."""

try:
    from m3_integrations.langchain.documents import M3Document
    from m3_integrations.langchain.embeddings import M3Embeddings
    from m3_integrations.langchain.excerpt import M3Excerpt
    from m3_integrations.langchain.rerank import M3CrossEncoder, M3Rerank
    from m3_integrations.langchain.retriever import M3HybridRetriever
    from m3_integrations.langchain.translator import M3Translator
    from m3_integrations.langchain.vectorstore import M3VectorStore
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise ImportError(
        "m3_integrations.langchain needs langchain-core: pip install 'PATH_TO_THE_CLONE[langchain]'"
    ) from error

__all__ = [
    "M3CrossEncoder",
    "M3Document",
    "M3Embeddings",
    "M3Excerpt",
    "M3HybridRetriever",
    "M3Rerank",
    "M3Translator",
    "M3VectorStore",
]
