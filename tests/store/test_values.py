"""Every value that metadata may hold, in every store and through both frameworks: what comes back, what filters see.

The oracle compares plain Python values and shares no code with the stores.
"""

import json
import struct
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from itertools import product
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode

from m3_integrations import Store, langchain, llama_index, open_store
from m3_integrations.store import matches
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.values import as_json_values, check_metadata, read_exact
from tests.fakes import FakeEncoder
from tests.store.oracle import vectors

PARIS = timezone(timedelta(hours=2))


class Colour(str, Enum):  # noqa: UP042 - a string of its own kind is what is tried
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Nanoseconds(datetime):
    """As the `Timestamp` of pandas."""

    nanosecond = 0


class Late(Nanoseconds):
    nanosecond = 7


class NotATime(datetime):
    """As the NaT of pandas: a datetime that equals nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = datetime.__hash__


Pair = namedtuple("Pair", "a b")

KEPT: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (np.bool_(True), True),
    (np.bool_(False), False),
    (3, 3),
    (Level.HIGH, 3),
    (np.int64(2024), 2024),
    (np.uint8(0), 0),
    (2**60 + 1, 2**60 + 1),
    (2**70, 2**70),
    (-(2**70), -(2**70)),
    (2024.0, 2024.0),
    (0.1 + 0.2, 0.1 + 0.2),
    (np.float32(0.1), 0.10000000149011612),
    (np.float64(2.5), 2.5),
    (-0.0, -0.0),
    (5e-324, 5e-324),
    (1.7976931348623157e308, 1.7976931348623157e308),
    ("text", "text"),
    ("", ""),
    ("ключ 🔑", "ключ 🔑"),
    (np.str_("text"), "text"),
    (Colour.RED, "red"),
    (PurePosixPath("/a/b"), "/a/b"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ("2024-05-01", "2024-05-01"),
    ("2024-05-01T02:00:00+02:00", "2024-05-01T02:00:00+02:00"),
    ("2024-13-01", "2024-13-01"),
    (date(2024, 5, 1), date(2024, 5, 1)),
    (datetime(2024, 5, 1), datetime(2024, 5, 1)),
    (datetime(2024, 5, 1, 2, tzinfo=PARIS), datetime(2024, 5, 1, 2, tzinfo=PARIS)),
    (datetime(2024, 5, 1, 12, 30, 1, 5, tzinfo=UTC), datetime(2024, 5, 1, 12, 30, 1, 5, tzinfo=UTC)),
    (datetime.min, datetime.min),
    (
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))),
    ),
    (Nanoseconds(2023, 1, 1, 5), datetime(2023, 1, 1, 5)),
    (np.datetime64("2024-05-01"), date(2024, 5, 1)),
    (np.datetime64("2024-05-01T12:30:01.000005000", "ns"), datetime(2024, 5, 1, 12, 30, 1, 5)),
    ([], []),
    ([None], [None]),
    ([1, "1", True, None, [2], {"deep": 3}], [1, "1", True, None, [2], {"deep": 3}]),
    ((1, (2, "x")), [1, [2, "x"]]),
    (Pair(1, date(2024, 5, 1)), [1, date(2024, 5, 1)]),
    (deque(["text", 7]), ["text", 7]),
    (np.array([1, 2024]), [1, 2024]),
    (np.array(5), 5),
    (np.array(["text"], object), ["text"]),
    (np.array([[1.5], [2.5]]), [[1.5], [2.5]]),
    (np.array(["2024-05-01"], "datetime64[ns]"), [datetime(2024, 5, 1)]),
    ({}, {}),
    ({"page": 3, "day": date(2024, 5, 1)}, {"page": 3, "day": date(2024, 5, 1)}),
    (OrderedDict(page=[3, {"x.y": 1}]), {"page": [3, {"x.y": 1}]}),
    (MappingProxyType({"page": np.int64(4)}), {"page": 4}),
    ([{"page": 3}, {"page": 5}], [{"page": 3}, {"page": 5}]),
]

REFUSED: list[tuple[Any, str]] = [
    (float("nan"), "not finite"),
    (np.float32("inf"), "not finite"),
    ([1, {"deep": float("nan")}], r"v\[1\]\.deep"),
    ({1, 2}, "no order"),
    (frozenset(), "no order"),
    (b"x", "decode"),
    (np.bytes_(b"x"), "decode"),
    (Decimal("0.1"), r"float\(\.\.\.\) or str"),
    (Fraction(1, 3), r"float\(\.\.\.\) or str"),
    (np.longdouble("0.1"), "use strings, numbers"),
    (time(12), "seconds"),
    (timedelta(1), "seconds"),
    (np.timedelta64(1, "s"), "seconds"),
    (np.datetime64("NaT", "s"), "round it, or use None"),
    (np.datetime64("2024-05-01T00:00:00.000000001"), "round it"),
    (np.datetime64("20240-05-01"), "round it"),
    (Late(2024, 1, 1), "round it"),
    (NotATime(2024, 1, 1), "None for a missing date"),
    (1j, "two numbers"),
    (10**400, r"below 2\*\*1023"),
    (10**5000, r"below 2\*\*1023"),
    ("half \ud800", "position 5"),
    (["\ud800"], r"v\[0\]"),
    ({1: 5}, "keys must be strings"),
    ({"\ud800": 5}, "not valid Unicode"),
    (np.ma.masked, "masked"),
    (object(), "use strings, numbers"),
    (range(3), "use strings, numbers"),
]

OPERANDS: list[Any] = [
    True, False, 0, 1, 3, 2024, 2024.0, 2.5, 0.1 + 0.2, 0.3, -1, np.float32(0.1), np.int64(3), np.bool_(True),
    "text", "", "red", "1", "/a/b", Colour.RED, PurePosixPath("/a/b"), UUID(int=5), "ключ 🔑", "2024-13-01",
    "2024-05-01", "2024-05-01T00:00:00Z", "2024-05-01T02:00:00+02:00", "2024-05-02", "2023-01-01 05:00",
    date(2024, 5, 1), datetime(2024, 5, 1), datetime(2024, 5, 1, 2, tzinfo=PARIS), np.datetime64("2024-05-01"),
    datetime(2024, 5, 1, 12, 30, 1, 4), datetime(2024, 5, 1, 12, 30, 1, 5), datetime(2024, 5, 1, 12, 30, 1, 6),
    datetime.min,
]  # fmt: skip

PATHS = ["v", "v.page", "v.day", "v.deep", "v.page.x.y", "absent"]


def instant(value: Any) -> datetime | timedelta | None:
    """By Python's own arithmetic: how long after the first moment that has a name."""
    if isinstance(value, np.datetime64):
        value = value.item()
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value) if len(value) > 10 else date.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=None) - datetime.min - (value.utcoffset() or timedelta(0))
    return datetime(value.year, value.month, value.day) - datetime.min if isinstance(value, date) else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def is_equal(element: Any, operand: Any) -> bool:
    if isinstance(operand, bool | np.bool_) or isinstance(element, bool):
        return isinstance(operand, bool | np.bool_) and isinstance(element, bool) and bool(operand) == element
    if is_number(operand) or is_number(element):
        return is_number(operand) and is_number(element) and float(operand) == element
    is_date = [isinstance(each, date | np.datetime64) for each in (element, operand)]
    if any(is_date):
        return instant(element) is not None and instant(element) == instant(operand)
    operand = operand.value if isinstance(operand, Enum) else operand
    return isinstance(element, str) and element == str(operand)


