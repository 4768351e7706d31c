"""Recognises the pieces of a document that was cut again, though LlamaIndex's splitters give them new random ids.

Two nodes with the same place in the same version of a document are either one piece that was cut twice, or two equal
pieces of one split. The relationships tell these apart: the nodes of one split name each other's ids.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

from llama_index.core.schema import BaseNode, NodeRelationship

_LINKS: Final = (
    NodeRelationship.PREVIOUS,
    NodeRelationship.NEXT,
    NodeRelationship.PARENT,
    NodeRelationship.CHILD,
)


def version_of(node: BaseNode) -> str | None:
    """Return the hash of the document that a node was made from; None if the node does not have it."""
    return None if node.source_node is None else node.source_node.hash


def pieces_cut_again(new: Sequence[BaseNode], fresh: Set[str], others: Sequence[BaseNode]) -> set[str]:
    """Return the ids of the other nodes that are the same pieces as new nodes, cut earlier.

    A node of the split that is being added is never one of them. If several nodes of one split may have the same place,
    they are left out until all nodes of the new split are stored. So too many nodes are kept rather than too few.

    Args:
        new: The nodes to add.
        fresh: The ids of those that the store does not have; the others are updates.
        others: The stored nodes of the same documents, without those that have the id of a new node.
    """
    if not fresh:
        return set()
    known = [*new, *others]
    split_of = _splits(known)
    splits = {split_of[id_] for id_ in fresh}
    missing = split_of.keys() - {node.node_id for node in known}
    linked = {split for split, n in Counter(split_of.values()).items() if n > 1}
    # All nodes of these splits are here, so a node of another split was cut at another time.
    complete = (splits & linked) - {split_of[id_] for id_ in missing}
    ours = _by_place(node for node in known if split_of[node.node_id] in splits)
    sure = _by_place(node for node in known if split_of[node.node_id] in complete)
    theirs = _by_place(node for node in others if split_of[node.node_id] not in splits)
    return {
        node.node_id
        for place, nodes in theirs.items()
        if place in sure or (place in ours and _is_one_piece(nodes) and _is_one_piece(ours[place]))
        for node in nodes
    }


def _splits(nodes: Sequence[BaseNode]) -> dict[str, str]:
    """Return a name of its split for the id of each node and of each related node, which may not be stored."""
    above: dict[str, str] = {node.node_id: node.node_id for node in nodes}

    def name_of(id_: str) -> str:
        while above.setdefault(id_, id_) != id_:
            above[id_] = id_ = above[above[id_]]
        return id_

    for node in nodes:
        for kind in _LINKS:
            related = node.relationships.get(kind, [])
            for each in related if isinstance(related, list) else [related]:
                above[name_of(each.node_id)] = name_of(node.node_id)
    return {id_: name_of(id_) for id_ in list(above)}


def _by_place(nodes: Iterable[BaseNode]) -> Mapping[str, list[BaseNode]]:
    """Return the nodes that have a place, by their place."""
    found: dict[str, list[BaseNode]] = defaultdict(list)
    for node in nodes:
        if (place := _place(node)) is not None:
            found[place].append(node)
    return dict(found)


def _is_one_piece(nodes: Sequence[BaseNode]) -> bool:
    """Return whether nodes with the same place, of one split or of several, are certainly one piece."""
    if len(nodes) == 1:
        return not _is_in_a_run(nodes[0])
    # Offsets that count from the document tell equal pieces apart.
    is_placed = all(getattr(node, "start_char_idx", None) is not None and node.parent_node is None for node in nodes)
    return is_placed and all(node.metadata == nodes[0].metadata for node in nodes)


def _is_in_a_run(node: BaseNode) -> bool:
    """Return whether the neighbours that a piece is known by are equal, as they are in a run of equal rows."""
    if getattr(node, "start_char_idx", None) is not None or node.prev_node is None or node.next_node is None:
        return False
    return node.prev_node.hash == node.next_node.hash


def _place(node: BaseNode) -> str | None:
    """Return a key that is equal for two nodes if they are the same piece of the same version, split twice.

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
    return json.dumps([node.ref_doc_id, version_of(node), parent, neighbours, content], sort_keys=True)
