"""`MetadataFilters` in our language: equal to LlamaIndex's own evaluator, and where it differs on purpose."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from m3_integrations import open_store
from m3_integrations.llama_index import M3HybridRetriever
from m3_integrations.llama_index.filters import as_filter
from m3_integrations.store import matches, parse_filter
from tests.llama_index.conftest import CountingEncoder, ids_of

COLORS, TAGS = ["red", "blue", "green"], ["new", "old", "x"]


def one(key: str, operator: str, value: Any = None) -> MetadataFilter:
    return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))


def ours(filters: MetadataFilters, metadata: dict[str, Any]) -> bool:
    return matches(parse_filter(as_filter(filters)), metadata)


def theirs(filters: MetadataFilters, metadata: dict[str, Any]) -> bool:
    """LlamaIndex's evaluator on every single filter; nesting, which it refuses, as its conditions are documented."""
    results = [
        theirs(part, metadata)
        if isinstance(part, MetadataFilters)
        else build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[part]))("id")
        for part in filters.filters
    ]
    if not results:
        return True
    if filters.condition == FilterCondition.NOT:
        return not any(results)
    return any(results) if filters.condition == FilterCondition.OR else all(results)


def random_metadata(random: np.random.Generator) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "color": COLORS[random.integers(3)],
        "size": [int(random.integers(0, 6)), float(random.integers(0, 6))][random.integers(2)],
        "tags": [TAGS[i] for i in random.integers(0, 3, random.integers(1, 4))],
    }
    for key in list(metadata):
        if random.random() < 0.15:
            metadata[key] = None
        elif random.random() < 0.15:
            del metadata[key]
    return metadata


def random_filters(random: np.random.Generator, depth: int = 2) -> MetadataFilters:
    parts: list[MetadataFilter | MetadataFilters] = []
    for _ in range(random.integers(1, 4)):
        kind = int(random.integers(0, 7 if depth else 6))
        number, color = int(random.integers(0, 6)), COLORS[random.integers(3)]
        tags = [TAGS[i] for i in random.integers(0, 3, random.integers(1, 3))]
        if kind == 0:
            parts.append(one("color", ["==", "!="][random.integers(2)], color))
        elif kind == 1:
            parts.append(one("color", ["in", "nin"][random.integers(2)], [color, "other"]))
        elif kind == 2:
            parts.append(one("size", ["==", "!=", ">", ">=", "<", "<="][random.integers(6)], number))
        elif kind == 3:
            parts.append(one("size", ["in", "nin"][random.integers(2)], [number, 2]))
        elif kind == 4:
            operator = ["any", "all", "contains"][random.integers(3)]
            parts.append(one("tags", operator, tags[0] if operator == "contains" else tags))
        elif kind == 5:
            parts.append(one(["color", "size", "tags", "absent"][random.integers(4)], "is_empty"))
        else:
            parts.append(random_filters(random, depth - 1))
    condition = [FilterCondition.AND, FilterCondition.OR, FilterCondition.NOT, None][random.integers(4)]
    return MetadataFilters(filters=parts, condition=condition)


