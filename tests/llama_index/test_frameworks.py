"""Our classes inside LlamaIndex's own: query engines, fusion, pipelines."""

from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.extractors import BaseExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import BaseNode, Document, NodeWithScore, QueryBundle, TextNode

from m3_integrations import M3Encoder
from m3_integrations.llama_index import M3Embedding, M3HybridRetriever, M3NodeWithScore, M3Rerank
from tests.llama_index.conftest import CallbackRecorder, CountingEncoder, EventRecorder, ids_of

QUERY = "how are the signing keys rotated"


def engine_over(retriever: M3HybridRetriever, *, streaming: bool = False) -> RetrieverQueryEngine:
    """Five nodes found, two of them kept; the model that answers repeats its prompt."""
    manager = CallbackManager([])
    return RetrieverQueryEngine(
        retriever.with_options(similarity_top_k=5),
        get_response_synthesizer(llm=MockLLM(callback_manager=manager), streaming=streaming, callback_manager=manager),
        [M3Rerank(encoder=retriever.encoder, store=retriever.store, top_n=2, keep_retrieval_score=True)],
        callback_manager=manager,
    )


def check(prompt: str, sources: Sequence[NodeWithScore], retriever: M3HybridRetriever) -> None:
    """The two best nodes reached the prompt with their metadata, no other did, and no score."""
    found = retriever.with_options(similarity_top_k=5).retrieve(QUERY)
    assert ids_of(sources) == ids_of(found)[:2]
    for each, expected in zip(sources, found, strict=False):
        assert isinstance(each, M3NodeWithScore)
        assert each.score == pytest.approx(expected.score, abs=1e-6)
        assert each.node.metadata["retrieval_score"] == pytest.approx(expected.score, abs=1e-6)
        assert each.node.metadata["m3_scores"] == each.m3_scores
    for rank, each in enumerate(found):
        row = each.node.metadata["row"]
        assert (f"row: {row}\n\n{each.node.get_content()}" in prompt) == (rank < 2)
    assert QUERY in prompt
    assert "m3_scores" not in prompt
    assert "retrieval_score" not in prompt


async def test_a_query_engine_answers_from_what_we_found_and_reranked(on_network: M3HybridRetriever) -> None:
    engine = engine_over(on_network)
    for response in (engine.query(QUERY), await engine.aquery(QUERY)):
        check(str(response), response.source_nodes, on_network)
        assert response.metadata is not None
        assert {values["m3_scores"]["dense"] for values in response.metadata.values()} == {
            each.m3_scores["dense"]  # type: ignore[attr-defined]
            for each in response.source_nodes
        }


async def test_a_query_engine_streams(on_network: M3HybridRetriever) -> None:
    engine = engine_over(on_network, streaming=True)
    response = engine.query(QUERY)
    assert isinstance(response, StreamingResponse)
    tokens = list(response.response_gen)
    assert len(tokens) > 5
    check("".join(tokens), response.source_nodes, on_network)

    streamed = await engine.aquery(QUERY)
    assert isinstance(streamed, AsyncStreamingResponse)
    tokens = [token async for token in streamed.async_response_gen()]
    assert len(tokens) > 5
    check("".join(tokens), streamed.source_nodes, on_network)


async def test_a_query_engine_costs_one_pass_a_query(on_network: M3HybridRetriever) -> None:
    encoder = on_network.encoder
    assert isinstance(encoder, M3Encoder)
    engine, before = engine_over(on_network), encoder.stats.forward_passes
    engine.query("a question that is new")
    await engine.aquery("another new question")
    assert encoder.stats.forward_passes - before == 2


async def test_the_engines_callback_manager_is_told_of_reranking(
    on_network: M3HybridRetriever, instrumentation: EventRecorder
) -> None:
    recorder = CallbackRecorder(CBEventType.RERANKING)
    engine = RetrieverQueryEngine.from_args(
        on_network,
        llm=MockLLM(),
        node_postprocessors=[M3Rerank(encoder=on_network.encoder)],
        callback_manager=CallbackManager([recorder]),
    )
    engine.query(QUERY)
    await engine.aquery(QUERY)
    assert [name for name, _ in recorder.events] == ["start", "end"] * 2
    assert instrumentation.names("ReRank") == ["ReRankStartEvent", "ReRankEndEvent"] * 2
    assert instrumentation.names("Retrieval") == ["RetrievalStartEvent", "RetrievalEndEvent"] * 2


