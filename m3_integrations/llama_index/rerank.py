"""`M3Rerank`: reranks nodes by the score of all three modes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import BeforeValidator, Field, SkipValidation

from m3_integrations.llama_index.fields import EncoderFields, Integer, Weights
from m3_integrations.llama_index.nodes import RETRIEVAL_SCORE_KEY, SCORES_KEY, M3NodeWithScore, with_results
from m3_integrations.search import Ranked, check_ranking, check_store, rerank
from m3_integrations.store import Store

_dispatcher = get_dispatcher(__name__)


class M3Rerank(EncoderFields, BaseNodePostprocessor):
    """Ranks nodes by BGE-M3's combined score: dense, lexical and multi-vector, weighted.

    `pip install 'PATH_TO_THE_CLONE[llama-index]'`

    The scored text is a node's text for embedding models, which includes its metadata. Results are copies of the class
    `M3NodeWithScore`, with `score` and `m3_scores` like those of `M3HybridRetriever`. The node's metadata have
    "m3_scores" too, for code that keeps only the node. With `keep_retrieval_score` they also have "retrieval_score",
    the score that the node came with. Both keys are hidden from embedding models and LLMs.

    Args:
        model: A checkpoint folder, a repository of the hub, or the URL of an `m3 serve`.
        encoder: An existing encoder, instead of `model`.
        model_kwargs: Further arguments of `M3Encoder`; only with `model`.
        top_n: How many nodes to keep, 1 or more.
        weights: How much each mode counts: `ModeWeights`, the name of a preset such as "miracl", three numbers or a
            mapping of them; equal if None.
        score_threshold: Only nodes whose combined score is at least this. The score is -1 or more. It has no upper
            bound unless the lexical weight is 0, because lexical scores are not bounded.
        keep_retrieval_score: Whether to keep the score that a node came with.
        store: Vectors are read from it for a node whose id and text equal a record's; only other nodes are encoded.
        callback_manager: Receives LlamaIndex's reranking events.

    Raises:
        ValueError: For an unknown argument or one out of range (pydantic's ValidationError), if neither model nor
            encoder is given, or if they disagree.
        FileNotFoundError: If the model does not exist.

    Examples:
        ```python
        from llama_index.core.query_engine import RetrieverQueryEngine
        from m3_integrations.llama_index import M3Rerank

        reranker = M3Rerank(model="BAAI/bge-m3", top_n=3)
        engine = RetrieverQueryEngine.from_args(retriever, node_postprocessors=[reranker])
        response = engine.query("how do I rotate the keys?")
        response.source_nodes[0].score, response.source_nodes[0].m3_scores
        ```
    """

    top_n: Integer = Field(default=3, ge=1)
    weights: Weights = None
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    keep_retrieval_score: bool = False
    store: Annotated[SkipValidation[Store | None], BeforeValidator(check_store)] = Field(
        default=None, exclude=True, repr=False
    )

    def model_post_init(self, context: Any, /) -> None:
        """Open the encoder, and warn if it lacks modes."""
        super().model_post_init(context)
        check_ranking(self.encoder, self.weights)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "M3Rerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("reranking needs a query, got none: pass query_bundle or query_str")
        nodes = list(nodes)
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
        ranked = rerank(
            self.encoder,
            query,
            [found.node.get_content(MetadataMode.EMBED) for found in nodes],
            ids=[found.node.node_id for found in nodes],
            store=self.store,
            weights=self.weights,
            top_n=self.top_n,
            score_threshold=self.score_threshold,
        )
        return [self._with_results(nodes[each.row], each) for each in ranked]

    def _with_results(self, found: NodeWithScore, ranked: Ranked) -> M3NodeWithScore:
        results: dict[str, Any] = {SCORES_KEY: ranked.scores}
        if self.keep_retrieval_score:
            results[RETRIEVAL_SCORE_KEY] = found.score
        return M3NodeWithScore(node=with_results(found.node, results), score=ranked.score, m3_scores=ranked.scores)
