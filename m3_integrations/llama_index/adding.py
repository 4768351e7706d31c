"""Adds nodes to a store and deletes them: unchanged texts keep their vectors, a document's outdated nodes are deleted.

LlamaIndex's splitters give every node a new random id, also when they split the same document again. So a node is
recognised by its document, the document's hash and its place in the text, not by its id: see pieces.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

import numpy as np
from llama_index.core.schema import BaseNode, Document, MetadataMode, NodeWithScore

from m3_integrations.llama_index.nodes import REF_DOC_KEY, as_metadata, as_node, embedded_text
from m3_integrations.llama_index.pieces import are_cut_again, version_of
from m3_integrations.search import Searcher, add_unless_known, holds_node, records_of
from m3_integrations.store import Record
from m3_integrations.store.values import check_value
from m3_integrations.vectors import Encoder

_LEAST_COSINE: Final = 0.99
"""Least cosine of a node's embedding and our dense vector of its text. The same model in other arithmetic stays above
0.999; the cosine with another model's vector is random."""


def check_nodes(nodes: Any, kind: type[BaseNode] = BaseNode) -> list[BaseNode]:
    """Return nodes as a list, after checking that each is of this kind.

    Raises:
        TypeError: If nodes is a single node, or holds something that is not of this kind.
    """
    # A single node is iterable too: it yields its fields.
    name = "document" if kind is Document else "node"
    if isinstance(nodes, BaseNode | str) or not isinstance(nodes, Iterable):
        raise TypeError(f"{name}s must be a list or another iterable, got one {type(nodes).__name__}: pass [{name}]")
    checked: list[Any] = list(nodes)
    for i, node in enumerate(checked):
        if isinstance(node, NodeWithScore):
            raise TypeError(f"every {name} must be a {kind.__name__}, got NodeWithScore at position {i}: pass its node")
        if not isinstance(node, kind):
            hint = f": pass {kind.__name__}(text=...)" if isinstance(node, str) and kind is Document else ""
            raise TypeError(f"every {name} must be a {kind.__name__}, got {type(node).__name__} at position {i}{hint}")
    return checked


def add_nodes(
    searcher: Searcher, nodes: Sequence[BaseNode], *, replace_documents: bool, show_progress: bool
) -> list[str]:
    """Add nodes as `M3HybridRetriever.add_nodes` describes; return their ids, as many as nodes."""
    new = {node.node_id: node for node in nodes}
    metadatas = list(map(as_metadata, new.values()))  # before any change: it raises if metadata cannot be kept
    texts = [
        check_value(embedded_text(node, metadata), f"the text of node {node.node_id!r}")
        for node, metadata in zip(new.values(), metadatas, strict=True)
    ]
    searcher.store.bind(searcher.encoder.fingerprint)  # raises if the store is of another model
    documents = [node.ref_doc_id for node in new.values() if node.ref_doc_id is not None]
    old = records_of(searcher, list(new), REF_DOC_KEY, documents)
    stored = [as_node(*row) for row in zip(new, texts, metadatas, strict=True)]  # as they will be in the store
    stale = _stale(old, stored, replace_documents=replace_documents)
    add_unless_known(searcher, old, list(new), texts, metadatas, show_progress=show_progress)
    searcher.store.delete(stale)  # last: a killed run leaves too many nodes, never too few
    return [node.node_id for node in nodes]


def delete_document(searcher: Searcher, ref_doc_id: str) -> int:
    """Delete a document's nodes, and the document itself if it was added whole; return how many records there were.

    Raises:
        TypeError: If ref_doc_id is not a string.
    """
    if not isinstance(ref_doc_id, str):
        raise TypeError(f"ref_doc_id must be a string, got {ref_doc_id!r}")
    n = searcher.delete(filter={REF_DOC_KEY: ref_doc_id})
    whole = [record.id for record in searcher.store.get([ref_doc_id]) if REF_DOC_KEY not in record.metadata]
    return n + (searcher.delete(whole) if whole else 0)


def delete_nodes_of(searcher: Searcher, documents: Sequence[str]) -> None:
    """Delete the nodes that were made from these documents. Records of other programs stay, though they name one."""
    found, named = _nodes_of(records_of(searcher, [], REF_DOC_KEY, documents)), set(documents)
    searcher.store.delete([id_ for id_, node in found.items() if node.ref_doc_id in named])