class OneNode(BaseRetriever):
    """Somebody else's retriever over the same nodes."""

    def __init__(self, node: TextNode) -> None:
        super().__init__()
        self.node = node

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=self.node, score=0.5)]


@pytest.mark.parametrize("use_async", [False, True])
@pytest.mark.parametrize("mode", list(FUSION_MODES))
async def test_fusion_recognises_our_nodes(
    retriever: M3HybridRetriever, nodes: list[TextNode], mode: FUSION_MODES, use_async: bool
) -> None:
    """It tells nodes apart by their hash, which the metadata are part of: scores in there would make copies of them."""
    parts = [retriever.with_options(mode="dense"), retriever.with_options(mode="lexical"), OneNode(nodes[3])]
    fusion = QueryFusionRetriever(
        list(parts), llm=MockLLM(), mode=mode, num_queries=1, use_async=use_async, similarity_top_k=99
    )
    each = [ids_of(part.retrieve("keys tea")) for part in parts]
    merged = set(each[0]) | set(each[1]) | {"n03"}
    assert len(merged) < len(each[0]) + len(each[1]) + 1
    for found in (fusion.retrieve("keys tea"), await fusion.aretrieve("keys tea")):
        assert len(found) == len(merged)
        assert set(ids_of(found)) == merged
        if mode == FUSION_MODES.RECIPROCAL_RANK:
            expected = {name: sum(1 / (60 + ids.index(name)) for ids in each if name in ids) for name in merged}
            assert {one.node.node_id: one.score for one in found} == pytest.approx(expected)


def test_fusion_of_generated_queries_merges_their_results(retriever: M3HybridRetriever) -> None:
    parts: list[BaseRetriever] = [retriever.with_options(similarity_top_k=40)]
    fusion = QueryFusionRetriever(
        parts, llm=MockLLM(), mode=FUSION_MODES.RECIPROCAL_RANK, num_queries=3, use_async=False, similarity_top_k=99
    )
    assert sorted(ids_of(fusion.retrieve("keys tea"))) == [f"n{row:02}" for row in range(40)]


class Shout(BaseExtractor):
    """Adds a key to the metadata of every node."""

    async def aextract(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        return [{"loud": node.get_content()[:8].upper()} for node in nodes]


async def test_nodes_of_a_pipeline_are_added_and_found(fake: CountingEncoder) -> None:
    text = " ".join(f"Sentence number {j} of this text." for j in range(12))
    documents = [Document(id_=f"d{i}", text=f"Document {i}. {text}") for i in range(3)]
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=40, chunk_overlap=0), Shout()])
    retriever = M3HybridRetriever(encoder=fake, similarity_top_k=99)
    nodes = list(await pipeline.arun(documents=documents))
    ids = await retriever.aadd_nodes(nodes)
    assert len(ids) == len(nodes) > 3
    assert all("loud: " in text for _, text in fake.encoded)
    found = {each.node.node_id: each.node for each in retriever.retrieve("sentence")}
    assert found == {node.node_id: node for node in nodes}
    assert retriever.delete_ref_doc("d1") == len([node for node in nodes if node.ref_doc_id == "d1"]) > 1


def test_a_pipeline_with_our_embedding_costs_one_pass_for_all_nodes(encoder: M3Encoder) -> None:
    documents = [Document(text=f"Document {i} about the keys.") for i in range(40)]
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(), M3Embedding(encoder=encoder)])
    nodes = pipeline.run(documents=documents)
    expected = encoder.encode([document.text for document in documents], modes=("dense",)).dense
    assert [node.embedding for node in nodes] == expected.tolist()
    assert (encoder.stats.forward_passes, encoder.stats.encoded_texts) == (1, 40)
