"""`M3VectorStore` alone: what LlamaIndex's own tests ask of a vector store, and what a query's fields mean."""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import VectorMemoryBlock
from llama_index.core.schema import (
    BaseNode,
    Document,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from m3_integrations import M3Encoder, ModeWeights, Searcher, open_store
from m3_integrations.llama_index import M3Embedding, M3Rerank, M3VectorStore
from m3_integrations.scoring import score_vectors
from m3_integrations.store import Store
from tests.adapters.drivers import longest_pause_s
from tests.fakes import FakeEncoder
from tests.llama_index.conftest import CountingEncoder, with_scores

M = VectorStoreQueryMode
QUERY = "keys tea"


@pytest.fixture(params=["in memory", "in a folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with open_store(None if request.param == "in memory" else tmp_path / "index") as opened:
        yield opened


@pytest.fixture
def vectors(store: Store, fake: CountingEncoder, nodes: list[TextNode]) -> M3VectorStore:
    filled = M3VectorStore(encoder=fake, store=store)
    filled.add(nodes)
    fake.encoded.clear()
    return filled


def asked(text: str | None = QUERY, k: int = 99, **fields: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_str=text, similarity_top_k=k, **fields)


def test_an_object_that_cannot_be_stored_is_named_with_its_node(vectors: M3VectorStore) -> None:
    n = vectors.store.count()
    node = IndexNode(id_="points", text="about keys", index_id="keys", obj=object())
    with pytest.raises(ValueError, match=r"node 'points' cannot be stored: .* pass nodes with other objects as obj"):
        vectors.add([TextNode(text="one more"), node])
    assert vectors.store.count() == n


def ids(found: VectorStoreQueryResult | Sequence[BaseNode]) -> list[str]:
    found = found.nodes or [] if isinstance(found, VectorStoreQueryResult) else found
    return [node.node_id for node in found]


def ranking(nodes: Sequence[TextNode], weights: ModeWeights, query: str = QUERY) -> dict[str, float]:
    """The nodes' scores by brute force, best first."""
    encoder = FakeEncoder()
    texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
    scores = score_vectors(encoder.encode([query], kind="query"), encoder.encode(texts), weights).combined
    order = np.argsort(-scores, kind="stable")
    return {nodes[row].node_id: float(scores[row]) for row in order}


def check(found: VectorStoreQueryResult, expected: dict[str, float], k: int = 99) -> None:
    assert ids(found) == found.ids == list(expected)[:k]
    assert found.similarities == pytest.approx(list(expected.values())[:k], abs=1e-3)
    assert {type(each) for each in found.similarities or []} <= {float}


def where(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        (M.DEFAULT, ModeWeights()),
        (M.HYBRID, ModeWeights()),
        (M.SEMANTIC_HYBRID, ModeWeights()),
        (M.SPARSE, ModeWeights(0, 1, 0)),
        (M.TEXT_SEARCH, ModeWeights(0, 1, 0)),
    ],
)
async def test_every_mode_ranks_by_exact_scores(
    vectors: M3VectorStore, nodes: list[TextNode], mode: VectorStoreQueryMode, weights: ModeWeights
) -> None:
    expected = {name: score for name, score in ranking(nodes, weights).items() if weights.dense or score > 0}
    for found in (vectors.query(asked(mode=mode, k=7)), await vectors.aquery(asked(mode=mode, k=7))):
        check(found, expected, 7)
        assert found.nodes == [next(node for node in nodes if node.node_id == name) for name in found.ids or []]


def test_a_query_is_encoded_once(vectors: M3VectorStore, fake: CountingEncoder) -> None:
    for mode in (M.DEFAULT, M.HYBRID, M.SPARSE, M.MMR):
        vectors.query(asked(mode=mode))
    assert fake.encoded == [("query", QUERY)] * 4


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2 / 3, 1.0])
@pytest.mark.parametrize("mode", [M.DEFAULT, M.HYBRID, M.SEMANTIC_HYBRID])
def test_alpha_is_the_share_of_the_vectors(
    vectors: M3VectorStore, nodes: list[TextNode], mode: VectorStoreQueryMode, alpha: float
) -> None:
    expected = ranking(nodes, ModeWeights(alpha / 2, 1 - alpha, alpha / 2))
    check(vectors.query(asked(mode=mode, alpha=alpha, k=5)), expected, 5)
    expected = ranking(nodes, ModeWeights(alpha / 4, 1 - alpha, alpha * 3 / 4))
    weights = ModeWeights(1, 9, 3)
    check(vectors.query(asked(mode=mode, alpha=alpha, k=5), weights=weights), expected, 5)


