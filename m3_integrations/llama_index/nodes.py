"""Converts nodes to records and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    RelatedNodeType,
    TextNode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from pydantic import Field

from m3_integrations.search import NODE_KEYS, Hit, holds_node, is_scores
from m3_integrations.store.values import check_metadata, put_dates, split_dates

SCORES_KEY: Final = "m3_scores"
RETRIEVAL_SCORE_KEY: Final = "retrieval_score"
"""The second key that `M3Rerank` writes into a node's metadata; it comes after the first."""

_CONTENT_KEY: Final = NODE_KEYS[0]
REF_DOC_KEY: Final = NODE_KEYS[2]
"""The key under which a record keeps the id of its node's document. A node's own metadata must not have this key."""

_DATES_KEY: Final = "m3_dates"
"""The key in the node's JSON that tells where the dates in its related nodes' metadata are; LlamaIndex ignores it."""

_SOURCE_KEYS: Final = ("document_id", "doc_id", "ref_doc_id")
"""The keys under which LlamaIndex stores the same id by convention, so that filters can use it."""


class M3NodeWithScore(NodeWithScore):
    """A node with its final score and its score in every mode."""

    m3_scores: dict[str, float] = Field(default_factory=dict)
    """The raw score in every mode that ranked the node; "bm25" and "probability" as `Hit` has them."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "M3NodeWithScore"


def with_results(node: BaseNode, results: Mapping[str, Any]) -> BaseNode:
    """Return a copy of a node with these results in its metadata, hidden from embedding models and LLMs."""
    excluded = {
        name: [*getattr(node, name), *(key for key in results if key not in getattr(node, name))]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    return node.model_copy(update={"metadata": {**node.metadata, **results}, **excluded})


def without_results(node: BaseNode) -> BaseNode:
    """Return a node without the scores of an earlier reranking; a user's own key with the same name stays."""
    if not is_scores(node.metadata.get(SCORES_KEY)) or SCORES_KEY not in node.excluded_embed_metadata_keys:
        return node
    keys = list(node.metadata)
    ours = {SCORES_KEY, *(key for key in keys[keys.index(SCORES_KEY) :] if key == RETRIEVAL_SCORE_KEY)}
    excluded = {
        name: [key for key in getattr(node, name) if key not in ours]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    metadata = {key: value for key, value in node.metadata.items() if key not in ours}
    return node.model_copy(update={"metadata": metadata, **excluded})


def as_metadata(node: BaseNode) -> dict[str, Any]:
    """Return a record's metadata: the node's own metadata, and the whole node in the format of LlamaIndex's stores.

    Raises:
        ValueError: If the metadata of the node or of a related node hold a value that cannot be kept, or have a key
            under which LlamaIndex stores the node, or if an IndexNode's object cannot be kept.
    """
    own = check_metadata(node.metadata, f"node {node.node_id!r}")
    if taken := sorted(own.keys() & set(NODE_KEYS)):
        raise ValueError(
            f"the metadata of node {node.node_id!r} use the key {taken[0]!r}, which stores the node itself: rename it"
        )
    checked = node.model_copy(update={"metadata": own, "relationships": _checked_relationships(node)})
    try:
        whole = node_to_metadata_dict(checked)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"node {node.node_id!r} cannot be stored: {error}. The obj of an IndexNode must be a node, or what JSON "
            "holds; pass nodes with other objects as objects= to LlamaIndex's index, which keeps the objects itself"
        ) from error
    written, dates = split_dates(_related_metadata(checked))
    if dates:  # JSON has no dates, and pydantic's strings for them drop the seconds of an offset
        content = json.loads(whole[_CONTENT_KEY]) | {_DATES_KEY: dates}
        for kind, metadatas in written.items():
            related = content["relationships"][kind]
            pairs = zip(related, metadatas, strict=True) if isinstance(related, list) else [(related, metadatas)]
            for each, metadata_of_it in pairs:
                each["metadata"] = metadata_of_it
        whole[_CONTENT_KEY] = json.dumps(content, ensure_ascii=False)
    metadata = own | {key: each for key, each in whole.items() if key not in own}
    if node.ref_doc_id is None:  # LlamaIndex would store the string "None"
        return {key: each for key, each in metadata.items() if key in own or key not in _SOURCE_KEYS}
    return {**metadata, REF_DOC_KEY: node.ref_doc_id}


def embedded_text(node: BaseNode, metadata: Mapping[str, Any]) -> str:
    """Return a node's text for embedding models, with the values that its record's metadata have."""
    kept = node.model_copy(update={"metadata": {key: metadata[key] for key in node.metadata}})
    return kept.get_content(MetadataMode.EMBED)


def _checked_relationships(node: BaseNode) -> dict[NodeRelationship, RelatedNodeType]:
    """Return a node's relationships, with metadata that JSON can hold."""

    def checked(related: RelatedNodeInfo) -> RelatedNodeInfo:
        owner = f"node {related.node_id!r}, to which node {node.node_id!r} is related"
        return related.model_copy(update={"metadata": check_metadata(related.metadata, owner)})

    return {
        kind: [checked(each) for each in related] if isinstance(related, list) else checked(related)
        for kind, related in node.relationships.items()
    }


def _related_metadata(node: BaseNode) -> dict[str, Any]:
    """Return the metadata of a node's related nodes by the kind of relationship; a list of them for children."""
    return {
        str(kind.value): [each.metadata for each in related] if isinstance(related, list) else related.metadata
        for kind, related in node.relationships.items()
    }


def as_result(hit: Hit) -> M3NodeWithScore:
    """Return a hit's node with its scores.

    A record that was not added as a node becomes a `TextNode` with the record's id, text and metadata. Its metadata are
    excluded from the text for embedding models, because they were not encoded.
    """
    return M3NodeWithScore(node=as_node(hit.id, hit.text, hit.metadata), score=hit.score, m3_scores=hit.scores)


def as_node(id_: str, text: str, metadata: Mapping[str, Any]) -> BaseNode:
    """Return the node that was added as this record, or a `TextNode` if the record was not added as a node.

    Its dates are dates again, with two exceptions, which stay strings of ISO 8601: dates in the metadata of an
    IndexNode's object, and those in the metadata of related nodes if an earlier version stored the record.
    """
    if holds_node(metadata):
        with suppress(ValueError, TypeError):  # another program wrote the key "_node_content" in another format
            node = metadata_dict_to_node(dict(metadata))
            if f'"{_DATES_KEY}"' in metadata[_CONTENT_KEY]:
                with suppress(LookupError, ValueError, TypeError):  # another program changed what it belongs to
                    put_dates(_related_metadata(node), json.loads(metadata[_CONTENT_KEY])[_DATES_KEY])
            # Take the values from the record, which keeps dates as dates; in the node's JSON they are strings.
            node.metadata = {key: metadata[key] for key in node.metadata if key in metadata}
            return node
    own = dict(metadata)
    return TextNode(id_=id_, text=text, metadata=own, excluded_embed_metadata_keys=list(own))
