import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from m3_integrations.store import Filter, matches, parse_filter

RECORD = {
    "product": "vault",
    "year": 2024,
    "price": 9.5,
    "tags": ["keys", "safe"],
    "is_new": True,
    "empty": [],
    "none": None,
}


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({}, True),
        ({"product": "vault"}, True),
        ({"product": "Vault"}, False),
        ({"product": "vault", "year": 2024}, True),
        ({"product": "vault", "year": 2023}, False),
        ({"year": 2024.0}, True),
        ({"year": "2024"}, False),
        ({"year": {"$gte": 2024, "$lt": 2025}}, True),
        ({"year": {"$gt": 2024}}, False),
        ({"price": {"$lte": 9.5}}, True),
        ({"product": {"$gte": 1}}, False),
        ({"tags": "keys"}, True),
        ({"tags": "other"}, False),
        ({"tags": {"$ne": "keys"}}, False),
        ({"tags": {"$in": ["a", "safe"]}}, True),
        ({"tags": {"$nin": ["a", "safe"]}}, False),
        ({"product": {"$in": []}}, False),
        ({"product": {"$nin": []}}, True),
        ({"is_new": True}, True),
        ({"is_new": 1}, False),
        ({"year": True}, False),
        ({"is_new": {"$gte": 0}}, False),
        ({"absent": "x"}, False),
        ({"absent": {"$ne": "x"}}, True),
        ({"absent": {"$nin": ["x"]}}, True),
        ({"absent": {"$gt": 0}}, False),
        ({"absent": {"$exists": False}}, True),
        ({"absent": {"$exists": True}}, False),
        ({"none": {"$exists": True}}, False),
        ({"empty": {"$exists": True}}, False),
        ({"empty": {"$ne": 1}}, True),
        ({"tags": {"$exists": True}}, True),
        ({"$or": [{"year": 1999}, {"product": "vault"}]}, True),
        ({"$or": [{"year": 1999}, {"product": "x"}]}, False),
        ({"$and": [{"year": 2024}, {"product": "x"}]}, False),
        ({"$or": [{}, {"product": "x"}]}, True),
        ({"$not": {"product": "vault"}}, False),
        ({"$not": {"absent": "x"}}, True),
        ({"$not": {}}, False),
        ({"year": {"$not": {"$gte": 2025}}}, True),
        ({"year": {"$not": {"$gte": 2024, "$lt": 2025}}}, False),
        ({"a.b": 1}, False),
    ],
)
def test_a_filter_means_what_it_says(filter_: dict[str, Any], expected: bool) -> None:
    assert matches(parse_filter(filter_), RECORD) is expected


@pytest.mark.parametrize(
    ("metadata", "is_match"),
    [
        ({"a": {"b": {"c": 1}}}, True),
        ({"a.b.c": 1}, True),
        ({"a.b": {"c": 1}}, True),
        ({"a": {"b.c": [2, 1]}}, True),
        ({"a": [{"b": {"c": 2}}, {"b": {"c": 1}}]}, True),
        ({"a.b": {"c": 2}, "a": {"b": {"c": 1}}}, True),
        ({"a": {"b": [[{"c": 1}]]}}, False),
        ({"a": {"b": 1}}, False),
        ({"c": 1}, False),
        ({"a": None}, False),
    ],
)
def test_dots_lead_into_mappings(metadata: dict[str, Any], is_match: bool) -> None:
    assert matches({"a.b.c": 1}, metadata) is is_match
    assert matches({"a.b.c": {"$ne": 1}}, metadata) is not is_match


