"""`M3Rerank`: nodes ranked anew by the score of all three modes."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import Field, SkipValidation, field_validator

from m3_integrations.llama_index.fields import EncoderFields, check_store
from m3_integrations.llama_index.nodes import SCORES_KEY, M3NodeWithScore, embedded_text, with_results
from m3_integrations.scoring import top_rows
from m3_integrations.search import rerank, resolve_weights
from m3_integrations.store import Store
from m3_integrations.vectors import M3Scores, ModeWeights

_dispatcher = get_dispatcher(__name__)


class M3Rerank(EncoderFields, BaseNodePostprocessor):
    """Ranks nodes by BGE-M3's combined score: dense, lexical and multi-vector, weighted.

    `pip install 'm3-integrations[llama-index]'`

    What is scored is a node's text for embedding models, so with its metadata. Results are copies, as
    `M3NodeWithScore`. Their metadata hold besides "m3_scores", the raw score in every mode, and with
    `keep_retrieval_score` "retrieval_score", the score they came with; neither is in a text for an embedding model
    or an LLM.

    Args:
        model: A checkpoint folder, or a repository of the hub.
        encoder: In the place of `model`: an encoder that is there already.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        top_n: How many nodes to keep, 1 or more.
        weights: How the modes count: `ModeWeights`, the name of a preset such as "miracl", or None for equal weights.
        score_threshold: Only nodes whose combined score is at least this.
        keep_retrieval_score: Whether to keep the score that a node came with.
        store: Nodes whose id and text a record in it has are scored from its vectors; only the others are encoded.
        callback_manager: Who is told about reranking events.

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), or unless there is one of
            model and encoder.
        FileNotFoundError: If there is no such model.

    Examples:
        ```python
        from llama_index.core.query_engine import RetrieverQueryEngine
        from m3_integrations.llama_index import M3Rerank

        reranker = M3Rerank(model="BAAI/bge-m3", top_n=3)
        engine = RetrieverQueryEngine.from_args(retriever, node_postprocessors=[reranker])
        response = engine.query("how do I rotate the keys?")
        response.source_nodes[0].metadata["m3_scores"]
        ```
    """

    top_n: int = Field(default=3, ge=1)
    weights: ModeWeights | str | None = None
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    keep_retrieval_score: bool = False
    store: SkipValidation[Store] | None = Field(default=None, exclude=True, repr=False)

    @field_validator("store", mode="before")
    @classmethod
    def _check_store(cls, store: Store | None) -> Store | None:
        return None if store is None else check_store(store)

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: ModeWeights | str | None) -> ModeWeights | str | None:
        resolve_weights(weights)
        return weights

    @classmethod
    def class_name(cls) -> str:
        """Give the name under which LlamaIndex knows the class."""
        return "M3Rerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("reranking needs a query, got none: pass query_bundle or query_str")
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        best: list[NodeWithScore] = []
        _dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model))
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                best = self._rank(nodes, query_bundle.query_str)
                event.on_end(payload={EventPayload.NODES: best})
        finally:
            _dispatcher.event(ReRankEndEvent(nodes=best))
        return best

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._postprocess_nodes, nodes, query_bundle)

    def _rank(self, nodes: list[NodeWithScore], query: str) -> list[NodeWithScore]:
        if not nodes:
            return []
        texts, ids = [embedded_text(found.node) for found in nodes], [found.node.node_id for found in nodes]
        scores = rerank(self.encoder, query, texts, ids=ids, store=self.store, weights=self.weights)
        return [
            self._scored(nodes[row], scores, row)
            for row in top_rows(scores.combined, self.top_n).tolist()
            if self.score_threshold is None or scores.combined[row] >= self.score_threshold
        ]

    def _scored(self, found: NodeWithScore, scores: M3Scores, row: int) -> M3NodeWithScore:
        each: dict[str, float] = {mode: float(getattr(scores, mode)[row]) for mode in scores.modes}
        results = {SCORES_KEY: each, **({"retrieval_score": found.score} if self.keep_retrieval_score else {})}
        return M3NodeWithScore(
            node=with_results(found.node, results), score=float(scores.combined[row]), m3_scores=each
        )