def _stale(old: Sequence[Record], new: Sequence[BaseNode], *, replace_documents: bool) -> list[str]:
    """Return the ids of the records that these nodes replace; records with the same ids as the nodes are left out."""
    versions: dict[str | None, set[str | None]] = {}
    for node in new:
        versions.setdefault(node.ref_doc_id, set()).add(version_of(node))
    _warn_of_shared_ids(versions)
    ids = {node.node_id for node in new}
    others = {id_: node for id_, node in _nodes_of(old).items() if id_ not in ids and node.ref_doc_id in versions}
    if replace_documents:
        return list(others)
    are_copies = are_cut_again(list(others.values()), new, {record.id for record in old})
    return [
        id_
        for (id_, node), is_copy in zip(others.items(), are_copies, strict=True)
        if is_copy or _is_outdated(node, versions[node.ref_doc_id])
    ]


def _nodes_of(records: Iterable[Record]) -> dict[str, BaseNode]:
    """Return the nodes of the records that hold a readable one, by the records' ids; the others are not ours."""
    held = {each.id: as_node(each.id, each.text, each.metadata) for each in records if holds_node(each.metadata)}
    return {id_: node for id_, node in held.items() if REF_DOC_KEY not in node.metadata}


def _is_outdated(node: BaseNode, now: Set[str | None]) -> bool:
    """Return whether a node is of none of these versions of its document."""
    # Without a hash, a node of an earlier version looks like a node that another call has added.
    return version_of(node) is not None and None not in now and version_of(node) not in now


def _warn_of_shared_ids(versions: Mapping[str | None, Set[str | None]]) -> None:
    """Warn of documents that share an id: added in one call all are kept, in several calls only the last one."""
    for id_, found in versions.items():
        n_documents = len(found - {None})
        if id_ is not None and n_documents > 1:
            warnings.warn(
                f"{n_documents} different documents have the id {id_!r}: a later call with one of them deletes the "
                "nodes of the others, as an id stands for one document. Give each its own id, such as file and page",
                stacklevel=4,
            )


def check_embeddings(encoder: Encoder, nodes: Sequence[BaseNode]) -> None:
    """Raise ValueError if a node's embedding differs from our dense vector of its text by more than rounding.

    The text may be with or without the metadata: the embedding shows which model made it, and is not stored.
    """
    nodes = [node for node in nodes if node.embedding]
    for node in nodes:
        if len(node.get_embedding()) != encoder.dim:
            raise _foreign(node, encoder, f"has {len(node.get_embedding())} numbers, not {encoder.dim}")
    # This costs no pass if `M3Embedding` has just embedded the nodes: the vectors are still in the encoder's cache.
    unlike = _unlike(encoder, nodes, MetadataMode.EMBED)
    others = list(unlike)
    for mode in (MetadataMode.NONE, MetadataMode.ALL, MetadataMode.LLM):  # programs that embed nodes by themselves
        others = [others[row] for row in _unlike(encoder, [nodes[row] for row in others], mode)]
    for row in others:
        raise _foreign(nodes[row], encoder, f"has a cosine of {unlike[row]:.2f} with it")


def _unlike(encoder: Encoder, nodes: Sequence[BaseNode], mode: MetadataMode) -> dict[int, float]:
    """Return the positions of nodes whose embedding is not that of their text in this mode, with the cosines."""
    unlike: dict[int, float] = {}
    start = 0
    for vectors in encoder.encode_batches([node.get_content(mode) for node in nodes], modes=("dense",)):
        some = nodes[start : start + len(vectors)]
        given = np.array([node.get_embedding() for node in some], dtype=np.float32)
        lengths = np.linalg.norm(given, axis=1)
        cosines = np.einsum("nd,nd->n", given, vectors.dense) / np.where(lengths > 0, lengths, 1)
        foreign = np.flatnonzero(~(cosines >= _LEAST_COSINE)).tolist()  # "not >=" is true for NaN too
        unlike |= {start + row: float(cosines[row]) for row in foreign}
        start += len(vectors)
    return unlike


def _foreign(node: BaseNode, encoder: Encoder, what: str) -> ValueError:
    return ValueError(
        f"the embedding of node {node.node_id!r} is not the dense vector that {encoder.model} makes of its text: it "
        f"{what}. Nothing was stored. It is of another model, whose vectors cannot be compared, or of another text, if "
        "the node or its metadata changed since: pass `embed_model` of this vector store to the index or the pipeline"
    )
