"""`M3VectorStore`: an encoder and a store as a LlamaIndex vector store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Self

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores import MetadataFilters, VectorStoreQuery, VectorStoreQueryResult
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from pydantic import BeforeValidator, Field, PrivateAttr, SkipValidation

from m3_integrations.llama_index.adding import add_nodes, check_embeddings, check_nodes, delete_document
from m3_integrations.llama_index.embeddings import M3Embedding, QueryEmbedding
from m3_integrations.llama_index.fields import Calibrated, EncoderFields, Integer, Weights
from m3_integrations.llama_index.filters import as_filter
from m3_integrations.llama_index.nodes import as_node, without_results
from m3_integrations.llama_index.querying import AskedQuery, read_query
from m3_integrations.search import Bm25, Fusion, Hit, Searcher, SearchMode, SearchOptions, check_store, diverse_hits
from m3_integrations.store import Record, Store, matches, open_store, parse_filter
from m3_integrations.store.memory import MemoryStore

_DELETED_AT_ONCE: Final = 1000


class M3VectorStore(EncoderFields, BasePydanticVectorStore):
    """An encoder and a store as a LlamaIndex vector store: a query searches by all three modes of BGE-M3.

    `pip install 'PATH_TO_THE_CLONE[llama-index]'`

    **Adding nodes.** The store encodes a node's text for embedding models, which includes its metadata, in all three
    modes. Where LlamaIndex asks for an embedding model, pass this object's `embed_model`: it embeds only queries, so
    each text costs one forward pass. With `M3Embedding` instead, each text costs two passes (one if the store keeps no
    multi-vectors), because an index asks it for dense vectors only. Embeddings that nodes already have are compared
    with our dense vectors and not stored; embeddings of another model are refused.

    **Replacing nodes.** As for `M3HybridRetriever.add_nodes`, a node replaces the node with the same id. If a document
    is added again, the nodes of its earlier version are deleted after the new ones are stored. So a script that runs
    again leaves the same records, and encodes only new texts. A document is identified by its `id_`: pass
    `filename_as_id=True` to `SimpleDirectoryReader`. To delete the nodes of removed documents, use `delete`, or an
    `IngestionPipeline` with a docstore and the strategy "upserts_and_delete".

    **Dates** in the metadata of a node and of its related nodes, such as `source_node`, come back as dates. Dates in
    the metadata of an `IndexNode`'s `obj` come back as strings. So do those of related nodes if an earlier version
    stored the node, until the node is added again.

    **Modes and fields of a query.**

    - DEFAULT: this store's own options; without any, all three modes with equal weights.
    - HYBRID and SEMANTIC_HYBRID: all three modes.
    - SPARSE and TEXT_SEARCH: the lexical mode only.
    - MMR: the dense mode finds 4 · `similarity_top_k` candidates (at least 20). Of these, nodes are chosen that are
      like the query and unlike the nodes chosen before. The returned similarities are those to the query.
    - `alpha`, in DEFAULT and the hybrid modes: the share of the dense and multi-vector modes, from 0 (only lexical) to
      1 (no lexical). The weights become alpha · d/(d+m) dense, 1 - alpha lexical and alpha · m/(d+m) multi-vector,
      where d and m are the dense and multi-vector weights before. `alpha=2/3` means equal weights.
    - `query_embedding` is scaled to unit length and replaces the query's dense vector; `query_str` is encoded for the
      other modes. So with HyDE the generated texts decide what the dense mode finds. A query with only an embedding is
      ranked by the dense mode only. A query with only a text is encoded.
    - `similarity_top_k` nodes are returned; if given, `sparse_top_k` in the lexical mode and `hybrid_top_k` in the
      hybrid modes. In a hybrid mode each leg finds at least `sparse_top_k` candidates.
    - `filters`, `doc_ids` and `node_ids` must all match. An empty `node_ids` has no effect, because
      `VectorStoreIndex.as_retriever` always passes the ids of the index's own table, which is empty if the store keeps
      texts. If the index holds `IndexNode`s or `ImageNode`s, the table has only their ids, and such a retriever finds
      only them: use `VectorIndexRetriever(index)`. An empty `doc_ids` matches nothing.

    LlamaIndex passes options for one query as `vector_store_kwargs`. A `min_probability` refuses queries that are not
    ranked by all three modes: those need `min_probability=0`.

    Args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        store: The store for the nodes; a new one in memory if None.
        mode, weights, score_threshold, pool_size, fusion, rrf_k, bm25, calibration, min_probability: Options of a
            query; `m3_integrations.SearchOptions` explains each.

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), if neither model nor
            encoder is given, or if they disagree.
        FileNotFoundError: If the model does not exist.

    Examples:
        ```python
        from llama_index.core import StorageContext, VectorStoreIndex
        from m3_integrations import open_store
        from m3_integrations.llama_index import M3VectorStore

        vectors = M3VectorStore(model="BAAI/bge-m3", store=open_store("./my-index"))
        context = StorageContext.from_defaults(vector_store=vectors)
        index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=vectors.embed_model)
        index.as_retriever(similarity_top_k=5, vector_store_kwargs={"weights": "miracl"}).retrieve("rotate the keys")
        ```

        In a later process:

        ```python
        index = VectorStoreIndex.from_vector_store(vectors, embed_model=vectors.embed_model)
        ```
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    store: Annotated[SkipValidation[Store], BeforeValidator(lambda store: check_store(store) or open_store())] = Field(
        default_factory=open_store, exclude=True, repr=False
    )
    mode: SearchMode = SearchOptions.mode
    weights: Weights = None
    score_threshold: float | None = SearchOptions.score_threshold
    pool_size: Integer = SearchOptions.pool_size
    fusion: Fusion = SearchOptions.fusion
    rrf_k: Integer = SearchOptions.rrf_k
    bm25: Bm25 = SearchOptions.bm25
    calibration: Calibrated = SearchOptions.calibration
    min_probability: float | None = SearchOptions.min_probability

    _made: Searcher | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Check the options, then open the encoder, so that a wrong option is refused before a model loads."""
        self._options()
        super().model_post_init(context)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "M3VectorStore"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make a vector store from the result of `to_dict`, which does not hold the store: pass `store` too.

        Raises:
            TypeError: If no store is passed.
        """
        if data.get("store") is None and kwargs.get("store") is None:
            raise TypeError(
                "a dump of M3VectorStore does not hold its store: pass from_dict(dump, store=open_store(...))"
            )
        return super().from_dict(data, **kwargs)

    @property
    def client(self) -> Store:
        """The store."""
        return self.store

    @property
    def embed_model(self) -> M3Embedding:
        """The embedding model to use with this store: it embeds only queries, because the store encodes the texts.

        Its embedding of a text is an empty list, which this store accepts. Other stores refuse it, or accept it and
        fail in a search: for them, and for `Settings.embed_model`, use `M3Embedding`.
        """
        return QueryEmbedding(encoder=self.encoder)

    def _options(self) -> SearchOptions:
        return SearchOptions(
            mode=self.mode,
            weights=self.weights,
            score_threshold=self.score_threshold,
            pool_size=self.pool_size,
            fusion=self.fusion,
            rrf_k=self.rrf_k,
            bm25=self.bm25,
            calibration=self.calibration,
            min_probability=self.min_probability,
        )

    def _searcher(self) -> Searcher:
        """Return a searcher for the current fields, which a caller may have changed since the last call."""
        options, made = self._options(), self._made
        if made is None or made.encoder is not self.encoder or made.store is not self.store:
            made = Searcher(self.encoder, self.store, options)
        elif made.options != options:
            made = made.with_options(options)
        self._made = made
        return made

    def add(
        self,
        nodes: Sequence[BaseNode],
        *,
        replace_documents: bool = False,
        show_progress: bool = False,
        **unknown: Any,
    ) -> list[str]:
        """Add nodes as `M3HybridRetriever.add_nodes` does, after checking that their embeddings are of this model.

        Args:
            nodes: They are not changed. Their embeddings may be missing.
            replace_documents: Whether these are all nodes of their documents, so that the store deletes the documents'
                other nodes. `VectorStoreIndex` passes 2,048 nodes at a time: leave it False there.
            show_progress: Whether to draw a progress bar.
            **unknown: Refused.

        Returns:
            The ids.

        Raises:
            TypeError: For an unknown argument, if nodes is a single node, or if it holds something that is not a node.
            ValueError: If an embedding is not this model's vector of the node's text, with or without its metadata, if
                metadata hold a value that cannot be kept, or the store holds another model's vectors. Nothing is stored
                then.
            IncompleteAddError: If it fails when some nodes may already be stored. Adding all of them again makes no
                duplicates.
        """
        _refuse(unknown, "add")
        chosen = [without_results(node) for node in check_nodes(nodes)]
        check_embeddings(self.encoder, chosen)
        return add_nodes(self._searcher(), chosen, replace_documents=replace_documents, show_progress=show_progress)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes as `add` does, without blocking the event loop."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document, and the document itself if it was added whole.

        Raises:
            TypeError: For an unknown argument, or if ref_doc_id is not a string.
        """
        _refuse(delete_kwargs, "delete")
        delete_document(self._searcher(), ref_doc_id)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete nodes as `delete` does, without blocking the event loop."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes with these ids, or those that match the filters; with both, only nodes that fit both.

        Args:
            node_ids: Ids of the nodes; unknown ids are skipped.
            filters: Filters on the nodes' metadata.
            **delete_kwargs: Refused.

        Raises:
            ValueError: If neither is given, or only filters are given and they are empty. `clear` deletes everything.
        """
        _refuse(delete_kwargs, "delete_nodes")
        if node_ids is not None and filters is not None:
            node_ids = [record.id for record in self._records(node_ids, filters)]
            filters = None
        self._searcher().delete(node_ids, filter=as_filter(filters))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes as `delete_nodes` does, without blocking the event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def clear(self) -> None:
        """Delete every record of the store, including records that were not added as nodes."""
        ids = [record.id for record in self.store.records()]
        for start in range(0, len(ids), _DELETED_AT_ONCE):
            self.store.delete(ids[start : start + _DELETED_AT_ONCE])

    async def aclear(self) -> None:
        """Delete everything as `clear` does, without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes with these ids in the given order, those that match the filters, or all nodes.

        Unknown ids are skipped.
        """
        return [as_node(record.id, record.text, record.metadata) for record in self._records(node_ids, filters)]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return nodes as `get_nodes` does, without blocking the event loop."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    def _records(self, node_ids: Sequence[str] | None, filters: MetadataFilters | None) -> Iterator[Record]:
        parsed = parse_filter(as_filter(filters))
        found = self.store.records() if node_ids is None else self.store.get(node_ids)
        return (record for record in found if matches(parsed, record.metadata))

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes that answer a query best, as the class's docstring describes, with their final scores.

        Args:
            query: LlamaIndex's query.
            **kwargs: The options of the constructor from `mode` to `min_probability`, for this query; None means this
                store's own option. `mmr_threshold` may be given here too.

        Raises:
            TypeError: For an unknown option, or one of a wrong type.
            ValueError: If an option is out of range or has no meaning in the query's mode, the query has neither a text
                nor an embedding, or the store holds another model's vectors.
        """
        asked = self._asked(query, kwargs)
        hits = self._searcher().search(asked.text, dense=asked.dense, ids=asked.ids, **asked.options)
        return self._result(hits, asked)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return nodes as `query` does, without blocking the event loop."""
        asked = await asyncio.to_thread(self._asked, query, kwargs)  # may call a server
        hits = await self._searcher().asearch(asked.text, dense=asked.dense, ids=asked.ids, **asked.options)
        return await asyncio.to_thread(self._result, hits, asked)

    def _asked(self, query: VectorStoreQuery, given: Mapping[str, Any]) -> AskedQuery:
        stored = self.store.modes or self.store.kept_modes
        kept = [mode for mode in self.encoder.modes if mode in stored]
        return read_query(query, self._options(), given, kept)

    def _result(self, hits: Sequence[Hit], asked: AskedQuery) -> VectorStoreQueryResult:
        if asked.diversity is not None:
            hits = diverse_hits(self.store, hits, asked.diversity.n, asked.diversity.threshold)
        return VectorStoreQueryResult(
            nodes=[as_node(hit.id, hit.text, hit.metadata) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Return when everything is durable in the store's own folder or on its server; the path is not used.

        Raises:
            ValueError: If the store is in memory: its records would be missing when LlamaIndex loads the rest again.
        """
        del persist_path, fs
        if isinstance(self.store, MemoryStore):
            raise ValueError(  # noqa: TRY004 - it is the wrong store, not a wrong type of argument
                "a store in memory cannot be persisted: make the vector store with store=open_store(FOLDER)"
            )
        self.store.flush()


def _refuse(unknown: dict[str, Any], name: str) -> None:
    if unknown:
        raise TypeError(f"{name} has no argument {', '.join(sorted(unknown))}")
