"""Splits nodes that are longer than the model's limit, counted in the model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode

from m3_integrations.vectors import Encoder

_SPECIAL_TOKENS: Final = 2
"""[CLS] and [SEP], which every text has."""

_LEAST_ROOM: Final = 16
"""Tokens that a part must have left for text besides its metadata. With less, the node is not split: encoding cuts it
and warns."""


def split_long_nodes(nodes: Sequence[BaseNode], encoder: Encoder) -> list[BaseNode]:
    """Split the nodes that the encoder would cut at the ends of sentences; return the other nodes unchanged.

    A node's metadata are encoded with its text, and so with each part. A part's offsets count from where the node's do,
    and the parts stand in the node's place among its neighbours.

    Args:
        nodes: They are not changed.
        encoder: Counts the tokens. If it has no `max_length`, or one too short for whole sentences, nothing is split.
    """
    # tokenize() cuts at max_length: a longer text has the same count as one of max_length, so parts stay one below.
    capacity = getattr(encoder, "max_length", 0) - _SPECIAL_TOKENS - 1
    if capacity < _LEAST_ROOM:
        return list(nodes)

    def tokenize(text: str) -> list[str]:
        return encoder.tokenize([text])[0][:-1]  # without [SEP]

    splitter = SentenceSplitter(chunk_size=capacity, chunk_overlap=capacity // 8, tokenizer=cast("Any", tokenize))
    return _linked([(node, _parts(node, splitter, tokenize, capacity)) for node in nodes])


def _parts(node: BaseNode, splitter: SentenceSplitter, tokenize: Any, capacity: int) -> list[BaseNode]:
    if len(tokenize(node.get_content(MetadataMode.EMBED))) <= capacity:
        return [node]
    metadata = max(len(tokenize(node.get_metadata_str(mode))) for mode in (MetadataMode.EMBED, MetadataMode.LLM))
    return [node] if metadata + _LEAST_ROOM > capacity else [_moved(part, node) for part in splitter([node])]


def _moved(part: BaseNode, node: BaseNode) -> BaseNode:
    """Return a part whose offsets count from where the node's do; without offsets if they cannot be known."""
    if not isinstance(part, TextNode) or isinstance(node, Document) or part.start_char_idx is None:
        return part
    start, end = getattr(node, "start_char_idx", None), getattr(node, "end_char_idx", None)
    if start is None or end is None or end - start != len(node.get_content()):
        return part.model_copy(update={"start_char_idx": None, "end_char_idx": None})
    first = start + part.start_char_idx
    return part.model_copy(update={"start_char_idx": first, "end_char_idx": first + len(part.text)})


def _linked(split: Sequence[tuple[BaseNode, list[BaseNode]]]) -> list[BaseNode]:
    """Return the parts of all nodes, each with the part before and after it as its neighbours."""
    parts_of = {node.node_id: parts for node, parts in split if parts != [node]}

    def neighbour(related: RelatedNodeInfo | None, position: int) -> RelatedNodeInfo | None:
        parts = None if related is None else parts_of.get(related.node_id)
        return parts[position].as_related_node_info() if parts else related

    linked: list[BaseNode] = []
    for node, parts in split:
        inner = [part.as_related_node_info() for part in parts]
        row = [neighbour(node.prev_node, -1), *inner, neighbour(node.next_node, 0)]
        for part, before, after in zip(parts, row, row[2:], strict=False):
            around = {NodeRelationship.PREVIOUS: before, NodeRelationship.NEXT: after}
            known = {kind: related for kind, related in around.items() if related is not None}
            relationships = {kind: each for kind, each in part.relationships.items() if kind not in around} | known
            is_same = relationships == part.relationships
            linked.append(part if is_same else part.model_copy(update={"relationships": relationships}))
    return linked