@pytest.mark.parametrize("mode", [M.DEFAULT, M.HYBRID])
def test_alpha_is_the_share_of_the_dense_vectors_where_there_are_no_others(
    tmp_path: Path, nodes: list[TextNode], mode: VectorStoreQueryMode
) -> None:
    with open_store(tmp_path / "two", multi_vector="none") as store:
        two = M3VectorStore(encoder=FakeEncoder(), store=store)
        two.add(nodes)
        check(two.query(asked(mode=mode, alpha=0.3)), ranking(nodes, ModeWeights(0.3, 0.7, 0)))
    own = M3VectorStore(encoder=FakeEncoder(), mode="dense+lexical")
    own.add(nodes)
    check(own.query(asked(alpha=0.3)), ranking(nodes, ModeWeights(0.3, 0.7, 0)))


def test_the_stores_own_options_are_what_default_means(store: Store, nodes: list[TextNode]) -> None:
    own = M3VectorStore(encoder=FakeEncoder(), store=store, mode="dense", weights="miracl", score_threshold=0.1)
    own.add(nodes)
    dense = ranking(nodes, ModeWeights(1, 0, 0))
    check(own.query(asked()), {name: score for name, score in dense.items() if score >= 0.1})
    check(own.query(asked(), mode="all", score_threshold=-9), ranking(nodes, ModeWeights.preset("miracl")))
    check(own.query(asked(mode=M.HYBRID), score_threshold=-9), ranking(nodes, ModeWeights.preset("miracl")))
    assert own.model_copy(update={"store": open_store()}).query(asked()).ids == []
    check(
        own.model_copy(update={"mode": "all", "score_threshold": None}).query(asked()),
        ranking(nodes, ModeWeights.preset("miracl")),
    )


async def test_an_embedding_takes_the_place_of_the_querys_dense_vector(
    vectors: M3VectorStore, nodes: list[TextNode], fake: CountingEncoder
) -> None:
    """Of the other modes the text decides; of an embedding alone, the dense mode."""
    other = FakeEncoder().encode(["another text"], kind="query").dense[0]
    encoder = FakeEncoder()
    texts = encoder.encode([node.get_content(MetadataMode.EMBED) for node in nodes])
    of_text = score_vectors(encoder.encode([QUERY], kind="query"), texts, ModeWeights())
    dense = texts.dense @ other
    both = (dense + of_text.lexical + of_text.multi_vector) / 3
    for scale in (1.0, 0.25):
        query = asked(query_embedding=(other * scale).tolist())
        for found in (vectors.query(query), await vectors.aquery(query)):
            order = np.argsort(-both, kind="stable")
            check(found, {nodes[row].node_id: float(both[row]) for row in order})
    fake.encoded.clear()
    order = np.argsort(-dense, kind="stable")
    for text in (None, ""):
        query = asked(text, query_embedding=other.tolist())
        for found in (vectors.query(query), await vectors.aquery(query)):
            check(found, {nodes[row].node_id: float(dense[row]) for row in order})
    assert fake.encoded == []


