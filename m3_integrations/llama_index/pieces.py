"""Recognises the pieces of a document that was cut again, though LlamaIndex's splitters give them new random ids.

Two nodes with the same place in a document are one piece that was cut twice, or two equal pieces of one split, such as
equal rows of a table. The nodes of one split name each other as neighbour, parent or child.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from llama_index.core.schema import BaseNode, NodeRelationship

_LINKS: Final = (NodeRelationship.PREVIOUS, NodeRelationship.NEXT, NodeRelationship.PARENT, NodeRelationship.CHILD)


def version_of(node: BaseNode) -> str | None:
    """Return the hash of the document that a node was made from; None if the node does not have it."""
    return None if node.source_node is None else node.source_node.hash


def are_cut_again(others: Sequence[BaseNode], new: Sequence[BaseNode], stored_ids: set[str]) -> list[bool]:
    """Return for each of the other nodes whether it is an earlier copy of a new piece.

    It is if it has the place of a new node, and is not linked with one that has this place. A new node whose id is
    stored is an update, of which there are no copies.

    Args:
        others: The stored nodes of the same documents, without those that have the id of a new node.
        new: The nodes to add.
        stored_ids: The ids in the store.
    """
    fresh = [node for node in new if node.node_id not in stored_ids]
    if not fresh or not others:
        return [False] * len(others)
    split_of = _splits([*new, *others])
    splits_at: dict[str, set[str]] = defaultdict(set)
    for node in fresh:
        if (place := _place(node)) is not None:
            splits_at[place].add(split_of[node.node_id])
    found = [(splits_at.get(_place(node) or "", set()), split_of[node.node_id]) for node in others]
    return [bool(there) and split not in there for there, split in found]


def _splits(nodes: Sequence[BaseNode]) -> dict[str, str]:
    """Return the name of its split for the id of each node: one name for all nodes that are linked."""
    above: dict[str, str] = {}

    def name_of(id_: str) -> str:
        while above.setdefault(id_, id_) != id_:
            above[id_] = id_ = above[above[id_]]
        return id_

    for node in nodes:
        for kind in _LINKS:
            related = node.relationships.get(kind, [])
            for each in related if isinstance(related, list) else [related]:
                if each.node_id != node.ref_doc_id:  # every split of a document has its id
                    above[name_of(each.node_id)] = name_of(node.node_id)
    return {node.node_id: name_of(node.node_id) for node in nodes}


def _place(node: BaseNode) -> str | None:
    """Return a key that is equal for two nodes if they are the same piece of the same document, split twice.

    A piece without offsets, such as a row of a table, is known by its neighbours, as others may have its text. None if
    neither these nor the document's hash are known: then two nodes with one text may be two pieces.
    """
    content = node.model_dump(mode="json", exclude={"id_", "embedding", "relationships"})
    neighbours = [None if each is None else each.hash for each in (node.prev_node, node.next_node)]
    if content.get("start_char_idx") is not None:
        del content["metadata"]  # the place is enough: extractors may change metadata
        neighbours = []
    elif version_of(node) is None and not any(neighbours):
        return None
    parent = None if node.parent_node is None else node.parent_node.hash  # offsets count from the parent
    return json.dumps([node.ref_doc_id, parent, neighbours, content], sort_keys=True)
