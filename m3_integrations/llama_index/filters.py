"""LlamaIndex's `MetadataFilters` in our own filter language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from m3_integrations.store import FilterLike

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
    """Turn `MetadataFilters` into a filter of our own language; return anything else as it is.

    A list in the metadata matches if any of its elements does, and a single value counts as a list of one. So
    `contains` and `any` compare whole values and never look for parts of a string. `is_empty` is true where the key is
    absent, None or an empty list. A missing key satisfies only `!=`, `nin` and `is_empty`.

    Raises:
        ValueError: For an operator that cannot be honoured exactly: `text_match`, `text_match_insensitive`, or `all`
            without a list.
    """
    if not isinstance(filters, MetadataFilters):
        return filters
    parts = [as_filter(part) if isinstance(part, MetadataFilters) else _condition(part) for part in filters.filters]
    if not parts:
        return {}
    if filters.condition == FilterCondition.NOT:
        return {"$not": {"$or": parts}}  # none of them, as LlamaIndex's own stores have it
    return {"$or" if filters.condition == FilterCondition.OR else "$and": parts}


def _condition(condition: MetadataFilter) -> dict[str, Any]:
    key, operator, value = condition.key, condition.operator, condition.value
    if operator == FilterOperator.IS_EMPTY:
        return {key: {"$exists": False}}
    if operator == FilterOperator.ALL:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise ValueError(f"all on {key!r} needs a list of one or more values, got {value!r}")
        return {"$and": [{key: {"$eq": part}} for part in value]}
    if operator not in _OPERATORS:
        raise ValueError(
            f"{operator.value} on {key!r} cannot be honoured exactly by every store: known are "
            f"{', '.join(known.value for known in _OPERATORS)}, all, is_empty"
        )
    return {key: {_OPERATORS[operator]: value}}
