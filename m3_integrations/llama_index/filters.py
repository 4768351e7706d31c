"""Translates LlamaIndex's `MetadataFilters` into our filter language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from m3_integrations.store import FilterLike, parse_filter
from m3_integrations.store.filters import AllOf, Condition, Not

_OPERATORS: Final = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.ANY: "$in",  # a list matches if any of its elements does
    FilterOperator.CONTAINS: "$eq",  # likewise
}


def as_filter(filters: MetadataFilters | FilterLike) -> FilterLike:
    """Translate `MetadataFilters` into our filter language; return any other filter unchanged.

    A list in the metadata matches if one of its elements matches, and a single value counts as a list of one. So
    `contains` and `any` compare whole values and never search for parts of a string. `is_empty` is true if the key is
    missing, None or an empty list. A missing key satisfies only `!=`, `nin` and `is_empty`.

    Raises:
        TypeError: For a `MetadataFilter` or a list, which must be wrapped in `MetadataFilters`.
        ValueError: For None where the operator compares; for an operator that our filters do not have: `text_match` and
            `text_match_insensitive`; or for `all` without a list.
    """
    if isinstance(filters, MetadataFilter | list):
        raise TypeError(
            f"filters must be a mapping or MetadataFilters, got {filters!r:.80}: pass MetadataFilters(filters=[...])"
        )
    if not isinstance(filters, MetadataFilters):
        return filters
    parts = [as_filter(part) if isinstance(part, MetadataFilters) else _condition(part) for part in filters.filters]
    if not parts:
        return {}
    if filters.condition == FilterCondition.NOT:
        return {"$not": {"$or": parts}}  # true if none matches, as in LlamaIndex's own stores
    return {"$or" if filters.condition == FilterCondition.OR else "$and": parts}


def _condition(condition: MetadataFilter) -> FilterLike:
    if not condition.key.startswith("$"):
        return _as_mapping(condition)
    # As a key of a mapping it would be an operator. Errors name this other key, which has the key in it.
    named = parse_filter(_as_mapping(condition.model_copy(update={"key": f"key {condition.key}"})))
    return _with_key(named, condition.key)


def _with_key(filter: FilterLike, key: str) -> FilterLike:  # noqa: A002 - the word users know
    """Return a parsed filter on one key as a filter on another."""
    if isinstance(filter, Condition):
        return replace(filter, key=key)
    if isinstance(filter, Not):
        return {"$not": _with_key(filter.filter, key)}
    if isinstance(filter, AllOf) and filter.filters:
        return {"$and": [_with_key(part, key) for part in filter.filters]}
    return filter


def _as_mapping(condition: MetadataFilter) -> dict[str, Any]:
    key, operator, value = condition.key, condition.operator, condition.value
    if value is None and operator != FilterOperator.IS_EMPTY:
        raise ValueError(
            f"{operator.value} on {key!r} cannot compare None: use the operator is_empty for a missing key"
        )
    if operator == FilterOperator.IS_EMPTY:
        return {key: {"$exists": False}}
    if operator == FilterOperator.ALL:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise ValueError(f"all on {key!r} needs a list of one or more values, got {value!r}")
        return {"$and": [{key: {"$eq": part}} for part in value]}
    if operator not in _OPERATORS:
        raise ValueError(
            f"no store supports {operator.value} on {key!r} exactly: use one of "
            f"{', '.join(known.value for known in _OPERATORS)}, all, is_empty"
        )
    return {key: {_OPERATORS[operator]: value}}
