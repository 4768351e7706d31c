"""`M3Translator`: translates the structured queries of `SelfQueryRetriever` into our filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery, Visitor

_DATES: Final = ("date", "datetime")
"""LangChain's query language writes a date as a mapping with the key "date" or "datetime", and "type"."""


def _unwrapped(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return next((value[key] for key in _DATES if key in value), value)


class M3Translator(Visitor):
    """Translates the queries of `SelfQueryRetriever` into searches of `M3VectorStore`.

    `like` raises an error, because our filters do not have it. `contain` means that a list has the value as one of its
    elements.

    Setup:
        ```bash
        pip install 'PATH_TO_THE_CLONE[langchain]' langchain-classic lark
        ```

    Key init args:
        None.

    Instantiate:
        ```python
        from m3_integrations.langchain import M3Translator

        translator = M3Translator()
        ```

    Usage:
        ```python
        from langchain_classic.retrievers import SelfQueryRetriever

        retriever = SelfQueryRetriever.from_llm(
            chat_model, vectors, "notes on keys", metadata_field_info, structured_query_translator=translator
        )
        ```
    """

    allowed_comparators = (
        Comparator.EQ,
        Comparator.NE,
        Comparator.GT,
        Comparator.GTE,
        Comparator.LT,
        Comparator.LTE,
        Comparator.CONTAIN,
        Comparator.IN,
        Comparator.NIN,
    )
    allowed_operators = (Operator.AND, Operator.OR, Operator.NOT)

    def visit_operation(self, operation: Operation) -> dict[str, Any]:
        """Return the filter of an operation.

        Raises:
            ValueError: For a `not` without a condition or with several.
        """
        self._validate_func(operation.operator)
        parts = [argument.accept(self) for argument in operation.arguments]
        if operation.operator != Operator.NOT:
            return {f"${operation.operator.value}": parts}
        if len(parts) != 1:
            raise ValueError(f"'not' takes one condition, got {len(parts)}")
        return {"$not": parts[0]}

    def visit_comparison(self, comparison: Comparison) -> dict[str, Any]:
        """Return the filter of a comparison.

        Raises:
            ValueError: For a comparator that is not allowed, or `contain` with an empty list.
        """
        self._validate_func(comparison.comparator)
        listed = isinstance(comparison.value, list | tuple)
        values = [_unwrapped(value) for value in (comparison.value if listed else [comparison.value])]
        attribute, comparator = comparison.attribute, comparison.comparator
        if comparator in {Comparator.IN, Comparator.NIN}:  # language models also write one value
            return {attribute: {f"${comparator.value}": values}}
        if comparator == Comparator.CONTAIN:
            if not values:
                raise ValueError(f"'contain' on {attribute!r} needs a value, got an empty list")
            parts = [{attribute: {"$eq": value}} for value in values]
            return {"$and": parts} if listed else parts[0]
        return {attribute: {f"${comparator.value}": values if listed else values[0]}}

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        """Return the query's text, and the search's keyword arguments: `filter`, if the query has one."""
        if structured_query.filter is None:
            return structured_query.query, {}
        return structured_query.query, {"filter": structured_query.filter.accept(self)}