def is_in_order(element: Any, operator: str, operand: Any) -> bool:
    one, other = (element, operand) if is_number(operand) else (instant(element), instant(operand))
    if one is None or other is None or (is_number(operand) and not is_number(element)):
        return False
    if is_number(operand):
        other = float(other)  # type: ignore[arg-type]
    return {"$gt": one > other, "$gte": one >= other, "$lt": one < other, "$lte": one <= other}[operator]  # type: ignore[operator]


def elements(value: Any, path: str) -> list[Any]:
    """What is at a path, keys with dots in them included."""
    if path == "":
        return value if isinstance(value, list) else [] if value is None else [value]
    found: list[Any] = []
    for each in value if isinstance(value, list) else [value]:
        for key, inner in each.items() if isinstance(each, dict) else ():
            if path == key:
                found += elements(inner, "")
            elif path.startswith(key + "."):
                found += elements(inner, path.removeprefix(key + "."))
    return found


def expected(kept: Any, path: str, operator: str, operand: Any) -> bool:
    there = elements({"v": kept}, path)
    if operator == "$exists":
        return bool(there) is bool(operand)
    if operator in {"$eq", "$ne", "$in", "$nin"}:
        operands = operand if operator in {"$in", "$nin"} else [operand]
        is_there = any(is_equal(element, each) for element in there for each in operands)
        return is_there if operator in {"$eq", "$in"} else not is_there
    return any(is_in_order(element, operator, operand) for element in there)


