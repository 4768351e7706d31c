"""Nodes as records, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from llama_index.core.schema import BaseNode, NodeWithScore, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from pydantic import Field

from m3_integrations.search import Hit

SCORES_KEY: Final = "m3_scores"

REF_DOC_KEY: Final = "_node_ref_doc_id"
"""The key under which a record keeps the id of its node's document; no user's metadata have it."""

_SOURCE_KEYS: Final = ("document_id", "doc_id", "ref_doc_id")
"""The keys under which LlamaIndex's convention puts the same id, so that filters can ask for it."""


class M3NodeWithScore(NodeWithScore):
    """A node with its final score, and with the score in every mode."""

    m3_scores: dict[str, float] = Field(default_factory=dict)
    """The raw score in every mode that ranked the node, and "bm25" where BM25 found it."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "M3NodeWithScore"


def with_results(node: BaseNode, results: Mapping[str, Any]) -> BaseNode:
    """Return a copy of a node with these results in its metadata, but in no text for an embedding model or an LLM."""
    excluded = {
        name: [*getattr(node, name), *(key for key in results if key not in getattr(node, name))]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    return node.model_copy(update={"metadata": {**node.metadata, **results}, **excluded})


def without_results(node: BaseNode) -> BaseNode:
    """Return a node as it was before it was reranked."""
    if SCORES_KEY not in node.metadata:
        return node
    excluded = {
        name: [key for key in getattr(node, name) if key != SCORES_KEY]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    metadata = {key: value for key, value in node.metadata.items() if key != SCORES_KEY}
    return node.model_copy(update={"metadata": metadata, **excluded})


def as_metadata(node: BaseNode) -> dict[str, Any]:
    """Return a record's metadata: the node's own, as JSON has them, and the whole node as LlamaIndex's stores keep it.

    Raises:
        ValueError: If the node holds a value that JSON has no form for.
    """
    metadata = node_to_metadata_dict(node)
    own = json.loads(metadata["_node_content"])["metadata"]
    for key in _SOURCE_KEYS:  # LlamaIndex would overwrite a user's own key, and writes "None" where there is no source
        if key in own:
            metadata[key] = own[key]
        elif node.ref_doc_id is None:
            del metadata[key]
    return metadata if node.ref_doc_id is None else {**metadata, REF_DOC_KEY: node.ref_doc_id}


def as_result(hit: Hit) -> M3NodeWithScore:
    """Return a hit's node with its scores.

    A record that was not added as a node becomes a `TextNode` with the record's id, text and metadata. It excludes its
    metadata from the text for embedding models, as they were not encoded.
    """
    metadata = hit.metadata
    node = (
        metadata_dict_to_node(metadata)
        if "_node_content" in metadata
        else TextNode(id_=hit.id, text=hit.text, metadata=metadata, excluded_embed_metadata_keys=list(metadata))
    )
    return M3NodeWithScore(node=node, score=hit.score, m3_scores=hit.scores)
