"""Nodes as records, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from pydantic import Field

from m3_integrations.search import Hit

SCORES_KEY: Final = "m3_scores"

REF_DOC_KEY: Final = "_node_ref_doc_id"
"""Where a record says which document its node is from; a key that no user's metadata has."""

_SOURCE_KEYS: Final = ("document_id", "doc_id", "ref_doc_id")
"""Under these LlamaIndex's convention puts the same, so that filters can ask for it."""


class M3NodeWithScore(NodeWithScore):
    """A node with its final score, and with the score in every mode."""

    m3_scores: dict[str, float] = Field(default_factory=dict)
    """The raw score in every mode that ranked the node, and "bm25" where BM25 found it."""

    @classmethod
    def class_name(cls) -> str:
        """Give the name under which LlamaIndex knows the class."""
        return "M3NodeWithScore"


def embedded_text(node: BaseNode) -> str:
    """Give the text of a node that is encoded: its metadata too, but for those that it excludes."""
    return node.get_content(metadata_mode=MetadataMode.EMBED)


def with_results(node: BaseNode, results: Mapping[str, Any]) -> BaseNode:
    """Give a copy of a node with these results in its metadata, but in no text for an embedding model or an LLM."""
    excluded = {
        name: [*getattr(node, name), *(key for key in results if key not in getattr(node, name))]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    return node.model_copy(update={"metadata": {**node.metadata, **results}, **excluded})


def without_results(node: BaseNode) -> BaseNode:
    """Give a node as it was before it was reranked."""
    if SCORES_KEY not in node.metadata:
        return node
    excluded = {
        name: [key for key in getattr(node, name) if key != SCORES_KEY]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    metadata = {key: value for key, value in node.metadata.items() if key != SCORES_KEY}
    return node.model_copy(update={"metadata": metadata, **excluded})


def as_metadata(node: BaseNode) -> dict[str, Any]:
    """Give a record's metadata: the node's own, as JSON has them, and the whole node as LlamaIndex's stores keep it.

    Raises:
        ValueError: If the node holds what JSON has no form for.
    """
    metadata = node_to_metadata_dict(node)
    own = json.loads(metadata["_node_content"])["metadata"]
    for key in _SOURCE_KEYS:  # where LlamaIndex would overwrite what a user calls so, and writes "None" for none
        if key in own:
            metadata[key] = own[key]
        elif node.ref_doc_id is None:
            del metadata[key]
    return metadata if node.ref_doc_id is None else {**metadata, REF_DOC_KEY: node.ref_doc_id}


def as_node(hit: Hit) -> BaseNode:
    """Give a record's node; one that was not added as a node is a `TextNode` with the record's id, text and metadata.

    Such a node excludes its metadata from the text for embedding models, as they were not encoded.
    """
    if "_node_content" in hit.metadata:
        return metadata_dict_to_node(hit.metadata)
    return TextNode(id_=hit.id, text=hit.text, metadata=hit.metadata, excluded_embed_metadata_keys=list(hit.metadata))


def as_result(hit: Hit) -> M3NodeWithScore:
    """Give a hit as a node with its scores."""
    return M3NodeWithScore(node=as_node(hit), score=hit.score, m3_scores=hit.scores)