def conditions() -> list[tuple[str, str, Any]]:
    made: list[tuple[str, str, Any]] = [(path, "$exists", asked) for path in PATHS for asked in (True, np.bool_(False))]
    made += list(product(PATHS[:2], ("$eq", "$ne"), OPERANDS))
    made += [(path, "$eq", operand) for path in PATHS[2:] for operand in (1, 3, "2024-05-01", date(2024, 5, 1))]
    made += [
        ("v", operator, listed)
        for operator in ("$in", "$nin")
        for listed in (
            [],
            OPERANDS[:4],
            tuple(OPERANDS[10:20]),
            {3, "text"},
            np.array([3, 5]),
            deque([date(2024, 5, 1)]),
        )
    ]
    ordered = [each for each in OPERANDS if (is_number(each) or instant_or_none(each)) and not isinstance(each, bool)]
    made += list(product(PATHS[:1], ("$gt", "$gte", "$lt", "$lte"), ordered))
    made += [(path, "$gte", operand) for path in PATHS[1:] for operand in (3, date(2024, 5, 1))]
    return made


def instant_or_none(value: Any) -> bool:
    return isinstance(value, str | date | np.datetime64) and not isinstance(value, Enum) and instant(value) is not None


@pytest.fixture
def filled(store: Store, random: np.random.Generator) -> Store:
    """A record for every value, and one without the key."""
    ids = [str(i) for i in range(len(KEPT) + 1)]
    metadatas = [{"v": given} for given, _ in KEPT] + [{"other": 1}]
    store.upsert(ids, [f"text {i}" for i in ids], metadatas, vectors(random, len(ids)))
    return store


def test_every_value_comes_back_as_the_table_says(filled: Store) -> None:
    for record, (given, kept) in zip(filled.get([str(i) for i in range(len(KEPT))]), KEPT, strict=True):
        assert record.metadata == {"v": kept}, given
        assert repr(record.metadata) == repr({"v": kept})  # True is not 1, and 1 is not 1.0


def test_every_operator_means_the_same_for_every_value(filled: Store, random: np.random.Generator) -> None:
    kept = {str(i): kept for i, (_, kept) in enumerate(KEPT)}
    query = vectors(random, 1)
    for path, operator, operand in conditions():
        filter_ = {path: {operator: operand}}
        wanted = {id_ for id_, value in kept.items() if expected(value, path, operator, operand)}
        if operator in {"$ne", "$nin"} or (operator == "$exists" and not operand):
            wanted.add(str(len(KEPT)))
        found = set(filled.candidates(query, {"dense": 100}, filter_)["dense"].ids)
        assert found == wanted, filter_
        assert filled.count(filter_) == len(wanted), filter_
        assert filled.count({"$not": filter_}) == len(KEPT) + 1 - len(wanted), filter_
        assert {id_ for id_, value in kept.items() if matches(filter_, {"v": value})} == wanted - {str(len(KEPT))}


@pytest.mark.parametrize(
    ("value", "message"), REFUSED, ids=lambda each: repr(each)[:20] if not isinstance(each, int) else "n"
)
def test_what_cannot_be_kept_is_refused_with_the_record_the_key_and_the_way_out(
    value: Any, message: str, store: Store, random: np.random.Generator
) -> None:
    good = [{"v": 1}] * 60  # more than one batch
    with pytest.raises(ValueError, match=message) as refused:
        store.upsert([f"r{i}" for i in range(61)], [""] * 61, [*good, {"v": value}], vectors(random, 61))
    assert "the metadata of record 'r60' cannot have" in str(refused.value)
    assert "under 'v" in str(refused.value)
    assert store.count() == 0


@pytest.mark.parametrize("metadata", [[("v", 1)], None, "v", 5])
def test_metadata_must_be_a_mapping(metadata: Any, store: Store, random: np.random.Generator) -> None:
    with pytest.raises(TypeError, match="metadata of record 'a' must be a mapping"):
        store.upsert(["a"], [""], [metadata], vectors(random, 1))
    assert store.count() == 0


def test_a_key_that_is_no_string_is_refused_wherever_it_stands(store: Store, random: np.random.Generator) -> None:
    for metadata in ({1: 5}, {"a": {None: 1}}, {"a": [{(1,): 1}]}):
        with pytest.raises(ValueError, match="keys must be strings"):
            store.upsert(["a"], [""], [metadata], vectors(random, 1))  # type: ignore[list-item]


def test_metadata_may_be_nested_twenty_deep(store: Store, random: np.random.Generator) -> None:
    deep: Any = 1
    for _ in range(20):
        deep = {"a": deep}
    store.upsert(["a"], [""], [{"v": deep}], vectors(random, 1))
    assert store.get(["a"])[0].metadata == {"v": deep}
    assert store.count({"v" + 20 * ".a": 1}) == 1
    looped: list[Any] = []
    looped.append(looped)
    for value in ({"a": deep}, looped):
        with pytest.raises(ValueError, match="nested 20 deep"):
            store.upsert(["b"], [""], [{"v": value}], vectors(random, 1))


