"""`M3HybridRetriever`: an encoder and a store as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, Unpack

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.ingestion import run_transformations
from llama_index.core.schema import BaseNode, Document, IndexNode, NodeWithScore, QueryBundle, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.vector_stores import MetadataFilters

from m3_integrations.llama_index.adding import add_nodes, check_nodes, delete_document, delete_nodes_of
from m3_integrations.llama_index.filters import as_filter
from m3_integrations.llama_index.nodes import as_result, without_results
from m3_integrations.llama_index.splitting import split_long_nodes
from m3_integrations.search import (
    Evidence,
    Explanation,
    Missing,
    RankingKeywords,
    Searcher,
    SearchOptions,
    check_names,
    check_options,
    check_store,
    open_encoder,
)
from m3_integrations.store import FilterLike, Store, open_store
from m3_integrations.vectors import Encoder, FloatArray


class M3HybridRetriever(BaseRetriever):
    """A retriever that finds nodes by dense and lexical vectors and ranks them by exact scores of all three modes.

    `pip install 'PATH_TO_THE_CLONE[llama-index]'`

    Of a node, its text for embedding models is encoded, which contains metadata; of a query, its `query_str`. A query's
    `embedding`, or the mean embedding of its `custom_embedding_strs` (as HyDE sets them), replaces the query's own
    dense vector; the mode "lexical" does not use it. Without a `query_str` only the dense mode ranks. A node is
    returned as it was added (a `Document` as a `TextNode`, as in LlamaIndex's stores), in an `M3NodeWithScore`, whose
    `m3_scores` are the scores in every mode. These are not in the metadata, because `QueryFusionRetriever` identifies a
    node by its metadata.

    Args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        store: The store of the nodes; a new one in memory if None.
        similarity_top_k: The most nodes to return.
        filters: Only nodes whose metadata match: `MetadataFilters`, or a mapping such as `{"year": {"$gte": 2024}}`.
        callback_manager: Receives the retrieval events.
        object_map: The objects of `IndexNode`s by their `index_id`.
        objects: `IndexNode`s whose objects are added to this map.
        verbose: Whether LlamaIndex prints when it follows an `IndexNode`.
        **options: `mode`, `weights`, `score_threshold`, `pool_size`, `fusion`, `rrf_k`, `bm25`, `calibration` and
            `min_probability`; `m3_integrations.SearchOptions` explains each.

    Raises:
        TypeError: For an unknown argument, or one of a wrong type.
        ValueError: If an argument is out of range, neither model nor encoder is given, or they disagree.
        FileNotFoundError: If the model does not exist.

    Examples:
        ```python
        from llama_index.core.query_engine import RetrieverQueryEngine
        from m3_integrations.llama_index import M3HybridRetriever

        retriever = M3HybridRetriever.from_documents(documents, model="BAAI/bge-m3", similarity_top_k=5)
        found = retriever.retrieve("how do I rotate the keys?")
        found[0].score, found[0].m3_scores  # the same two after `M3Rerank`, and in an engine's source_nodes

        engine = RetrieverQueryEngine.from_args(retriever)
        engine.query("how do I rotate the keys?")
        ```

        Nodes of an `IngestionPipeline` need no embedding model in it:

        ```python
        retriever.add_nodes(pipeline.run(documents=documents))
        ```
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        encoder: Encoder | None = None,
        model_kwargs: dict[str, Any] | None = None,
        store: Store | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: MetadataFilters | FilterLike = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
        **options: Unpack[RankingKeywords],
    ) -> None:
        _check_options(options)
        # Before the encoder: a wrong setting is refused before a network is loaded.
        asked = SearchOptions(k=DEFAULT_SIMILARITY_TOP_K).changed(
            k=similarity_top_k, filter=as_filter(filters), **options
        )
        chosen = check_store(store) or open_store()
        check_options(asked, chosen)
        self._searcher = Searcher(open_encoder(model, encoder=encoder, model_kwargs=model_kwargs), chosen, asked)
        super().__init__(
            callback_manager=callback_manager,
            object_map=object_map,
            objects=objects,
            verbose=verbose,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.encoder!r}, {self.store!r}, {self._searcher.options!r})"

    @property
    def encoder(self) -> Encoder:
        """The encoder of queries and nodes."""
        return self._searcher.encoder

    @property
    def store(self) -> Store:
        """The store of the nodes."""
        return self._searcher.store

    @property
    def similarity_top_k(self) -> int:
        """The most nodes to return. To change it for one request, use the retriever that `with_options` returns."""
        return self._searcher.options.k

    @similarity_top_k.setter
    def similarity_top_k(self, similarity_top_k: int) -> None:
        self._searcher = self._searcher.with_options(self._searcher.options.changed(k=similarity_top_k))

    @classmethod
    def from_nodes(cls, nodes: Iterable[BaseNode], *, show_progress: bool = False, **settings: Any) -> Self:
        """Make a retriever and add nodes to it, as `add_nodes` does.

        Args:
            nodes: They are not changed.
            show_progress: Whether to draw a progress bar.
            **settings: The constructor's arguments; its errors are raised too.

        Raises:
            ValueError: If metadata hold what cannot be kept, or the store holds another model's vectors.
        """
        retriever = cls(**settings)
        retriever.add_nodes(nodes, show_progress=show_progress)
        return retriever

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        *,
        transformations: Sequence[TransformComponent] | None = None,
        show_progress: bool = False,
        **settings: Any,
    ) -> Self:
        """Make a retriever and add documents to it, cut into nodes.

        If the store has other nodes of these documents, they are deleted after the new ones are stored. A text that it
        has of them already is not encoded again. A document is identified by its `id_`. `SimpleDirectoryReader` makes
        this id from the file's name if `filename_as_id=True`; otherwise it is random.

        Args:
            documents: They are not changed.
            transformations: They make nodes of the documents. If None, `Settings.transformations`, which cuts at
                sentences; a node that is still longer than the model reads is split by the model's tokens.
            show_progress: Whether to draw progress bars.
            **settings: The constructor's arguments; its errors are raised too.

        Raises:
            TypeError: If documents is a single one, or holds anything but documents.
            ValueError: If metadata hold what cannot be kept, or the store holds another model's vectors.
        """
        given = check_nodes(documents, Document)
        chosen = Settings.transformations if transformations is None else transformations
        retriever = cls(**settings)
        nodes = run_transformations(given, chosen, show_progress=show_progress)
        if transformations is None:
            nodes = split_long_nodes(nodes, retriever.encoder)
        retriever.add_nodes(nodes, replace_documents=True, show_progress=show_progress)
        kept = {node.ref_doc_id or node.node_id for node in nodes}
        delete_nodes_of(retriever._searcher, [each.id_ for each in given if each.id_ not in kept])
        return retriever

    def with_options(
        self,
        *,
        similarity_top_k: int | None = None,
        filters: MetadataFilters | FilterLike = None,
        **options: Unpack[RankingKeywords],
    ) -> Self:
        """Return a retriever over the same encoder and store with other options, for example for one request.

        None keeps an option. The filters `{}` mean no filter.

        Args:
            similarity_top_k: As in the constructor.
            filters: As in the constructor.
            **options: As in the constructor.

        Raises:
            TypeError: For an unknown argument, or one of a wrong type.
            ValueError: If an argument is out of range.
        """
        _check_options(options)
        asked = self._searcher.options.changed(k=similarity_top_k, filter=as_filter(filters), **options)
        other = copy.copy(self)
        other._searcher = self._searcher.with_options(asked)
        return other

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        dense = None if query_bundle.embedding is None else np.array(query_bundle.embedding, dtype=np.float32)
        if dense is None and query_bundle.custom_embedding_strs:
            # In all modes: the query is usually one of these texts, and then the search finds it in the cache.
            dense = self.encoder.encode(query_bundle.custom_embedding_strs, kind="query").dense.mean(axis=0)
        return [as_result(hit) for hit in self._searcher.search(_text(query_bundle, dense), dense=dense)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        dense = None if query_bundle.embedding is None else np.array(query_bundle.embedding, dtype=np.float32)
        if dense is None and query_bundle.custom_embedding_strs:
            vectors = await self.encoder.aencode(query_bundle.custom_embedding_strs, kind="query")
            dense = vectors.dense.mean(axis=0)
        hits = await self._searcher.asearch(_text(query_bundle, dense), dense=dense)
        return await asyncio.to_thread(lambda: [as_result(hit) for hit in hits])

    def add_nodes(
        self, nodes: Iterable[BaseNode], *, replace_documents: bool = False, show_progress: bool = False
    ) -> list[str]:
        """Add nodes, replacing those with the same ids and those that their documents had before.

        So a script that is run again leaves the same nodes, although LlamaIndex's splitters make new ids every time,
        and only texts that the store does not have of the same document are encoded. After all nodes are stored, the
        nodes of an earlier version of a document are deleted (the document's hash in the nodes' relationships shows the
        version), and older copies of the same piece. A document that is added in several calls keeps the nodes of all
        of them, except of equal pieces that nothing links: pieces that name each other, or the same node, as neighbour,
        parent or child are linked. A node that is added again by its own id replaces that node alone. Nodes of a
        document that no longer exists are not deleted: see `delete_ref_doc`.

        Args:
            nodes: They are not changed. The scores of an earlier reranking are not stored. The object of an
                `IndexNode` is put into this retriever's `object_map` if it is not a node.
            replace_documents: Whether these are all nodes of their documents. Then all other nodes of them are deleted,
                also those of the same version that were cut in another way.
            show_progress: Whether to draw a progress bar.

        Returns:
            The ids.

        Raises:
            TypeError: If nodes is a single one, or holds anything but nodes.
            ValueError: If metadata have a value that cannot be kept (see `m3_integrations.store.values`), or the store
                holds another model's vectors. Then nothing was added.
            IncompleteAddError: If it fails after some nodes may have been stored, for example on a full disk. Adding
                all of them again makes no duplicates.
        """
        given = check_nodes(nodes)
        objects = {node.index_id: node.obj for node in given if isinstance(node, IndexNode) and _has_object(node)}
        stored = [node.model_copy(update={"obj": None}) if _has_object(node) else node for node in given]
        chosen = list(map(without_results, stored))
        ids = add_nodes(self._searcher, chosen, replace_documents=replace_documents, show_progress=show_progress)
        self.object_map.update(objects)
        return ids

    async def aadd_nodes(
        self, nodes: Iterable[BaseNode], *, replace_documents: bool = False, show_progress: bool = False
    ) -> list[str]:
        """Add nodes as `add_nodes` does, without blocking the event loop."""
        return await asyncio.to_thread(
            self.add_nodes, nodes, replace_documents=replace_documents, show_progress=show_progress
        )

    def delete_nodes(
        self, node_ids: Sequence[str] | None = None, *, filters: MetadataFilters | FilterLike = None
    ) -> int:
        """Delete nodes by their ids, or those that match filters.

        Args:
            node_ids: The ids of the nodes to delete; unknown ids are skipped.
            filters: Filters for the nodes to delete, instead of node_ids.

        Returns:
            The number of deleted nodes.

        Raises:
            TypeError: If node_ids is one string.
            ValueError: If not exactly one of node_ids and filters is given, or if the filters are empty.
        """
        return self._searcher.delete(node_ids, filter=as_filter(filters))

    async def adelete_nodes(
        self, node_ids: Sequence[str] | None = None, *, filters: MetadataFilters | FilterLike = None
    ) -> int:
        """Delete nodes as `delete_nodes` does, without blocking the event loop."""
        return await asyncio.to_thread(self.delete_nodes, node_ids, filters=filters)

    def delete_ref_doc(self, ref_doc_id: str) -> int:
        """Delete the nodes of a document, or a document that was added whole, and return the number of deleted nodes.

        Raises:
            TypeError: If ref_doc_id is not a string.
        """
        return delete_document(self._searcher, ref_doc_id)

    async def adelete_ref_doc(self, ref_doc_id: str) -> int:
        """Delete nodes as `delete_ref_doc` does, without blocking the event loop."""
        return await asyncio.to_thread(self.delete_ref_doc, ref_doc_id)

    def explain(self, query: str, node_id: str) -> Explanation:
        """Return why a node matches a query: its scores, the shared tokens, and each query token's nearest token.

        Raises:
            KeyError: If there is no node with this id.
        """
        return self._searcher.explain(query, node_id)

    def explain_missing(self, query: str, node_id: str) -> Missing:
        """Return why this retriever does not find a node, as `Searcher.explain_missing` does."""
        return self._searcher.explain_missing(query, node_id)

    def spans(self, query: str, node_ids: Iterable[str]) -> list[Evidence]:
        """Return the scored sentences of the encoded texts of nodes, as `Searcher.spans` does."""
        return self._searcher.spans(query, node_ids)


def _text(query_bundle: QueryBundle, dense: FloatArray | None) -> str | None:
    """Return the text to encode; None if there is only a dense vector."""
    return query_bundle.query_str if query_bundle.query_str or dense is None else None


def _has_object(node: BaseNode) -> bool:
    """Return whether a node refers to an object that is not a node, and so cannot be stored."""
    return isinstance(node, IndexNode) and node.obj is not None and not isinstance(node.obj, BaseNode)


def _check_options(options: Mapping[str, Any]) -> None:
    known = ("similarity_top_k", "filters", *RankingKeywords.__annotations__)
    check_names(options, known)