def test_an_embedding_of_nothing_but_zeros_leaves_it_to_the_filters(vectors: M3VectorStore) -> None:
    """It is how LlamaIndex asks by filters alone."""
    found = vectors.query(asked("", query_embedding=[0.0] * 8, filters=where("color", "red")))
    assert sorted(ids(found)) == [f"n{row:02}" for row in range(0, 40, 3)]
    assert set(found.similarities or []) == {0.0}


@pytest.mark.parametrize("embedding", [[1.0, 2.0], [float("nan")] * 8, [float("inf")] * 8])
def test_an_embedding_that_cannot_be_this_models_is_refused(vectors: M3VectorStore, embedding: list[float]) -> None:
    with pytest.raises(ValueError, match="must be 8 finite numbers"):
        vectors.query(asked(query_embedding=embedding))


async def test_filters_documents_and_ids_all_have_to_match(vectors: M3VectorStore, nodes: list[TextNode]) -> None:
    red = {f"n{row:02}" for row in range(0, 40, 3)}
    of_documents = {f"n{row:02}" for row in range(40) if row % 8 in {1, 2}}
    some = {f"n{row:02}" for row in range(5, 30)}
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"filters": where("color", "red")}, red),
        ({"doc_ids": ["doc1", "doc2", "nobody"]}, of_documents),
        ({"node_ids": [*sorted(some), "nobody"]}, some),
        ({"filters": where("color", "red"), "doc_ids": ["doc1", "doc2"]}, red & of_documents),
        ({"filters": where("color", "red"), "node_ids": sorted(some)}, red & some),
        (
            {"filters": where("color", "red"), "doc_ids": ["doc1", "doc2"], "node_ids": sorted(some)},
            red & of_documents & some,
        ),
        ({"node_ids": []}, {node.node_id for node in nodes}),
        ({"doc_ids": []}, set()),
        ({"node_ids": ["nobody"]}, set()),
        ({"filters": MetadataFilters(filters=[]), "doc_ids": ["doc1"]}, {f"n{row:02}" for row in range(1, 40, 8)}),
    ]
    everything = ranking(nodes, ModeWeights())
    lexical = {name: score for name, score in ranking(nodes, ModeWeights(0, 1, 0)).items() if score > 0}
    for fields, expected in cases:
        for found in (vectors.query(asked(**fields)), await vectors.aquery(asked(**fields))):
            check(found, {name: score for name, score in everything.items() if name in expected})
        found = vectors.query(asked(mode=M.SPARSE, **fields))
        check(found, {name: score for name, score in lexical.items() if name in expected})
        assert set(ids(vectors.query(asked(mode=M.MMR, **fields)))) == expected


def test_chosen_nodes_are_scored_though_no_leg_would_find_them(vectors: M3VectorStore, nodes: list[TextNode]) -> None:
    worst = list(ranking(nodes, ModeWeights()))[-2:]
    assert ids(vectors.query(asked(node_ids=worst), pool_size=1)) == worst


def test_filters_that_are_nested_or_negated(vectors: M3VectorStore) -> None:
    either = MetadataFilters(
        filters=[where("color", "red"), where("row", 30, FilterOperator.GTE)], condition=FilterCondition.OR
    )
    expected = {f"n{row:02}" for row in range(40) if row % 3 == 0 or row >= 30}
    assert set(ids(vectors.query(asked(filters=either)))) == expected
    neither = MetadataFilters(filters=[either], condition=FilterCondition.NOT)
    assert set(ids(vectors.query(asked(filters=neither)))) == {f"n{row:02}" for row in range(40)} - expected


def test_how_many_are_returned(vectors: M3VectorStore, nodes: list[TextNode]) -> None:
    everything = list(ranking(nodes, ModeWeights()))
    lexical = [name for name, score in ranking(nodes, ModeWeights(0, 1, 0)).items() if score > 0]
    assert ids(vectors.query(asked(k=3))) == everything[:3]
    assert ids(vectors.query(asked(k=3, mode=M.HYBRID, hybrid_top_k=5, sparse_top_k=20))) == everything[:5]
    assert ids(vectors.query(asked(k=3, mode=M.HYBRID, sparse_top_k=20))) == everything[:3]
    for mode in (M.SPARSE, M.TEXT_SEARCH):
        assert ids(vectors.query(asked(k=3, mode=mode))) == lexical[:3]
        assert ids(vectors.query(asked(k=3, mode=mode, sparse_top_k=5))) == lexical[:5]
    assert len(ids(vectors.query(asked(k=3, mode=M.MMR)))) == 3


