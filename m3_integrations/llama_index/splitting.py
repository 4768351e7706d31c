"""Nodes that are longer than the model reads, split by the model's own tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode

from m3_integrations.vectors import Encoder

_SPECIAL_TOKENS: Final = 2
"""[CLS] and [SEP], which every text has."""

_LEAST_ROOM: Final = 16
"""Tokens of text that a part must have room for beside its metadata: else the node is left whole, and cut with a
warning where it is encoded."""


def split_long_nodes(nodes: Sequence[BaseNode], encoder: Encoder) -> list[BaseNode]:
    """Return the nodes with those split at sentences that the encoder would cut; the others are returned as they are.

    A node's metadata are encoded with its text, and so with each of its parts.

    Args:
        nodes: They are not changed.
        encoder: Its tokens are counted. For one that states no `max_length`, or so short a one that nothing but pieces
            of sentences would be left, nothing is split.
    """
    # A text over the limit is counted as just as long as the limit, so that parts must stay under it.
    capacity = getattr(encoder, "max_length", 0) - _SPECIAL_TOKENS - 1
    if capacity < _LEAST_ROOM:
        return list(nodes)

    def tokenize(text: str) -> list[str]:
        return encoder.tokenize([text])[0][:-1]  # without [SEP]

    splitter = SentenceSplitter(chunk_size=capacity, chunk_overlap=capacity // 8, tokenizer=cast("Any", tokenize))
    return [part for node in nodes for part in _parts(node, splitter, tokenize, capacity)]


def _parts(node: BaseNode, splitter: SentenceSplitter, tokenize: Any, capacity: int) -> Iterable[BaseNode]:
    if len(tokenize(node.get_content(MetadataMode.EMBED))) <= capacity:
        return [node]
    metadata = max(len(tokenize(node.get_metadata_str(mode))) for mode in (MetadataMode.EMBED, MetadataMode.LLM))
    return [node] if metadata + _LEAST_ROOM > capacity else splitter([node])
