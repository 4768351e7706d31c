"""BGE-M3 for LlamaIndex: embeddings, sparse vectors, a hybrid retriever and a reranker on one network."""

try:
    from m3_integrations.llama_index.embeddings import M3Embedding
    from m3_integrations.llama_index.excerpt import M3Excerpt
    from m3_integrations.llama_index.nodes import M3NodeWithScore
    from m3_integrations.llama_index.rerank import M3Rerank
    from m3_integrations.llama_index.retriever import M3HybridRetriever
    from m3_integrations.llama_index.sparse import M3SparseEmbedding, sparse_doc_fn, sparse_query_fn
    from m3_integrations.llama_index.vector_store import M3VectorStore
except ModuleNotFoundError as error:
    # Other LlamaIndex packages share the namespace llama_index, so it may exist without the core.
    if error.name not in {"llama_index", "llama_index.core"}:
        raise
    raise ImportError(
        "m3_integrations.llama_index needs llama-index-core: pip install 'PATH_TO_THE_CLONE[llama-index]'"
    ) from error

__all__ = [
    "M3Embedding",
    "M3Excerpt",
    "M3HybridRetriever",
    "M3NodeWithScore",
    "M3Rerank",
    "M3SparseEmbedding",
    "M3VectorStore",
    "sparse_doc_fn",
    "sparse_query_fn",
]
