"""`M3HybridRetriever`: an encoder and a store as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Self, Unpack

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.ingestion import run_transformations
from llama_index.core.schema import BaseNode, Document, IndexNode, NodeWithScore, QueryBundle, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.vector_stores import MetadataFilters

from m3_integrations.fusion import DEFAULT_RRF_K
from m3_integrations.llama_index.fields import check_store
from m3_integrations.llama_index.filters import parse_filters
from m3_integrations.llama_index.nodes import REF_DOC_KEY, as_metadata, as_result, embedded_text, without_results
from m3_integrations.llama_index.settings import RetrieverSettings
from m3_integrations.search import Bm25, Explanation, Fusion, Searcher, SearchMode, SearchOptions, open_encoder
from m3_integrations.store import FilterLike, Store, open_store, parse_filter
from m3_integrations.vectors import Encoder, ModeWeights


class M3HybridRetriever(BaseRetriever):
    """Finds nodes by BGE-M3's dense and lexical vectors and ranks them by the exact score of all three modes.

    `pip install 'm3-integrations[llama-index]'`

    What is encoded is a node's text for embedding models, so with its metadata; of a query, its `query_str`. A node
    comes back as it was added (a `Document` as a `TextNode`, as in LlamaIndex's stores), in an `M3NodeWithScore`,
    whose `m3_scores` are the scores in every mode. They are not in the metadata, because `QueryFusionRetriever`
    recognises a node by them.

    Args:
        model: A checkpoint folder, or a repository of the hub.
        encoder: In the place of `model`: an encoder that is there already.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        store: Where the nodes are; a new one in memory if None.
        similarity_top_k: How many nodes to return at most.
        mode: Which modes rank: "all", "dense+lexical", "dense", "lexical" or "multi_vector".
        weights: How the modes count: `ModeWeights`, the name of a preset such as "miracl", or None for equal weights.
        filters: Only nodes whose metadata match: `MetadataFilters`, or a mapping such as `{"year": {"$gte": 2024}}`.
        score_threshold: Only nodes whose final score is at least this.
        pool_size: How many candidates the dense and the lexical leg find each.
        fusion: "weighted" mean of the exact scores, or "rrf".
        rrf_k: How little the first ranks stand out under "rrf".
        bm25: "extra" or "replace" lets BM25 find candidates too; for a store in memory.
        callback_manager: Who is told about retrieval events.
        object_map: The objects of `IndexNode`s by their `index_id`.
        objects: `IndexNode`s whose objects to add to that map.
        verbose: Whether LlamaIndex prints when it follows an `IndexNode`.

    Raises:
        TypeError: For an unknown argument, or one of a wrong type.
        ValueError: If an argument is out of range, or unless there is one of model and encoder.
        FileNotFoundError: If there is no such model.

    Examples:
        ```python
        from llama_index.core.query_engine import RetrieverQueryEngine
        from m3_integrations.llama_index import M3HybridRetriever

        retriever = M3HybridRetriever.from_documents(documents, model="BAAI/bge-m3", similarity_top_k=5)
        found = retriever.retrieve("how do I rotate the keys?")
        found[0].score, found[0].m3_scores

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
        mode: SearchMode = "all",
        weights: ModeWeights | str | None = None,
        filters: MetadataFilters | FilterLike = None,
        score_threshold: float | None = None,
        pool_size: int = 100,
        fusion: Fusion = "weighted",
        rrf_k: int = DEFAULT_RRF_K,
        bm25: Bm25 = "off",
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        # Before the encoder, so that a wrong setting is refused before a network is loaded.
        self._options = SearchOptions(
            k=similarity_top_k,
            mode=mode,
            weights=weights,
            filter=parse_filters(filters),
            score_threshold=score_threshold,
            pool_size=pool_size,
            fusion=fusion,
            rrf_k=rrf_k,
            bm25=bm25,
        )
        chosen = open_store() if store is None else check_store(store)
        self._searcher = Searcher(open_encoder(model, encoder=encoder, model_kwargs=model_kwargs), chosen)
        super().__init__(
            callback_manager=callback_manager,
            object_map=object_map,
            objects=objects,
            verbose=verbose,
        )

    @property
    def encoder(self) -> Encoder:
        """What encodes queries and nodes."""
        return self._searcher.encoder

    @property
    def store(self) -> Store:
        """Where the nodes are."""
        return self._searcher.store

    @property
    def similarity_top_k(self) -> int:
        """How many nodes to return at most; `with_options` gives a retriever that returns more or fewer."""
        return self._options.k

    @classmethod
    def from_nodes(
        cls, nodes: Iterable[BaseNode], *, show_progress: bool = False, **settings: Unpack[RetrieverSettings]
    ) -> Self:
        """Make a retriever and add nodes to it, as `add_nodes` does.

        Args:
            nodes: They are not changed.
            show_progress: Whether to draw a progress bar.
            **settings: The constructor's arguments; its errors are raised too.

        Raises:
            ValueError: If a node holds what JSON has no form for, or the store another model's vectors.
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
        **settings: Unpack[RetrieverSettings],
    ) -> Self:
        """Make a retriever and add documents to it, cut into nodes.

        Args:
            documents: They are not changed.
            transformations: What makes nodes of them; `Settings.transformations` if None, which cuts at sentences.
            show_progress: Whether to draw progress bars.
            **settings: The constructor's arguments; its errors are raised too.

        Raises:
            ValueError: If a node holds what JSON has no form for, or the store another model's vectors.
        """
        chosen = Settings.transformations if transformations is None else transformations
        retriever = cls(**settings)
        nodes = run_transformations(list(documents), chosen, show_progress=show_progress)
        retriever.add_nodes(nodes, show_progress=show_progress)
        return retriever

    def with_options(
        self,
        *,
        similarity_top_k: int | None = None,
        mode: SearchMode | None = None,
        weights: ModeWeights | str | None = None,
        filters: MetadataFilters | FilterLike = None,
        score_threshold: float | None = None,
    ) -> Self:
        """Give a retriever over the same encoder and store that is asked for something else, for one request say.

        None leaves a setting as it is. `filters` take the place of the constructor's, so `{}` asks for all nodes.

        Raises:
            TypeError: For an argument of a wrong type.
            ValueError: If one is out of range.
        """
        asked = {"k": similarity_top_k, "mode": mode, "weights": weights, "score_threshold": score_threshold}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if filters is not None:
            changes["filter"] = parse_filters(filters)
        other = copy.copy(self)
        other._options = dataclasses.replace(self._options, **changes)
        return other

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [as_result(hit) for hit in self._searcher.search(query_bundle.query_str, self._options)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = await self._searcher.asearch(query_bundle.query_str, self._options)
        return await asyncio.to_thread(lambda: [as_result(hit) for hit in hits])

    def add_nodes(self, nodes: Iterable[BaseNode], *, show_progress: bool = False) -> list[str]:
        """Add nodes, replacing those with the same ids.

        Args:
            nodes: They are not changed. Metadata are stored as JSON has them, the scores of an earlier reranking not
                at all. The object of an `IndexNode` that is no node itself goes into this retriever's `object_map`.
            show_progress: Whether to draw a progress bar.

        Returns:
            The ids.

        Raises:
            ValueError: If a node holds what JSON has no form for, or the store another model's vectors.
        """
        chosen = [self._storable(node) for node in nodes]
        return self._searcher.add(
            [embedded_text(node) for node in chosen],
            ids=[node.node_id for node in chosen],
            metadatas=[as_metadata(node) for node in chosen],
            show_progress=show_progress,
        )

    async def aadd_nodes(self, nodes: Iterable[BaseNode], *, show_progress: bool = False) -> list[str]:
        """Do what `add_nodes` does without blocking the event loop."""
        return await asyncio.to_thread(self.add_nodes, nodes, show_progress=show_progress)

    def _storable(self, node: BaseNode) -> BaseNode:
        if isinstance(node, IndexNode) and node.obj is not None and not isinstance(node.obj, BaseNode):
            self.object_map[node.index_id] = node.obj
            node = node.model_copy(update={"obj": None})
        return without_results(node)

    def delete_nodes(
        self, node_ids: Sequence[str] | None = None, *, filters: MetadataFilters | FilterLike = None
    ) -> int:
        """Delete nodes by their ids, or those that match filters.

        Args:
            node_ids: Those that are not there are passed over.
            filters: In the place of node_ids: which nodes to delete.

        Returns:
            How many were deleted.

        Raises:
            TypeError: If node_ids is one string.
            ValueError: Unless there is one of node_ids and filters, or if the filters would match everything.
        """
        if isinstance(node_ids, str):
            raise TypeError(f"node_ids must be a sequence of strings, got the string {node_ids!r}: pass [{node_ids!r}]")
        if (node_ids is None) == (filters is None):
            raise ValueError(f"delete needs either node_ids or filters, got {node_ids!r} and {filters!r}")
        if node_ids is not None:
            return self.store.delete(node_ids)
        parsed = parse_filters(filters)
        if parsed is None:
            raise ValueError("empty filters match everything: delete by node_ids if that is what you want")
        return self.store.delete_where(parsed)

    async def adelete_nodes(
        self, node_ids: Sequence[str] | None = None, *, filters: MetadataFilters | FilterLike = None
    ) -> int:
        """Do what `delete_nodes` does without blocking the event loop."""
        return await asyncio.to_thread(self.delete_nodes, node_ids, filters=filters)

    def delete_ref_doc(self, ref_doc_id: str) -> int:
        """Delete the nodes that were made of a document. Gives the number deleted."""
        return self.delete_nodes(filters=parse_filter({REF_DOC_KEY: ref_doc_id}))

    async def adelete_ref_doc(self, ref_doc_id: str) -> int:
        """Do what `delete_ref_doc` does without blocking the event loop."""
        return await asyncio.to_thread(self.delete_ref_doc, ref_doc_id)

    def explain(self, query: str, node_id: str) -> Explanation:
        """Say why a node matches a query: its scores, the shared tokens, and what each query token found.

        Raises:
            KeyError: If there is no such node.
        """
        return self._searcher.explain(query, node_id)
