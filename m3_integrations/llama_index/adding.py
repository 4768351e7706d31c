"""Nodes into a store and out of it: unchanged texts keep their vectors, and what a document had before goes.

LlamaIndex's splitters give a node a new random id whenever they make it. So an id does not say which node of the store
a new one is; its document, the document's hash and its place in the text do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from llama_index.core.schema import BaseNode, Document, MetadataMode, NodeWithScore

from m3_integrations.llama_index.nodes import REF_DOC_KEY, as_metadata, as_node
from m3_integrations.search import Searcher, add_unless_known, records_of
from m3_integrations.store import Record
from m3_integrations.store.values import check_value
from m3_integrations.vectors import Encoder

_LEAST_COSINE: Final = 0.99
"""Of a node's embedding and our dense vector of its text. Other arithmetic of the same model stays above 0.999; another
model's vectors are as good as random."""


def check_nodes(nodes: Any, kind: type[BaseNode] = BaseNode) -> list[BaseNode]:
    """Return nodes, or documents if that is the kind, as a list.

    Raises:
        TypeError: If nodes is a single one, or holds anything but nodes of this kind.
    """
    # A node is iterable too: it gives its fields.
    name = "document" if kind is Document else "node"
    if isinstance(nodes, BaseNode | str) or not isinstance(nodes, Iterable):
        raise TypeError(f"{name}s must be several, got a single {type(nodes).__name__}: pass [{name}]")
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
    metadatas = list(map(as_metadata, new.values()))  # first, as it refuses what cannot be kept
    texts = [
        check_value(node.get_content(MetadataMode.EMBED), f"the text of node {id_!r}") for id_, node in new.items()
    ]
    searcher.store.bind(searcher.encoder.fingerprint)  # vectors of another model are not kept
    documents = [node.ref_doc_id for node in new.values() if node.ref_doc_id is not None]
    old = records_of(searcher, list(new), REF_DOC_KEY, documents)
    stored = [as_node(*row) for row in zip(new, texts, metadatas, strict=True)]  # as they will be in the store
    stale = _stale(old, stored, replace_documents=replace_documents)
    add_unless_known(searcher, old, list(new), texts, metadatas, show_progress=show_progress)
    searcher.store.delete(stale)  # last: a run that is killed before leaves too much, which the next one deletes
    return [node.node_id for node in nodes]


def delete_document(searcher: Searcher, ref_doc_id: str) -> int:
    """Delete the nodes of a document, and the document itself where it was added without being cut into nodes."""
    n = searcher.delete(filter={REF_DOC_KEY: ref_doc_id})
    whole = [record.id for record in searcher.store.get([ref_doc_id]) if REF_DOC_KEY not in record.metadata]
    return n + (searcher.delete(whole) if whole else 0)


def _stale(old: Iterable[Record], new: Sequence[BaseNode], *, replace_documents: bool) -> list[str]:
    """Return the ids of the records that these nodes replace, apart from those with the same ids."""
    versions: dict[str | None, set[str | None]] = {}
    for node in new:
        versions.setdefault(node.ref_doc_id, set()).add(_version(node))
    places, ids = {_place(node) for node in new}, {node.node_id for node in new}
    stale: list[str] = []
    for record in old:
        if record.id in ids:
            continue
        node = as_node(record.id, record.text, record.metadata)
        now, before = versions[node.ref_doc_id], _version(node)
        # Where a hash is not known, what is of an earlier version cannot be told from what another call has added.
        is_outdated = before is not None and None not in now and before not in now
        if replace_documents or is_outdated or _place(node) in places:
            stale.append(record.id)
    return stale


def _version(node: BaseNode) -> str | None:
    """Return the hash of the document that a node was made of, if the node says it."""
    return None if node.source_node is None else node.source_node.hash


def _place(node: BaseNode) -> str:
    """Return what two nodes share that are the same piece of the same document, made twice.

    Pieces with the same text, place and parent's text are taken for one if several calls add them.
    """
    content = node.model_dump(mode="json", exclude={"id_", "embedding", "relationships"})
    if content.get("start_char_idx") is not None:
        del content["metadata"]  # where the piece stands is enough; an extractor may have called it otherwise this time
    parent = None if node.parent_node is None else node.parent_node.hash  # a piece of a piece says where it is in that
    return json.dumps([node.ref_doc_id, parent, content], sort_keys=True)


def check_embeddings(encoder: Encoder, nodes: Sequence[BaseNode]) -> None:
    """Raise ValueError if a node has an embedding that is not, but for rounding, our dense vector of its text."""
    nodes = [node for node in nodes if node.embedding]
    for node in nodes:
        if len(node.get_embedding()) != encoder.dim:
            raise _foreign(node, encoder, f"has {len(node.get_embedding())} numbers, not {encoder.dim}")
    start = 0
    # In the cache still, if `M3Embedding` has made them just now; otherwise it costs a pass.
    for vectors in encoder.encode_batches([node.get_content(MetadataMode.EMBED) for node in nodes], modes=("dense",)):
        some = nodes[start : start + len(vectors)]
        given = np.array([node.get_embedding() for node in some], dtype=np.float32)
        lengths = np.linalg.norm(given, axis=1)
        cosines = np.einsum("nd,nd->n", given, vectors.dense) / np.where(lengths > 0, lengths, 1)
        for row in np.flatnonzero(~(cosines >= _LEAST_COSINE)):  # true for what is no number, too
            raise _foreign(some[row], encoder, f"has a cosine of {cosines[row]:.2f} with it")
        start += len(vectors)


def _foreign(node: BaseNode, encoder: Encoder, what: str) -> ValueError:
    return ValueError(
        f"the embedding of node {node.node_id!r} is not the dense vector that {encoder.model} makes of its text: it "
        f"{what}. Nothing was stored. Another model's vectors cannot be compared with this store's: let the index or "
        "the pipeline use `embed_model` of this vector store"
    )
