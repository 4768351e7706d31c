"""Converts records and hits to LangChain's documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from langchain_core.documents import Document
from pydantic import PrivateAttr

from m3_integrations.search import NODE_KEYS, Hit, holds_node, is_scores
from m3_integrations.store import Record
from m3_integrations.store.values import with_iso_dates

RERANK_KEYS: Final = frozenset({"relevance_score", "m3_scores"})
"""The keys under which `M3Rerank` puts scores into a document's metadata."""


class M3Document(Document):
    """A document that a search found, with its scores as attributes; it equals the document that was added.

    The scores are not in the metadata, and neither `==` nor LangChain's `dumps` includes them. So the same document
    found by two queries is equal.
    """

    _score: float = PrivateAttr(default=0.0)
    _m3_scores: dict[str, float] = PrivateAttr(default_factory=dict)

    @property
    def score(self) -> float:
        """The score that ranked it, higher is better."""
        return self._score

    @property
    def m3_scores(self) -> dict[str, float]:
        """The raw score in every mode that ranked it; "bm25" and "probability" as `Hit` has them."""
        return self._m3_scores

    @classmethod
    def lc_id(cls) -> list[str]:
        """Return the class path that LangChain serializes it under: that of `Document`."""
        return Document.lc_id()

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Return the fields to serialize in another form: dates as ISO strings, because `loads` cannot read dates."""
        return {"metadata": with_iso_dates(self.metadata)} if self.metadata else {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        return _content(self) == _content(other)

    __hash__ = None  # type: ignore[assignment]  # Document has no hash either


def _content(document: Document) -> tuple[Any, ...]:
    return document.id, document.page_content, document.metadata


def as_documents(found: Sequence[Record | Hit]) -> list[Document]:
    """Convert records to `Document` and hits, with their scores, to `M3Document`."""
    return [_as_document(each) for each in found]


def _as_document(found: Record | Hit) -> Document:
    metadata = dict(found.metadata)
    if holds_node(metadata):  # leave out the keys that only the LlamaIndex adapter uses
        metadata = {key: value for key, value in metadata.items() if key not in NODE_KEYS}
    document = Document(id=found.id, page_content=found.text, metadata=metadata)
    return document if isinstance(found, Record) else with_scores(document, found.score, found.scores)


def with_scores(document: Document, score: float, m3_scores: dict[str, float]) -> M3Document:
    """Return a copy of a document with these scores."""
    found = M3Document(id=document.id, page_content=document.page_content, metadata=document.metadata)
    found._score, found._m3_scores = score, m3_scores
    return found


def without_scores(metadata: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return metadata without the scores of an earlier `M3Rerank`; a user's own key with the same name stays."""
    if not isinstance(metadata, Mapping) or not metadata.keys() >= RERANK_KEYS or not is_scores(metadata["m3_scores"]):
        return metadata
    return {key: value for key, value in metadata.items() if key not in RERANK_KEYS}


def checked_documents(documents: Any) -> list[Document]:
    """Return documents as a list.

    Raises:
        TypeError: If documents is a single one, or holds anything but documents.
    """
    # A document is iterable too: it yields its fields.
    if isinstance(documents, Document | str) or not isinstance(documents, Iterable):
        raise TypeError(
            f"documents must be a list or another iterable, got one {type(documents).__name__}: pass [document]"
        )
    checked: list[Any] = list(documents)
    for i, document in enumerate(checked):
        if not isinstance(document, Document):
            hint = ": pass Document(page_content=...)" if isinstance(document, str) else ""
            raise TypeError(f"every document must be a Document, got {type(document).__name__} at position {i}{hint}")
    return checked