@pytest.mark.parametrize(
    ("filter_", "error", "message"),
    [
        ({"year": {"$near": 5}}, ValueError, r"unknown \$near on 'year'.*\$eq"),
        ({"$nor": [{"a": 1}]}, ValueError, r"unknown operator \$nor"),
        ({"year": {"$gt": "2024"}}, ValueError, "needs a number or a date"),
        ({"year": {"$gt": True}}, ValueError, "needs a number or a date"),
        ({"year": {"$gt": float("nan")}}, ValueError, "not finite"),
        ({"year": 2**60}, ValueError, "2\\*\\*53"),
        ({"year": {"$lt": 1e20}}, ValueError, "2\\*\\*53"),
        ({"year": None}, ValueError, r"\$exists"),
        ({"tags": ["keys"]}, ValueError, "needs a string, a number, a boolean or a date"),
        ({"tags": {"$in": "keys"}}, ValueError, "needs a list"),
        ({"tags": {"$in": [["x"]]}}, ValueError, "needs a string"),
        ({"tags": {"$exists": "yes"}}, ValueError, "True or False"),
        ({"tags": {}}, ValueError, "is empty"),
        ({"$and": []}, ValueError, "one or more"),
        ({"$or": {"a": 1}}, ValueError, "one or more"),
        ({"year": {"$not": 5}}, ValueError, "unknown"),
        ({3: 4}, TypeError, "keys must be strings"),
        ("year = 2024", TypeError, "must be a mapping"),
        ([{"a": 1}], TypeError, "must be a mapping"),
        ({"a": 10**400}, ValueError, r"below 2\*\*1023"),
        ({"a": float("nan")}, ValueError, "not finite"),
        ({"a": "\ud800"}, ValueError, "not valid Unicode"),
        ({"\ud800": 1}, ValueError, "not valid Unicode"),
    ],
)
def test_what_cannot_be_honoured_exactly_is_refused(filter_: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_filter(filter_)


@pytest.mark.parametrize(
    "wrap", [lambda f: {"$and": [{"b": 1}, f]}, lambda f: {"$or": [{"c": 1}, f]}, lambda f: {"$not": f}]
)
def test_filters_stand_twenty_deep_in_each_other_at_most(wrap: Callable[[Any], Any]) -> None:
    filter_: Any = {"a": 1}
    for _ in range(20):
        filter_ = wrap(filter_)
    assert matches(filter_, {"a": 1, "b": 1})
    for _ in range(3000):  # Python's own limit is lower
        filter_ = wrap(filter_)
        with pytest.raises(ValueError, match="nested 20 deep"):
            parse_filter(filter_)


def test_a_keys_own_negations_are_counted_too() -> None:
    asked: Any = {"$eq": 1}
    for _ in range(3000):
        asked = {"$not": asked}
    with pytest.raises(ValueError, match="nested 20 deep"):
        parse_filter({"a": asked})


def test_a_long_list_costs_a_record_no_more_than_a_short_one() -> None:
    short, long = (parse_filter({"source": {"$in": [f"file {i}" for i in range(n)]}}) for n in (10, 20_000))

    def cost(filter_: Filter | None) -> float:
        return min(timeit.repeat(lambda: [matches(filter_, {"source": f"file {-i}"}) for i in range(200)], number=1))

    assert cost(long) < 50 * cost(short)  # comparing with each of the list takes 2,000 times as long


def random_filter(random: np.random.Generator, depth: int = 2) -> dict[str, Any]:
    """Over the keys of `random_metadata`."""
    choice = int(random.integers(0, 9 if depth else 6))
    key = ["color", "size", "tags", "flag", "absent"][random.integers(5)]
    value: Any = [["red", "blue", 3, 3.0, True, "5"][random.integers(6)], int(random.integers(0, 6))][
        random.integers(2)
    ]
    if choice == 0:
        return {key: value}
    if choice == 1:
        return {key: {["$eq", "$ne"][random.integers(2)]: value}}
    if choice == 2:
        return {key: {["$in", "$nin"][random.integers(2)]: [value, int(random.integers(0, 6)), "red"]}}
    if choice in {3, 4}:
        return {key: {["$gt", "$gte", "$lt", "$lte"][random.integers(4)]: float(random.integers(0, 6))}}
    if choice == 5:
        return {key: {"$exists": bool(random.integers(2))}}
    parts = [random_filter(random, depth - 1) for _ in range(random.integers(1, 4))]
    return {"$not": parts[0]} if choice == 6 else {["$and", "$or"][choice - 7]: parts}


def random_metadata(random: np.random.Generator) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "color": ["red", "blue", "5"][random.integers(3)],
        "size": [int(random.integers(0, 6)), float(random.integers(0, 6))][random.integers(2)],
        "tags": [["red", 3, True, "x"][i] for i in random.integers(0, 4, random.integers(0, 4))],
        "flag": bool(random.integers(2)),
    }
    for key in list(metadata):
        if random.random() < 0.15:
            metadata[key] = None
        elif random.random() < 0.15:
            del metadata[key]
    return metadata


def plainly_holds(operator: str, operand: Any, elements: list[Any]) -> bool:
    if operator == "$exists":
        return bool(elements) is operand
    if operator in {"$eq", "$ne", "$in", "$nin"}:
        operands = operand if operator in {"$in", "$nin"} else [operand]
        found = any((type(e) is bool) == (type(o) is bool) and e == o for e in elements for o in operands)
        return found if operator in {"$eq", "$in"} else not found
    numbers = [element for element in elements if type(element) in {int, float}]
    if operator in {"$gt", "$gte"}:
        return any(n > operand or (operator == "$gte" and n == operand) for n in numbers)
    return any(n < operand or (operator == "$lte" and n == operand) for n in numbers)


def plain(filter_: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """A second evaluator, straight from the words of the documentation and without parsing."""
    for key, asked in filter_.items():
        if key == "$and":
            ok = all(plain(part, metadata) for part in asked)
        elif key == "$or":
            ok = any(plain(part, metadata) for part in asked)
        elif key == "$not":
            ok = not plain(asked, metadata)
        else:
            value = metadata.get(key)
            elements = [] if value is None else value if isinstance(value, list) else [value]
            operator, operand = next(iter(asked.items())) if isinstance(asked, dict) else ("$eq", asked)
            ok = plainly_holds(operator, operand, elements)
        if not ok:
            return False
    return True


def test_random_filters_equal_a_plain_evaluation() -> None:
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(3000):
        filter_, metadata = random_filter(random), random_metadata(random)
        expected = plain(filter_, metadata)
        assert matches(parse_filter(filter_), metadata) is expected, (filter_, metadata)
        outcomes.add(expected)
    assert outcomes == {True, False}