def test_a_hybrid_query_looks_at_as_many_candidates_as_asked(vectors: M3VectorStore, nodes: list[TextNode]) -> None:
    """With one candidate of each leg the best by all three modes is missed."""
    best = {q: next(iter(ranking(nodes, ModeWeights(), q))) for q in (f"keys tea {i}" for i in range(30))}
    query = next(q for q, name in best.items() if name not in ids(vectors.query(asked(q, k=1), pool_size=1)))
    assert ids(vectors.query(asked(query, k=1, mode=M.HYBRID, sparse_top_k=40), pool_size=1)) == [best[query]]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0, None])
async def test_mmr_prefers_what_is_unlike_what_was_chosen(
    vectors: M3VectorStore, nodes: list[TextNode], threshold: float | None
) -> None:
    encoder = FakeEncoder()
    dense = encoder.encode([node.get_content(MetadataMode.EMBED) for node in nodes]).dense.astype(np.float64)
    relevance = dense @ encoder.encode([QUERY], kind="query").dense[0].astype(np.float64)
    share = 0.5 if threshold is None else threshold
    left, chosen = list(np.argsort(-relevance)[:24]), list[int]()
    while len(chosen) < 6:
        gain = [
            share * relevance[i] - (1 - share) * max((dense[i] @ dense[j] for j in chosen), default=0) for i in left
        ]
        chosen.append(left.pop(int(np.argmax(gain))))
    queries: list[tuple[VectorStoreQuery, dict[str, float]]] = [(asked(mode=M.MMR, k=6, mmr_threshold=threshold), {})]
    if threshold is not None:
        queries.append((asked(mode=M.MMR, k=6), {"mmr_threshold": threshold}))
    for query, options in queries:
        for found in (vectors.query(query, **options), await vectors.aquery(query, **options)):
            assert ids(found) == [nodes[row].node_id for row in chosen]
            assert found.similarities == pytest.approx([relevance[row] for row in chosen], abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"mode": M.SVM}, {}, "mode 'svm' is not supported: use one of default, hybrid"),
        ({"mode": "foo"}, {}, "mode 'foo' is not supported: use one of default, hybrid"),
        ({"mode": "sparse", "alpha": 0.5}, {}, "alpha has no effect in mode 'sparse'"),
        ({"mode": M.SPARSE, "alpha": 0.5}, {}, "alpha has no effect in mode 'sparse'"),
        ({"mode": M.MMR, "alpha": 0.5}, {}, "alpha has no effect"),
        ({"alpha": 1.5}, {}, r"alpha \(0: only lexical, 1: no lexical\) must be from 0"),
        ({"hybrid_top_k": 3}, {}, "hybrid_top_k has no effect in mode 'default'"),
        ({"sparse_top_k": 3}, {}, "sparse_top_k has no effect"),
        ({"mmr_threshold": 0.5}, {}, "mmr_threshold has no effect"),
        ({"mode": M.MMR, "mmr_threshold": 2.0}, {}, "mmr_threshold must be from 0 to 1"),
        ({"output_fields": ["a"]}, {}, "output_fields has no effect"),
        ({"embedding_field": "a"}, {}, "embedding_field has no effect"),
        ({"mode": M.HYBRID}, {"mode": "dense"}, "mode has no effect in mode 'hybrid'"),
        ({"similarity_top_k": 0}, {}, "similarity_top_k must be at least 1"),
        ({"mode": M.MMR, "similarity_top_k": 0}, {}, "similarity_top_k must be at least 1"),
        ({"mode": M.MMR, "similarity_top_k": 1.5}, {}, "similarity_top_k must be an integer, got 1.5"),
        ({"mode": M.HYBRID, "sparse_top_k": -1}, {}, "sparse_top_k must be at least 1, got -1"),
        ({"mode": M.HYBRID, "sparse_top_k": "3"}, {}, "sparse_top_k must be an integer, got '3'"),
        ({"mode": M.HYBRID, "hybrid_top_k": True}, {}, "hybrid_top_k must be an integer, got True"),
        ({"alpha": "0.5"}, {}, "must be a number, got '0.5'"),
        ({"mode": M.MMR}, {"mmr_threshold": "0.5"}, "mmr_threshold must be a number, got '0.5'"),
        ({}, {"weights": "nonsense"}, "unknown weights"),
        ({"query_str": None}, {}, "query_str or query_embedding, got neither"),
        ({"query_str": None, "query_embedding": [0.1] * 8, "mode": M.SPARSE}, {}, "needs query_str"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(
    vectors: M3VectorStore, fields: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    query = VectorStoreQuery(**{"query_str": QUERY, "similarity_top_k": 2, **fields})
    with pytest.raises((TypeError, ValueError), match=message):
        vectors.query(query, **options)
    with pytest.raises((TypeError, ValueError), match=message):
        await vectors.aquery(query, **options)


def test_what_is_no_option_is_refused(vectors: M3VectorStore, nodes: list[TextNode]) -> None:
    calls: list[Any] = [
        lambda: vectors.query(asked(), filter={"color": "red"}),
        lambda: vectors.query(asked(), top_k=3),
        lambda: vectors.add(nodes, batch_size=3),
        lambda: vectors.add(nodes[0]),  # type: ignore[arg-type]
        lambda: vectors.add(with_scores(nodes)),  # type: ignore[arg-type]
        lambda: vectors.delete("doc1", force=True),
        lambda: vectors.delete_nodes(["n01"], force=True),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"filter|top_k|batch_size|force|must be a list|got NodeWithScore"):
            call()
    with pytest.raises(TypeError, match="ref_doc_id must be a string, got None"):
        vectors.delete(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_k"):
        M3VectorStore(encoder=FakeEncoder(), top_k=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="mode"):
        M3VectorStore(model="/no/such/folder", mode="nonsense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pool_size"):
        M3VectorStore(model="/no/such/folder", pool_size=0)


async def test_nodes_are_got_by_ids_by_filters_or_all(vectors: M3VectorStore, nodes: list[TextNode]) -> None:
    red = where("color", "red")
    cases: list[tuple[dict[str, Any], list[TextNode]]] = [
        ({"node_ids": ["n07", "nobody", "n03"]}, [nodes[7], nodes[3]]),
        ({"node_ids": ["n07", "n03"], "filters": red}, [nodes[3]]),
        ({"filters": red}, nodes[::3]),
        ({}, nodes),
        ({"node_ids": []}, []),
    ]
    for arguments, expected in cases:
        for found in (vectors.get_nodes(**arguments), await vectors.aget_nodes(**arguments)):
            if "node_ids" not in arguments:
                found.sort(key=lambda node: node.node_id)
            assert found == expected


async def test_nodes_are_deleted_by_document_by_ids_and_by_filters(vectors: M3VectorStore) -> None:
    left = {f"n{row:02}" for row in range(40)}

    def gone(names: set[str]) -> None:
        left.difference_update(names)
        assert {node.node_id for node in vectors.get_nodes()} == left == set(ids(vectors.query(asked())))

    vectors.delete("doc1")
    gone({f"n{row:02}" for row in range(1, 40, 8)})
    await vectors.adelete("doc2")
    gone({f"n{row:02}" for row in range(2, 40, 8)})
    vectors.delete("nobody")
    vectors.delete_nodes(["n00", "nobody"])
    gone({"n00"})
    await vectors.adelete_nodes(["n03", "n04"], where("color", "red"))
    gone({"n03"})
    vectors.delete_nodes(filters=where("row", 30, FilterOperator.GTE))
    gone({f"n{row:02}" for row in range(30, 40)})
    vectors.delete_nodes([])
    gone(set())
    for nothing in (None, MetadataFilters(filters=[])):
        with pytest.raises(ValueError, match="delete"):
            vectors.delete_nodes(filters=nothing)
    gone(set())
    await vectors.aclear()
    gone(left.copy())
    vectors.clear()


async def test_nodes_are_added_and_replaced(store: Store, fake: CountingEncoder, nodes: list[TextNode]) -> None:
    vectors = M3VectorStore(encoder=fake, store=store)
    before = [node.model_copy(deep=True) for node in nodes]
    assert vectors.query(asked()) == VectorStoreQueryResult([], [], [])
    fake.encoded.clear()
    assert vectors.add(nodes[:20]) == [node.node_id for node in nodes[:20]]
    assert await vectors.async_add(nodes[20:]) == [node.node_id for node in nodes[20:]]
    assert vectors.add([]) == []
    assert nodes == before
    assert (store.count(), len(fake.encoded)) == (40, 40)
    changed = TextNode(id_="n03", text="something else")
    assert vectors.add([nodes[2], changed]) == ["n02", "n03"]
    assert (store.count(), fake.encoded[40:]) == (40, [("document", "something else")])
    assert vectors.get_nodes(["n03", "n02"]) == [changed, nodes[2]]


async def test_a_document_that_is_added_again_replaces_its_former_nodes(store: Store) -> None:
    def piece(name: str, version: str) -> TextNode:
        source = RelatedNodeInfo(node_id="doc", hash=version)
        return TextNode(id_=name, text=f"text {name}", relationships={NodeRelationship.SOURCE: source})

    vectors = M3VectorStore(encoder=FakeEncoder(), store=store)
    vectors.add([piece("a", "1")])
    vectors.add([piece("b", "1")])
    assert sorted(ids(vectors.get_nodes())) == ["a", "b"]
    await vectors.async_add([piece("c", "2")])
    assert ids(vectors.get_nodes()) == ["c"]
    vectors.add([piece("d", "2")], replace_documents=True)
    assert ids(vectors.get_nodes()) == ["d"]


async def test_nothing_that_is_awaited_blocks_the_event_loop(nodes: list[TextNode]) -> None:
    vectors = M3VectorStore(encoder=FakeEncoder(delay_s=0.1))
    embeddings = embedded(nodes[:3], FakeEncoder().encode([n.get_content(MetadataMode.EMBED) for n in nodes[:3]]).dense)

    async def work() -> None:
        await vectors.async_add(embeddings)
        for mode in (M.DEFAULT, M.MMR):
            await vectors.aquery(asked(mode=mode, k=2))
        await vectors.embed_model.aget_query_embedding(QUERY)

    assert await longest_pause_s(work) < 0.09


def embedded(nodes: Sequence[TextNode], embeddings: Any) -> list[TextNode]:
    return [
        node.model_copy(update={"embedding": list(map(float, row))})
        for node, row in zip(nodes, embeddings, strict=True)
    ]


@pytest.mark.parametrize(
    "kind",
    ["another model's", "a sibling's", "of another size", "of another text", "not a number", "zeros"],
)
async def test_nodes_with_another_models_embeddings_are_refused_and_nothing_is_stored(
    store: Store, nodes: list[TextNode], kind: str
) -> None:
    encoder = FakeEncoder()
    good = encoder.encode([node.get_content(MetadataMode.EMBED) for node in nodes]).dense
    bad: dict[str, Any] = {
        "another model's": np.random.default_rng(0).normal(size=8),
        "a sibling's": 0.95 * good[39] + 0.3 * np.array([good[39][1], -good[39][0], 0, 0, 0, 0, 0, 0]),
        "of another size": np.ones(9),
        "of another text": encoder.encode(["changed since"]).dense[0],
        "not a number": np.full(8, np.nan),
        "zeros": np.zeros(8),
    }
    some = embedded(nodes, [*good[:39], bad[kind]])
    vectors = M3VectorStore(encoder=encoder, store=store)
    with pytest.raises(ValueError, match=r"embedding of node 'n39' is not the dense vector .* Nothing was stored"):
        vectors.add(some)
    with pytest.raises(ValueError, match="n39"):
        await vectors.async_add(some)
    assert store.count() == 0
    vectors.add(some[:39])
    assert store.count() == 39


def test_our_own_embeddings_are_accepted_whatever_their_length(store: Store, nodes: list[TextNode]) -> None:
    encoder = FakeEncoder()
    dense = encoder.encode([node.get_content(MetadataMode.EMBED) for node in nodes]).dense
    random = np.random.default_rng(0)
    vectors = M3VectorStore(encoder=encoder, store=store)
    vectors.add(embedded(nodes, dense * 3 + random.normal(scale=1e-3, size=dense.shape)))
    check(vectors.query(asked(k=5)), ranking(nodes, ModeWeights()), 5)


@pytest.mark.parametrize("mode", [MetadataMode.NONE, MetadataMode.ALL, MetadataMode.LLM, MetadataMode.EMBED])
def test_an_embedding_of_the_text_with_or_without_metadata_is_of_this_model(store: Store, mode: MetadataMode) -> None:
    encoder = FakeEncoder()
    node = TextNode(text="keys", metadata={"a": "x", "b": "y"}, excluded_embed_metadata_keys=["a"])
    node.excluded_llm_metadata_keys = ["b"]
    assert len({node.get_content(each) for each in MetadataMode}) == 4
    M3VectorStore(encoder=encoder, store=store).add(embedded([node], encoder.encode([node.get_content(mode)]).dense))
    assert store.get([node.node_id], with_vectors=True)[0].text == node.get_content(MetadataMode.EMBED)


async def test_memory_of_llama_index_keeps_messages_that_it_embeds_without_metadata(fake: CountingEncoder) -> None:
    vectors = M3VectorStore(encoder=fake)
    block = VectorMemoryBlock(name="before", vector_store=vectors, embed_model=M3Embedding(encoder=fake))
    for i in range(3):
        message = ChatMessage(role="user", content=f"message {i} about keys")
        await block.aput([message], from_short_term_memory=True, session_id="a session whose name is in no text")
    assert vectors.store.count() == 3
    (record, *_) = vectors.store.records()
    assert (record.metadata["session_id"], "session_id" in record.text) == ("a session whose name is in no text", True)


async def test_embeddings_are_compared_in_the_pass_that_made_them(small: Path) -> None:
    """The index's embedding model asks for dense vectors alone, so the token vectors cost the second pass."""
    encoder = M3Encoder(small, shared=False)
    nodes = [TextNode(text=f"text {i}") for i in range(20)]
    M3Embedding(encoder=encoder)(nodes)
    assert encoder.stats.encoded_texts == 20
    M3VectorStore(encoder=encoder).add(nodes)
    assert encoder.stats.encoded_texts == 40


def test_without_token_vectors_the_index_and_the_store_share_one_pass(small: Path, tmp_path: Path) -> None:
    encoder = M3Encoder(small, shared=False)
    nodes = [TextNode(text=f"text {i}") for i in range(20)]
    with open_store(tmp_path / "index", multi_vector="none") as store:
        M3Embedding(encoder=encoder)(nodes)
        M3VectorStore(encoder=encoder, store=store).add(nodes)
    assert encoder.stats.encoded_texts == 20


async def test_the_stores_embedding_model_leaves_texts_to_the_store(fake: CountingEncoder) -> None:
    model = M3VectorStore(encoder=fake).embed_model
    assert model.get_text_embedding_batch(["a", "b"]) == [[], []]
    assert await model.aget_text_embedding_batch(["a"]) == [[]]
    assert model.get_text_embedding("a") == await model.aget_text_embedding("a") == []
    assert fake.encoded == []
    with pytest.raises(ValueError, match=r"embeds only queries, .* use M3Embedding"):
        model.similarity(model.get_text_embedding("a"), model.get_text_embedding("b"))
    assert model.similarity(model.get_query_embedding("q"), model.get_query_embedding("q")) == pytest.approx(1)
    expected = pytest.approx(FakeEncoder().encode(["q"], kind="query").dense[0].tolist())
    assert model.get_query_embedding("q") == await model.aget_query_embedding("q") == expected
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    assert model.to_dict()["class_name"] == model.class_name() == "M3QueryEmbedding"


def test_scores_of_an_earlier_reranking_are_not_stored(vectors: M3VectorStore, nodes: list[TextNode]) -> None:
    reranked = M3Rerank(encoder=FakeEncoder()).postprocess_nodes(with_scores(nodes), query_str=QUERY)
    other = M3VectorStore(encoder=FakeEncoder())
    other.add([each.node for each in reranked])
    assert all("m3_scores" in each.node.metadata for each in reranked)
    assert sorted(other.get_nodes(), key=lambda node: node.node_id) == sorted(
        (nodes[int(each.node.node_id[1:])] for each in reranked), key=lambda node: node.node_id
    )


def test_records_of_others_are_nodes_too(store: Store) -> None:
    Searcher(FakeEncoder(), store).add(["the text"], ids=["r"], metadatas=[{"year": 2024}])
    vectors = M3VectorStore(encoder=FakeEncoder(), store=store)
    (found,) = vectors.query(asked("text")).nodes or []
    (got,) = vectors.get_nodes(["r"], where("year", 2024))
    assert found == got
    assert (got.node_id, got.get_content(), got.metadata) == ("r", "the text", {"year": 2024})


def test_a_document_without_nodes_is_deleted_as_its_own(store: Store) -> None:
    """A pipeline without a splitter adds documents, and deletes them by their ids."""
    vectors = M3VectorStore(encoder=FakeEncoder(), store=store)
    vectors.add([Document(id_="a", text="text a"), Document(id_="b", text="text b")])
    vectors.delete("a")
    assert ids(vectors.get_nodes()) == ["b"]


def test_another_models_store_is_refused(store: Store, nodes: list[TextNode]) -> None:
    store.bind("another")
    vectors = M3VectorStore(encoder=FakeEncoder(), store=store)
    with pytest.raises(ValueError, match="another"):
        vectors.add(nodes)
    with pytest.raises(ValueError, match="another"):
        vectors.query(asked())


def test_a_vector_store_is_persisted_where_its_store_is(tmp_path: Path, nodes: list[TextNode]) -> None:
    with open_store(tmp_path / "index") as store:
        M3VectorStore(encoder=FakeEncoder(), store=store).persist(str(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(ValueError, match="a store in memory cannot be persisted"):
        M3VectorStore(encoder=FakeEncoder()).persist(str(tmp_path / "elsewhere"))


def test_a_vector_store_says_what_it_is(fake: CountingEncoder, store: Store) -> None:
    vectors = M3VectorStore(encoder=fake, store=store)
    assert vectors.client is vectors.store is store
    assert (vectors.stores_text, vectors.is_embedding_query, vectors.class_name()) == (True, True, "M3VectorStore")
    assert vectors.to_dict()["model"] == "fake"
    dump = vectors.to_dict()
    assert "store" not in dump
    with pytest.raises(TypeError, match="does not hold its store: pass from_dict"):
        M3VectorStore.from_dict({**dump, "model": ""}, encoder=fake)
    assert M3VectorStore.from_dict({**dump, "model": ""}, encoder=fake, store=store).store is store
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(vectors)