@pytest.mark.parametrize(
    ("value", "message"), REFUSED, ids=lambda each: repr(each)[:20] if not isinstance(each, int) else "n"
)
@pytest.mark.parametrize("operator", ["$eq", "$ne", "$in", "$nin", "$gt"])
def test_what_metadata_cannot_hold_no_filter_compares(value: Any, message: str, operator: str, store: Store) -> None:
    del message
    operand = [value] if operator in {"$in", "$nin"} else value
    with pytest.raises(ValueError, match=r"cannot have|needs"):
        store.count({"v": {operator: operand}})


def test_floats_and_integers_are_exact_in_a_folder(tmp_path: Path, random: np.random.Generator) -> None:
    bits = random.integers(0, 2**64, 400, dtype=np.uint64).tolist()
    floats = [value for (value,) in (struct.unpack("d", struct.pack("Q", each)) for each in bits) if np.isfinite(value)]
    floats += (random.random(400) * 10.0 ** random.integers(-30, 30, 400)).tolist() + [
        round(x, 4) for x in random.random(99)
    ]
    with EdgeStore(tmp_path / "s") as store:
        store.upsert(["a"], [""], [{"floats": floats, "whole": bits}], vectors(random, 1))
        assert store.get(["a"])[0].metadata == {"floats": floats, "whole": bits}
        payload = store._opened().retrieve([next(iter(store._scroll(None)[0])).id], True, False)[0].payload
        assert payload is not None
        np.testing.assert_allclose(payload["metadata"]["floats"], floats, rtol=1e-15)  # native, for others to filter


def test_metadata_are_native_payload_and_exact_only_where_it_must_be(
    tmp_path: Path, random: np.random.Generator
) -> None:
    plain = {"year": 2024, "price": 12.99, "tags": ["a", {"b": True}], "loc": {"page": None}}
    assert as_json_values(check_metadata(plain, "x")) == (plain, None)
    dated = {"day": date(2024, 5, 1), "at": [datetime(2024, 5, 1, 2, tzinfo=PARIS)], "third": 1 / 3}
    native, exact = as_json_values(check_metadata(dated, "x"))
    assert native == {"day": "2024-05-01", "at": ["2024-05-01T02:00:00+02:00"], "third": 1 / 3}
    assert exact is not None
    assert read_exact(exact) == dated
    json.dumps(native)
    with EdgeStore(tmp_path / "s") as store:
        store.upsert(["a"], [""], [plain | dated], vectors(random, 1))
        (point,), _ = store._scroll(None)
        assert point.payload is not None
        assert point.payload["metadata"] == plain | native


Make = Callable[..., Any]


def documents_of(store: Store, metadatas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    retriever = langchain.M3HybridRetriever(encoder=FakeEncoder(), store=store, k=100)
    retriever.add_documents(
        [Document(id=str(i), page_content=f"word {i}", metadata=each) for i, each in enumerate(metadatas)]
    )
    return [found.metadata for found in sorted(retriever.invoke("word"), key=lambda each: int(each.id or ""))]


def nodes_of(store: Store, metadatas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    retriever = llama_index.M3HybridRetriever(encoder=FakeEncoder(), store=store, similarity_top_k=100)
    retriever.add_nodes([TextNode(id_=str(i), text=f"word {i}", metadata=each) for i, each in enumerate(metadatas)])
    found = [each.node for each in retriever.retrieve("word")]
    return [node.metadata for node in sorted(found, key=lambda node: int(node.node_id))]


@pytest.mark.parametrize("adapter", [documents_of, nodes_of])
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_both_frameworks_keep_values_alike(adapter: Make, kind: str, tmp_path: Path) -> None:
    with open_store(None if kind == "memory" else tmp_path / "s") as store:
        found = adapter(store, [{"v": given} for given, _ in KEPT])
        assert repr(found) == repr([{"v": kept} for _, kept in KEPT])
        assert store.count({"v": {"$gte": "2024-05-01T12:00"}}) > 0
        assert store.count({"v": {"$ne": True}}) == len(KEPT) - sum(
            expected(kept, "v", "$eq", True) for _, kept in KEPT
        )


@pytest.mark.parametrize("adapter", [documents_of, nodes_of])
def test_both_frameworks_refuse_values_alike_before_the_first_pass(adapter: Make) -> None:
    for value, message in REFUSED:
        store = open_store()
        with pytest.raises(ValueError, match=message) as refused:
            adapter(store, [{"v": 1}] * 3 + [{"v": value}])
        assert "'3'" in str(refused.value)
        assert (store.count(), store.modes) == (0, ())