def test_random_filters_mean_what_they_mean_to_llama_index() -> None:
    random = np.random.default_rng(3)
    seen = {True: 0, False: 0}
    for _ in range(600):
        filters = random_filters(random)
        for _ in range(5):
            metadata = random_metadata(random)
            expected = theirs(filters, metadata)
            assert ours(filters, metadata) is expected, (filters, metadata)
            seen[expected] += 1
    assert min(seen.values()) > 500


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (MetadataFilters(filters=[]), True),
        (MetadataFilters(filters=[], condition=FilterCondition.NOT), True),
        (MetadataFilters(filters=[one("color", "==", "red"), one("size", ">", 1)]), True),
        (MetadataFilters(filters=[one("color", "==", "red"), one("size", ">", 2)]), False),
        (
            MetadataFilters(filters=[one("color", "==", "blue"), one("size", "<=", 2)], condition=FilterCondition.OR),
            True,
        ),
        (
            MetadataFilters(filters=[one("color", "==", "blue"), one("size", "<", 2)], condition=FilterCondition.OR),
            False,
        ),
        (
            MetadataFilters(filters=[one("color", "==", "red"), one("size", ">", 9)], condition=FilterCondition.NOT),
            False,
        ),
        (
            MetadataFilters(filters=[one("color", "==", "blue"), one("size", ">", 9)], condition=FilterCondition.NOT),
            True,
        ),
        (MetadataFilters(filters=[MetadataFilters(filters=[one("color", "==", "blue")])]), False),
        (MetadataFilters(filters=[one("tags", "all", ["a", "b"])]), True),
        (MetadataFilters(filters=[one("tags", "all", ["a", "c"])]), False),
        (MetadataFilters(filters=[one("tags", "any", ["c", "b"])]), True),
        (MetadataFilters(filters=[one("tags", "contains", "b")]), True),
        (MetadataFilters(filters=[one("absent", "!=", "x")]), True),
        (MetadataFilters(filters=[one("absent", "nin", ["x"])]), True),
        (MetadataFilters(filters=[one("absent", ">=", 0)]), False),
        (MetadataFilters(filters=[one("absent", "is_empty")]), True),
        (MetadataFilters(filters=[one("none", "is_empty")]), True),
        (MetadataFilters(filters=[one("nothing", "is_empty")]), True),
        (MetadataFilters(filters=[one("size", "is_empty")]), False),
    ],
)
def test_filters_worked_by_hand(filters: MetadataFilters, expected: bool) -> None:
    metadata = {"color": "red", "size": 2, "tags": ["a", "b"], "none": None, "nothing": []}
    assert ours(filters, metadata) is theirs(filters, metadata) is expected


@pytest.mark.parametrize(
    ("condition", "metadata", "here", "there"),
    [
        (one("color", "contains", "re"), {"color": "red"}, False, True),  # theirs looks for a part of a string
        (one("color", "any", ["re"]), {"color": "red"}, False, True),
        (one("tags", "==", "a"), {"tags": ["a", "b"]}, True, False),  # ours: any element of a list
        (one("tags", "!=", "a"), {"tags": ["a", "b"]}, False, True),
        (one("tags", "in", ["a", "c"]), {"tags": ["a", "b"]}, True, False),
        (one("color", "is_empty"), {"color": ""}, False, True),  # the operator's documentation: null or empty list
        (one("flag", "==", 1), {"flag": True}, False, True),  # ours: booleans equal only booleans
        (one("flag", ">", 0), {"flag": True}, False, True),
        (one("nothing", "all", ["a"]), {"nothing": []}, False, False),
    ],
)
def test_where_we_differ_from_llama_indexs_evaluator_on_purpose(
    condition: MetadataFilter, metadata: dict[str, Any], here: bool, there: bool
) -> None:
    filters = MetadataFilters(filters=[condition])
    assert (ours(filters, metadata), theirs(filters, metadata)) == (here, there)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (one("a", "text_match", "x"), "no store supports text_match on 'a' exactly"),
        (one("a", "text_match_insensitive", "x"), "no store supports text_match_insensitive on 'a' exactly"),
        (one("a", ">", "2024-13-01"), "needs a number or a date"),
        (one("a", "<=", "b"), "needs a number or a date"),
        (one("a", "in", "abc"), "needs a list"),
        (one("a", "nin", "abc"), "needs a list"),
        (one("a", "any", "abc"), "needs a list"),
        (one("a", "all", "abc"), "all on 'a' needs a list of one or more values, got 'abc'"),
        (one("a", "all", []), r"all on 'a' needs a list of one or more values, got \[\]"),
        (one("a", "==", ["x"]), "needs a string, a number, a boolean or a date"),
        (one("a", "==", None), "== on 'a' cannot compare None: use the operator is_empty"),
        (one("$a", ">", "b"), r"'key \$a' needs a number or a date"),
        (one("a", "==", 2**60), r"2\*\*53"),
    ],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_what_cannot_be_honoured_exactly_is_refused(condition: MetadataFilter, message: str, depth: int) -> None:
    filters = MetadataFilters(filters=[condition])
    if depth:
        filters = MetadataFilters(filters=[one("b", "==", 1), filters], condition=FilterCondition.OR)
    with pytest.raises(ValueError, match=message):
        parse_filter(as_filter(filters))
    with pytest.raises(ValueError, match=message):
        M3HybridRetriever(encoder=CountingEncoder(), filters=filters)


