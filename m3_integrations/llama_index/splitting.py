"""Splits nodes that are longer than the model's limit, counted in the model's own tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode

from m3_integrations.vectors import Encoder

_SPECIAL_TOKENS: Final = 2
"""[CLS] and [SEP], which every text has."""

_LEAST_ROOM: Final = 16
"""Tokens that a part must have left for text besides its metadata. With less, the node is not split: encoding cuts it
and warns."""


def split_long_nodes(nodes: Sequence[BaseNode], encoder: Encoder) -> list[BaseNode]:
    """Split the nodes that the encoder would cut at the ends of sentences; return the other nodes unchanged.

    A node's metadata are encoded with its text, and so with each part.

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
    return [part for node in nodes for part in _parts(node, splitter, tokenize, capacity)]


def _parts(node: BaseNode, splitter: SentenceSplitter, tokenize: Any, capacity: int) -> Iterable[BaseNode]:
    if len(tokenize(node.get_content(MetadataMode.EMBED))) <= capacity:
        return [node]
    metadata = max(len(tokenize(node.get_metadata_str(mode))) for mode in (MetadataMode.EMBED, MetadataMode.LLM))
    return [node] if metadata + _LEAST_ROOM > capacity else splitter([node])
