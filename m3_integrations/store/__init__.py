"""Stores of records: in memory, in a folder, on a Qdrant server, or behind an `m3 serve`. All have the same methods.

`open_store` opens any of them, and `copy_store` copies one into another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import numpy as np

from m3_integrations.store.filters import Filter, FilterLike, matches, parse_filter
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.points import MultiVectorStorage, choose_format
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
"""The settings of every store on a server."""

_COPIED_AT_ONCE: Final = 50
"""Records that are read with their vectors at a time, while as many are written: bounds the memory."""


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
    """Open the store at a place; make a new one if there is none.

    Args:
        where: One of these places:

            - None or ":memory:": a new store in memory. Its searches are exact, and it ends with the process.
            - A folder (`~` is the user's home): embedded and durable, for one process at a time. A folder that is not
              writable is opened for reading.
            - A URL: the store of an `m3 serve`, or a Qdrant server or cluster. If no setting is passed that only Qdrant
              has, a request without the key finds out which of them it is.
            - A list of URLs: the nodes of one Qdrant cluster. If one does not answer, the next one is asked.
        multi_vector: The way to keep token vectors in a new store: "float16" (the default, 2 bytes a number), "turbo8"
            (1 byte), "turbo4" (half a byte), or "none", which leaves the dense and the lexical mode. `m3 serve` has
            this setting for its own store.
        token_pooling: The number of neighbouring tokens that share a token vector in a new store; 1 by default.
            `m3 serve` has this setting for its own store.
        api_key: The key for the server.
        collection: The collection on a Qdrant server; "m3" by default.
        prefer_grpc: Whether to use gRPC with a Qdrant server; True by default.
        grpc_port: The gRPC port of a Qdrant server, or a list with one port for each URL; 6334 by default.
        timeout_s: The time limit of a server's answer in seconds; 60 by default. If a node of a cluster stops or
            restarts, a call is repeated for about 8 s, but not beyond this limit.
        shard_number: The number of shards of a new collection; by default the server chooses it.
        replication_factor: The number of nodes that hold each shard of a new collection; by default the server chooses
            it.
        write_consistency_factor: The number of replicas that must have an update before it returns, for a new
            collection; the server's default is 1.
        read_consistency: The number of replicas of each shard that must agree on an answer, or "majority", "quorum" or
            "all"; one by default.
        on_disk: Whether a new collection reads dense vectors and the lexical index from disk instead of memory; False
            by default.

    Raises:
        TypeError: If where is none of these, or a setting is passed that this kind of store does not have.
        ValueError: If where is empty, a host and a port without `http://`, or a list of anything but URLs; if the
            place holds something else, or was made by a later version or with other settings; if a setting is out of
            range; or if an `m3 serve` has no store.
        BlockingIOError: If a folder is already open, in this process or another.
        NotADirectoryError: If a folder is a file.
        ConnectionError: If the server cannot be reached.
        TimeoutError: If the server accepts connections, but does not answer in time.
        PermissionError: If the server does not accept the key, or the key does not allow a write that is needed.
        OSError: If the server answers with another error.
    """
    given = {name: value for name, value in locals().items() if name != "where" and value is not None}
    if where is None or (isinstance(where, str) and where.lower() == ":memory:"):
        _refuse("in memory", list(given))
        return MemoryStore()
    if not isinstance(where, str | os.PathLike | list | tuple):
        raise TypeError(f"where must be None, a folder, a URL or a list of URLs, got {where!r}")
    if isinstance(where, list | tuple) and not (where and all(isinstance(url, str) and is_url(url) for url in where)):
        raise ValueError(f"a list must hold the URLs of one cluster, got {where!r}")
    if not isinstance(where, os.PathLike) and (not isinstance(where, str) or is_url(where)):
        return _open_url([where] if isinstance(where, str) else list(where), given)
    _refuse("in a folder", [name for name in given if name not in {"multi_vector", "token_pooling"}])
    choose_format(str(where), None, multi_vector, token_pooling)  # raises for a wrong setting before a folder is made
    from m3_integrations.store.edge import EdgeStore  # noqa: PLC0415 - only this kind needs the engine

    return EdgeStore(where, **given)


def _open_url(urls: list[str], given: dict[str, Any]) -> Store:
    from m3_integrations.store.served import ServedStore, is_m3_serve, is_silent  # noqa: PLC0415 - only this kind

    of_qdrant = [name for name in given if name not in {"multi_vector", "token_pooling", *_OF_EVERY_SERVER}]
    if len(urls) == 1 and not of_qdrant and is_m3_serve(urls[0]):
        _refuse("behind m3 serve", [name for name in given if name not in _OF_EVERY_SERVER])
        return ServedStore(urls[0], **given)
    from m3_integrations.store.server import ServerStore  # noqa: PLC0415 - needs qdrant-client

    try:
        return ServerStore(urls[0] if len(urls) == 1 else urls, **given)
    except OSError as error:
        if len(urls) > 1:
            raise
        if is_m3_serve(urls[0]):
            _refuse("behind m3 serve", [name for name in given if name not in _OF_EVERY_SERVER])
            return ServedStore(urls[0], **given)  # it was too busy to answer before
        if of_qdrant or not isinstance(error, ConnectionError):
            raise
        if is_silent(urls[0]):
            raise TimeoutError(
                f"{urls[0]} accepts connections, but does not answer in time, so it is unknown whether it is an "
                "m3 serve or a Qdrant server: try again when it is less busy"
            ) from error
        raise ConnectionError(
            f"{error}. No m3 serve answers at {urls[0]} either: start it with m3 serve MODEL --store FOLDER"
        ) from error


def _host_of(url: str) -> str | None:
    try:
        host = urlsplit(url).hostname
    except ValueError:  # of an address with an unfinished bracket
        return None
    return host if host and not re.search(r"\s", host) else None


def is_url(where: str) -> bool:
    """Return whether a place is on a server; otherwise it is a folder.

    Raises:
        ValueError: If it is empty, or looks like a server but is not a URL.
    """
    if not where.strip():
        raise ValueError("where is empty: pass a folder, a URL, or None for a store in memory")
    if _HOST_AND_PORT.fullmatch(where):
        raise ValueError(
            f"{where!r} may be a server or a folder: write 'http://{where}' for a server, './{where}' for a folder"
        )
    if "://" not in where and not where.lower().startswith(("http:", "https:")):
        return False
    if not where.lower().startswith(("http://", "https://")):
        raise ValueError(f"a server's URL must begin with http:// or https://, got {where!r}")
    if "," in where:
        raise ValueError(f"several URLs must be a list, {where.split(',')}, got {where!r}")
    if not _host_of(where):
        raise ValueError(f"a server's URL must name a host, got {where!r}")
    return True


def _refuse(where: str, settings: list[str]) -> None:
    if settings:
        raise TypeError(f"a store {where} has no setting {', '.join(settings)}: leave it out")


def copy_store(source: Store, target: Store) -> int:
    """Copy all records with their vectors into another store. Records that only the target holds stay there.

    After an interruption, call it again: a record that the target has already, with the same text and metadata, is
    skipped. Its vectors are the same, because both stores hold vectors of one model. A thread reads the next records
    while the last ones are written.

    Args:
        source: The store to copy from. It must not change meanwhile.
        target: The store to copy to. It is bound to the source's model.

    Returns:
        The number of records that this call copied.

    Raises:
        ValueError: If the target holds another model's vectors, if only one of the stores is bound to a model, or if
            the target keeps a mode that the source does not.
    """
    if source.modes and target.modes and (lost := set(target.modes) - set(source.modes)):
        raise ValueError(
            f"the target keeps {', '.join(sorted(lost))} vectors, which the source does not have: open the target with "
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
    """Raise ValueError if only one store is bound to a model. `bind` raises for stores of two models."""
    for one, other, name in ((source, target, "source"), (target, source, "target")):
        if one.modes and one.fingerprint is None and other.fingerprint is not None:
            raise ValueError(
                f"the {name} holds vectors of an unknown model, and the other store is for the model "
                f"{other.fingerprint}: if that is their model, call bind({other.fingerprint!r}) on the {name} first"
            )


def _is_same(record: Record, other: Record | None) -> bool:
    return other is not None and record.text == other.text and is_same(record.metadata, other.metadata)
