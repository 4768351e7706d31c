"""Records as LangChain documents, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.documents import Document

from m3_integrations.search import Hit
from m3_integrations.store import Record

_RESULT_KEYS: Final = frozenset({"relevance_score", "m3_scores"})

_FOREIGN_PREFIX: Final = "_node"
"""Keys that begin so were written by the adapter for LlamaIndex, for itself."""


def as_document(found: Record | Hit, **results: Any) -> Document:
    """Give a record as a document, with these results in its metadata."""
    own = {key: value for key, value in found.metadata.items() if not key.startswith(_FOREIGN_PREFIX)}
    return Document(id=found.id, page_content=found.text, metadata={**own, **results})


def as_stored(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Give what is stored of a document's metadata: all but the scores that an earlier search has put there."""
    return {key: value for key, value in metadata.items() if key not in _RESULT_KEYS}