async def test_random_filters_never_leak_and_never_lose_a_node(fake: CountingEncoder) -> None:
    random = np.random.default_rng(9)
    nodes = [TextNode(id_=f"n{row}", text=f"keys {row}", metadata=random_metadata(random)) for row in range(30)]
    retriever = M3HybridRetriever.from_nodes(nodes, encoder=fake, similarity_top_k=30)
    sizes = set()
    for _ in range(40):
        filters = random_filters(random)
        allowed = {node.node_id for node in nodes if theirs(filters, node.metadata)}
        fixed = M3HybridRetriever(encoder=fake, store=retriever.store, similarity_top_k=30, filters=filters)
        narrowed = retriever.with_options(filters=filters)
        assert set(ids_of(fixed.retrieve("keys"))) == allowed
        assert set(ids_of(narrowed.retrieve("keys"))) == allowed
        assert set(ids_of(await narrowed.aretrieve("keys"))) == allowed
        sizes.add(len(allowed))
    assert len(sizes) > 8


def test_our_own_language_is_taken_too(retriever: M3HybridRetriever) -> None:
    found = retriever.with_options(filters={"row": {"$gte": 36}, "color": {"$ne": "red"}}, similarity_top_k=40)
    assert sorted(ids_of(found.retrieve("keys"))) == ["n37", "n38"]
    with pytest.raises(ValueError, match=r"unknown \$near"):
        retriever.with_options(filters={"row": {"$near": 5}})
    with pytest.raises(TypeError, match="must be a mapping"):
        retriever.with_options(filters="row")  # type: ignore[arg-type]


def test_single_conditions_are_refused_with_what_to_pass(retriever: M3HybridRetriever) -> None:
    wrong: list[Any] = [one("row", "==", 5), [one("row", "==", 5)]]
    for filters in wrong:
        with pytest.raises(TypeError, match=r"pass MetadataFilters\(filters=\[...\]\)"):
            retriever.with_options(filters=filters)


@pytest.mark.parametrize("key", ["$and", "$not", "$ref", "$a.b"])
@pytest.mark.parametrize("is_in_folder", [False, True])
def test_keys_that_look_like_operators_are_keys(
    fake: CountingEncoder, tmp_path: Path, key: str, is_in_folder: bool
) -> None:
    nodes = [TextNode(id_=f"n{i}", text=f"keys {i}", metadata={key: i} if i else {}) for i in range(4)]
    cases: list[tuple[str, Any, list[str]]] = [
        ("==", 1, ["n1"]),
        ("!=", 1, ["n0", "n2", "n3"]),
        (">", 1, ["n2", "n3"]),
        ("in", [1, 3], ["n1", "n3"]),
        ("in", [], []),
        ("nin", [1, 3], ["n0", "n2"]),
        ("all", [2, 2], ["n2"]),
        ("is_empty", None, ["n0"]),
    ]
    with open_store(tmp_path / "index" if is_in_folder else None) as store:
        retriever = M3HybridRetriever.from_nodes(nodes, encoder=fake, store=store, similarity_top_k=9)
        for operator, value, expected in cases:
            narrowed = retriever.with_options(filters=MetadataFilters(filters=[one(key, operator, value)]))
            assert sorted(ids_of(narrowed.retrieve("keys"))) == expected


def test_a_later_change_of_the_callers_filters_changes_nothing(retriever: M3HybridRetriever) -> None:
    mapping: dict[str, Any] = {"color": "red"}
    filters = MetadataFilters(filters=[one("color", "==", "red")])
    narrowed = [
        retriever.with_options(filters=mapping),
        retriever.with_options(filters=filters),
        M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, filters=mapping),
        M3HybridRetriever(encoder=retriever.encoder, store=retriever.store, filters=filters),
    ]
    mapping["color"], filters.filters = "blue", []
    for each in narrowed:
        assert {found.node.metadata["color"] for found in each.retrieve("keys")} == {"red"}
