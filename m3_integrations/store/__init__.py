"""Where records live: one protocol, three engines, `open_store` that opens each, `copy_store` from one into another.

A store of any of them may stand behind an `m3 serve`, for many processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, Literal

import numpy as np

from m3_integrations.store.filters import Filter, FilterLike, matches, parse_filter
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.points import MultiVectorStorage
from m3_integrations.store.protocol import Hits, Record, Store
from m3_integrations.store.values import is_same
from m3_integrations.vectors import M3Vectors

__all__ = [
    "Filter",
    "FilterLike",
    "Hits",
    "Record",
    "Store",
    "copy_store",
    "is_url",
    "matches",
    "open_store",
    "parse_filter",
]

_HOST_AND_PORT: Final = re.compile(r"([\w.-]+:[0-9]+|\[[0-9a-fA-F:]+\](:[0-9]+)?)(/.*)?")

_OF_EVERY_SERVER: Final = ("api_key", "timeout_s")
"""Settings that every store on a server has."""

_COPIED_AT_ONCE: Final = 50
"""Records read with their vectors at a time, while as many are written: bounds the memory."""


def open_store(
    where: str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    multi_vector: MultiVectorStorage | None = None,
    token_pooling: int | None = None,
    api_key: str | None = None,
    collection: str | None = None,
    prefer_grpc: bool | None = None,
    grpc_port: int | Sequence[int] | None = None,
    timeout_s: int | None = None,
    shard_number: int | None = None,
    replication_factor: int | None = None,
    write_consistency_factor: int | None = None,
    read_consistency: int | Literal["majority", "quorum", "all"] | None = None,
    on_disk: bool | None = None,
) -> Store:
    """Open the store at a place, or make it there.

    Args:
        where: None or ":memory:" for a new store in memory: exact, gone with the process. A folder, `~` being the
            user's home: embedded and durable, for one process at a time; one in which nothing may be written is opened
            for reading. A URL, `https://` with TLS: the store of an `m3 serve`, or a Qdrant server or cluster. It is
            asked which it is, without the key, unless a setting is given that only Qdrant has. A list of URLs: nodes
            of one Qdrant cluster, of which another is asked when one does not answer.
        multi_vector: How token vectors are kept, decided when a store is made: "float16" (the default, 2 bytes a
            number), "turbo8" (1), "turbo4" (a half), or "none", where "all" modes are dense and lexical. Behind an
            `m3 serve` the store is made there.
        token_pooling: How many neighbouring tokens share a token vector, decided when a store is made; 1 by default.
            Behind an `m3 serve` the store is made there.
        api_key: Of the server.
        collection: The collection on a Qdrant server; "m3" by default.
        prefer_grpc: Whether to talk to a Qdrant server by gRPC; True by default.
        grpc_port: A Qdrant server's port for gRPC, or a list with one for each URL; 6334 by default.
        timeout_s: How long to wait for the server's answer; 60 by default. Where a node of a cluster goes or comes
            back, a call is tried again for some 8 s, and no more after this time.
        shard_number: Into how many shards a collection is cut; decided when it is made, by default by the server.
        replication_factor: How many nodes hold each shard; decided when it is made, by default by the server.
        write_consistency_factor: How many replicas must have an update before it returns; decided when a collection is
            made, by default by the server, which takes 1.
        read_consistency: How many replicas of each shard must agree on an answer, or "majority", "quorum" or "all" of
            them; one by default.
        on_disk: Whether dense vectors and the lexical index are read from disk, not held in memory; decided when the
            collection is made, False by default.

    Raises:
        TypeError: If where is neither, or a setting is given that this kind of store does not have.
        ValueError: If where is empty, a host and a port without `http://`, or a list of anything but URLs; if the
            place holds something else, was made by a later version or with other settings, or a setting is out of
            range; if an `m3 serve` has no store.
        BlockingIOError: If a folder is open already, in this process or another.
        NotADirectoryError: If a folder is a file.
        ConnectionError: If the server cannot be reached.
        PermissionError: If it does not accept the key, or the key may not write what has to be written.
        OSError: If it answers with another error.
    """
    given = {name: value for name, value in locals().items() if name != "where" and value is not None}
    if where is None or (isinstance(where, str) and where.lower() == ":memory:"):
        _refuse("in memory", list(given))
        return MemoryStore()
    if not isinstance(where, str | os.PathLike | list | tuple):
        raise TypeError(f"a store is opened at None, a folder, a URL or a list of URLs, got {where!r}")
    if isinstance(where, list | tuple) and not (where and all(isinstance(url, str) and is_url(url) for url in where)):
        raise ValueError(f"a list is of the URLs of one cluster, got {where!r}")
    if not isinstance(where, os.PathLike) and (not isinstance(where, str) or is_url(where)):
        return _open_url([where] if isinstance(where, str) else list(where), given)
    _refuse("in a folder", [name for name in given if name not in {"multi_vector", "token_pooling"}])
    from m3_integrations.store.edge import EdgeStore  # noqa: PLC0415 - only this kind needs the engine

    return EdgeStore(where, **given)


def _open_url(urls: list[str], given: dict[str, Any]) -> Store:
    from m3_integrations.store.served import ServedStore, is_m3_serve  # noqa: PLC0415 - only this kind

    of_qdrant = [name for name in given if name not in {"multi_vector", "token_pooling", *_OF_EVERY_SERVER}]
    if len(urls) == 1 and not of_qdrant and is_m3_serve(urls[0]):
        _refuse("behind m3 serve", [name for name in given if name not in _OF_EVERY_SERVER])
        return ServedStore(urls[0], **given)
    from m3_integrations.store.server import ServerStore  # noqa: PLC0415 - needs qdrant-client

    try:
        return ServerStore(urls[0] if len(urls) == 1 else urls, **given)
    except OSError:
        if len(urls) == 1 and of_qdrant and is_m3_serve(urls[0]):
            _refuse("behind m3 serve", of_qdrant)
        raise


def is_url(where: str) -> bool:
    """Return whether a place is on a server; otherwise it is a folder.

    Raises:
        ValueError: If it is empty, or looks like a server and is no URL.
    """
    if not where.strip():
        raise ValueError("where is empty: give a folder, a URL, or None for a store in memory")
    if _HOST_AND_PORT.fullmatch(where):
        raise ValueError(
            f"{where!r} looks like a server: its URL is 'http://{where}'; a folder of this name is './{where}'"
        )
    if "://" not in where and not where.lower().startswith(("http:", "https:")):
        return False
    if not where.lower().startswith(("http://", "https://")):
        raise ValueError(f"a server's URL begins with http:// or https://, got {where!r}")
    if "," in where:
        raise ValueError(f"several URLs are a list, {where.split(',')}, got {where!r}")
    return True


def _refuse(where: str, settings: list[str]) -> None:
    if settings:
        raise TypeError(f"a store {where} has no {', '.join(settings)}: leave it out")


def copy_store(source: Store, target: Store) -> int:
    """Copy all records with their vectors into another store; what only the target holds stays there.

    Run again after an interruption it goes on: a record that the target has already, with the same text and metadata,
    is skipped. Both stores are of one model, so its vectors are the same too. A thread reads the next records while
    the last ones are written.

    Args:
        source: Where the records are. It must not change meanwhile.
        target: Where they go; bound to the source's model.

    Returns:
        How many records were copied by this call.

    Raises:
        ValueError: If the target holds another model's vectors, or only one of them says of which model they are, or
            the target keeps a mode that the source does not.
    """
    if source.modes and target.modes and (lost := set(target.modes) - set(source.modes)):
        raise ValueError(
            f"the target has {', '.join(sorted(lost))} vectors and the source none: open the target with "
            "multi_vector='none', or encode the texts again"
        )
    _check_models(source, target)
    if source.fingerprint is not None:
        target.bind(source.fingerprint)
    copied, batches = 0, _missing(source, target)
    with ThreadPoolExecutor(1, thread_name_prefix="copy_store") as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            _add(batch, target)
            copied += len(batch)
    target.flush()
    return copied


def _missing(source: Store, target: Store) -> Iterator[list[Record]]:
    """Yield the source's records with their vectors, some at a time, without those that the target has already."""
    records = source.records()
    while batch := list(islice(records, _COPIED_AT_ONCE)):
        there = {record.id: record for record in target.get([record.id for record in batch])}
        missing = [record.id for record in batch if not _is_same(record, there.get(record.id))]
        yield source.get(missing, with_vectors=True)


def _add(records: list[Record], target: Store) -> None:
    parts = [record.vectors for record in records if record.vectors is not None]
    if parts:
        target.upsert(
            [record.id for record in records],
            [record.text for record in records],
            [record.metadata for record in records],
            M3Vectors.concatenate(parts),
            is_pooled=np.array([record.is_pooled for record in records]),
        )


def _check_models(source: Store, target: Store) -> None:
    """Refuse to mix vectors of a model with vectors of nobody knows which; `bind` refuses those of two models."""
    for one, other, name in ((source, target, "source"), (target, source, "target")):
        if one.modes and one.fingerprint is None and other.fingerprint is not None:
            raise ValueError(
                f"the {name} holds vectors and does not say of which model, the other store is for the model "
                f"{other.fingerprint}: if they are of that model, bind the {name} to it first"
            )


def _is_same(record: Record, other: Record | None) -> bool:
    return other is not None and record.text == other.text and is_same(record.metadata, other.metadata)
