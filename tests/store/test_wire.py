"""Records and filters survive the way between a client and `m3 serve`; what nobody of ours sends is refused."""

import json
from typing import Any

import numpy as np
import pytest

from m3_integrations.store import parse_filter
from m3_integrations.store.filters import Instant
from m3_integrations.store.wire import filter_from_json, filter_to_json, parts_of, record_from_json, unpack_records
from m3_integrations.vectors import take_vectors
from tests.test_filters import random_filter


def test_a_filter_comes_back_as_it_was_parsed(random: np.random.Generator) -> None:
    for _ in range(500):
        parsed = parse_filter(random_filter(random))
        assert filter_from_json(json.loads(json.dumps(filter_to_json(parsed)))) == parsed


def test_the_deepest_filter_comes_through() -> None:
    deep: dict[str, Any] = {"a": {"$ne": 1}, "b": 2}
    for _ in range(10):
        deep = {"$or": [{"$not": deep}, {"c": {"$gt": 1, "$lt": 9}}]}
    parsed = parse_filter(deep)
    assert filter_from_json(json.loads(json.dumps(filter_to_json(parsed)))) == parsed
    with pytest.raises(ValueError, match="20 deep"):
        parse_filter({"$or": [{"$not": deep}]})


@pytest.mark.parametrize(
    "said",
    [
        1,
        [],
        {},
        {"all": {}},
        {"all": [], "any": []},
        {"not": None},
        {"key": "a", "operator": "$eq"},
        {"key": 1, "operator": "$eq", "value": 1},
        {"key": "\ud800", "operator": "$eq", "value": 1},
        {"key": "a", "operator": "$near", "value": 1},
        {"key": "a", "operator": ["$eq"], "value": 1},
        {"key": "a", "operator": "$eq", "value": None},
        {"key": "a", "operator": "$eq", "value": "\udfff"},
        {"key": "a", "operator": "$eq", "value": 2**53 + 1},
        {"key": "a", "operator": "$eq", "value": 10**400},
        {"key": "a", "operator": "$eq", "value": float("nan")},
        {"key": "a", "operator": "$eq", "value": {"instant": 10**400}},
        {"key": "a", "operator": "$eq", "value": {"instant": True}},
        {"key": "a", "operator": "$in", "value": []},
        {"key": "a", "operator": "$in", "value": "abc"},
        {"key": "a", "operator": "$gt", "value": "2024"},
        {"key": "a", "operator": "$gt", "value": True},
        {"key": "a", "operator": "$exists", "value": False},
    ],
)
def test_a_filter_that_no_client_makes_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match=r"filter"):
        filter_from_json(said)


def test_a_filter_without_end_is_refused() -> None:
    said: Any = {"key": "a", "operator": "$eq", "value": {"instant": 5}}
    parsed = filter_from_json(said)
    assert parsed is not None
    assert parsed.value == Instant(5)  # type: ignore[union-attr]
    for _ in range(200):
        said = {"not": said}
    with pytest.raises(ValueError, match="at most 64 deep"):
        filter_from_json(said)


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {"id": "a", "text": "b"},
        {"id": 1, "text": "b", "metadata": {}},
        {"id": "a", "text": None, "metadata": {}},
        {"id": "a", "text": "b", "metadata": []},
        {"id": "a", "text": "b", "metadata": {"x": 1}, "dates": [["y"]]},
        {"id": "a", "text": "b", "metadata": {"x": 1}, "dates": [["x"]]},
        {"id": "a", "text": "b", "metadata": {"x": "no date"}, "dates": [["x"]]},
        {"id": "a", "text": "b", "metadata": {"x": "2024-01-01"}, "dates": [[]]},
        {"id": "a", "text": "b", "metadata": {"x": "2024-01-01"}, "dates": 7},
        {"id": "a", "text": "b", "metadata": {"x": "2024-01-01"}, "dates": [["x", 0]]},
    ],
)
def test_a_record_that_no_client_makes_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match="a record"):
        record_from_json(said)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dense": np.zeros((2, 4), np.float64)}, "type float64"),
        ({"dense": np.zeros((1, 4), np.float32)}, r"shape \(1, 4\)"),
        ({"lexical.indices": np.array([5, 5, 1], np.int32)}, "rise within a text"),
        ({"lexical.indices": np.array([-1, 5, 1], np.int32)}, "0 or more"),
        ({"lexical.offsets": np.array([0, 2**62, 3])}, "offsets that fall"),
        ({"multi_vector.offsets": np.array([0, -(2**63), 2])}, "offsets that fall"),
        ({"multi_vector.offsets": np.array([1, 1, 2])}, "do not fit together"),
        ({"multi_vector.flat": np.zeros(2, np.float32)}, r"shape \(2,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "dense": np.zeros((2, 4), np.float32),
        "lexical.offsets": np.array([0, 2, 3]),
        "lexical.indices": np.array([1, 5, 1], np.int32),
        "lexical.values": np.ones(3, np.float32),
        "multi_vector.offsets": np.array([0, 0, 2]),
        "multi_vector.flat": np.zeros((2, 4), np.float32),
    }
    modes = ["dense", "lexical", "multi_vector"]
    assert len(take_vectors(dict(good), 2, modes)) == 2  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        take_vectors(good | changed, 2, modes)  # type: ignore[arg-type]


def test_nested_json_without_end_is_refused() -> None:
    from safetensors.numpy import save

    written = b'{"records": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    with pytest.raises(ValueError, match="not safetensors with JSON"):
        unpack_records(save({"json": np.frombuffer(written, np.uint8)}))


def test_parts_keep_to_a_number_and_a_size() -> None:
    sizes = [5, 5, 5, 30, 1, 1, 1, 1]
    assert [sizes[part] for part in parts_of(sizes, 3, 12)] == [[5, 5], [5], [30], [1, 1, 1], [1]]
    assert list(parts_of([], 3, 12)) == []
