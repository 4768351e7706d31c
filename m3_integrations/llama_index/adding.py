"""Nodes into a store and out of it: unchanged texts keep their vectors, and what a document had before goes.

LlamaIndex's splitters give a node a new random id whenever they make it. So an id does not say which node of the store
a new one is; its document, the document's hash and its place in the text do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode

from m3_integrations.llama_index.nodes import REF_DOC_KEY, as_metadata, as_result
from m3_integrations.search import Hit, Searcher
from m3_integrations.store import Record, Store, matches, parse_filter
from m3_integrations.vectors import Encoder, M3Vectors

_COPIED_AT_ONCE: Final = 50
"""Records read with their vectors at a time: bounds the memory."""

_DOCUMENTS_AT_ONCE: Final = 500
"""Documents in one filter."""


_LEAST_COSINE: Final = 0.99
"""Of a node's embedding and our dense vector of its text. Other arithmetic of the same model stays above 0.999; another
model's vectors are as good as random."""


@dataclass(frozen=True, slots=True)
class _New:
    """Nodes that are added, by columns; no two have the same id."""

    nodes: list[BaseNode]
    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, Any]]


def add_nodes(
    searcher: Searcher, nodes: Sequence[BaseNode], *, replace_documents: bool, show_progress: bool
) -> list[str]:
    """Add nodes as `M3HybridRetriever.add_nodes` describes; return their ids, as many as nodes."""
    latest = list({node.node_id: node for node in nodes}.values())
    metadatas = list(map(as_metadata, latest))  # first, as it refuses what cannot be kept
    texts = [node.get_content(MetadataMode.EMBED) for node in latest]
    new = _New(latest, [node.node_id for node in latest], texts, metadatas)
    store = searcher.store
    store.bind(searcher.encoder.fingerprint)  # vectors of another model are not kept
    old = _stored_nodes(store, searcher.encoder.dim, new)
    stale = _stale(old, new, replace_documents=replace_documents)
    fresh = _keep_vectors(store, old, new)
    searcher.add(
        [new.texts[row] for row in fresh],
        ids=[new.ids[row] for row in fresh],
        metadatas=[new.metadatas[row] for row in fresh],
        show_progress=show_progress,
    )
    store.delete(stale)  # last: a run that is killed before leaves too much, which the next one deletes
    return [node.node_id for node in nodes]


def delete_document(searcher: Searcher, ref_doc_id: str) -> int:
    """Delete the nodes of a document, and the document itself where it was added without being cut into nodes."""
    n = searcher.delete(filter={REF_DOC_KEY: ref_doc_id})
    whole = [record.id for record in searcher.store.get([ref_doc_id]) if REF_DOC_KEY not in record.metadata]
    return n + (searcher.delete(whole) if whole else 0)


def _stored_nodes(store: Store, dim: int, new: _New) -> list[Record]:
    """Return the records with the ids of these nodes, and those of their documents."""
    found = {record.id: record for record in store.get(new.ids)}
    documents = list(dict.fromkeys(node.ref_doc_id for node in new.nodes if node.ref_doc_id is not None))
    for start in range(0, len(documents), _DOCUMENTS_AT_ONCE):
        some = {REF_DOC_KEY: {"$in": documents[start : start + _DOCUMENTS_AT_ONCE]}}
        found |= {record.id: record for record in _matching(store, dim, some)}
    return list(found.values())


def _matching(store: Store, dim: int, filter: Mapping[str, Any]) -> list[Record]:  # noqa: A002
    """Return all records that match, in any order."""
    parsed = parse_filter(filter)
    n = store.count(parsed)
    if n == 0:
        return []
    anything = M3Vectors(dense=np.zeros((1, dim), dtype=np.float32))
    ids = store.candidates(anything, {"dense": n}, parsed)["dense"].ids
    if len(ids) == n:
        return store.get(ids)
    return [record for record in store.records() if matches(parsed, record.metadata)]  # an index may pass some over


def _keep_vectors(store: Store, old: Sequence[Record], new: _New) -> list[int]:
    """Store the nodes whose texts these records have, with the records' vectors; return the rows of the others."""
    by_id = {record.id: record for record in old}
    by_text = {record.text: record.id for record in old}
    fresh: list[int] = []
    kept: list[int] = []
    for row, (id_, text) in enumerate(zip(new.ids, new.texts, strict=True)):
        there = by_id.get(id_)
        if text not in by_text:
            fresh.append(row)
        elif there is None or there.text != text or there.metadata != new.metadatas[row]:
            kept.append(row)
    for start in range(0, len(kept), _COPIED_AT_ONCE):
        rows = kept[start : start + _COPIED_AT_ONCE]
        records = {
            record.text: record for record in store.get([by_text[new.texts[row]] for row in rows], with_vectors=True)
        }
        there_still = [row for row in rows if new.texts[row] in records]
        fresh.extend(row for row in rows if new.texts[row] not in records)  # somebody has deleted or changed it
        chosen = [records[new.texts[row]] for row in there_still]
        if chosen:
            store.upsert(
                [new.ids[row] for row in there_still],
                [new.texts[row] for row in there_still],
                [new.metadatas[row] for row in there_still],
                M3Vectors.concatenate([record.vectors for record in chosen if record.vectors is not None]),
                is_pooled=np.array([record.is_pooled for record in chosen]),
            )
    return fresh


def _stale(old: Sequence[Record], new: _New, *, replace_documents: bool) -> list[str]:
    """Return the ids of the records that these nodes replace, apart from those with the same ids."""
    versions: dict[str | None, set[str | None]] = {}
    for node in new.nodes:
        versions.setdefault(node.ref_doc_id, set()).add(_version(node))
    places = {_place(node) for node in new.nodes}
    stale: list[str] = []
    ids = set(new.ids)
    for record in old:
        if record.id in ids:
            continue
        node = as_result(Hit(record.id, record.text, dict(record.metadata), 0.0, {})).node
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
    """Return what two nodes share that are the same piece of the same document, made twice."""
    content = node.model_dump(mode="json", exclude={"id_", "embedding", "relationships"})
    if content.get("start_char_idx") is not None:
        del content["metadata"]  # where the piece stands is enough; an extractor may have called it otherwise this time
    return json.dumps([node.ref_doc_id, _version(node), content], sort_keys=True)


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
