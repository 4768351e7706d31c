"""`open_store`: one door for every engine."""

from __future__ import annotations

import os
from typing import Any

from m3_integrations.store.format import MultiVectorStorage
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.protocol import Store


def open_store(
    where: str | os.PathLike[str] | None = None,
    *,
    multi_vector: MultiVectorStorage | None = None,
    token_pooling: int | None = None,
    api_key: str | None = None,
    collection: str | None = None,
    prefer_grpc: bool | None = None,
    grpc_port: int | None = None,
    timeout_s: int | None = None,
    shard_number: int | None = None,
    replication_factor: int | None = None,
    on_disk: bool | None = None,
) -> Store:
    """Open the store at a place, or make it there.

    Args:
        where: None for a new store in memory: exact, gone with the process. A folder: embedded and durable, for one
            process at a time. A URL: a Qdrant server or cluster, `https://` with TLS.
        multi_vector: How token vectors are kept, decided when a store is made: "float16" (the default, 2 bytes a
            number), "turbo8" (1), "turbo4" (a half), or "none", where "all" modes are dense and lexical.
        token_pooling: How many neighbouring tokens share a token vector, decided when a store is made; 1 by default.
        api_key: Of the server.
        collection: The collection on the server; "m3" by default.
        prefer_grpc: Whether to talk to the server by gRPC; True by default.
        grpc_port: The server's port for gRPC; 6334 by default.
        timeout_s: How long to wait for the server's answer; 60 by default.
        shard_number: Into how many shards a collection is cut; decided when it is made, by default by the server.
        replication_factor: How many nodes hold each shard; decided when it is made, by default by the server.
        on_disk: Whether dense vectors and the lexical index are read from disk, not held in memory; decided when the
            collection is made, False by default.

    Raises:
        TypeError: If where is neither, or a setting is given that this kind of store has not.
        ValueError: If the place holds something else, was made by a later version or with other settings, or a
            setting is out of range.
        BlockingIOError: If a folder is open already, in this process or another.
        NotADirectoryError: If a folder is a file.
        ConnectionError: If the server cannot be reached.
        PermissionError: If it does not accept the key.
        OSError: If it answers with another error.
    """
    kept = {"multi_vector": multi_vector, "token_pooling": token_pooling}
    served = {
        "api_key": api_key,
        "collection": collection,
        "prefer_grpc": prefer_grpc,
        "grpc_port": grpc_port,
        "timeout_s": timeout_s,
        "shard_number": shard_number,
        "replication_factor": replication_factor,
        "on_disk": on_disk,
    }
    if where is None:
        _refuse("in memory", kept | served)
        return MemoryStore()
    if isinstance(where, str) and "://" in where:
        if not where.startswith(("http://", "https://")):
            raise ValueError(f"a server's URL begins with http:// or https://, got {where!r}")
        from m3_integrations.store.server import ServerStore  # noqa: PLC0415 - needs qdrant-client

        given: dict[str, Any] = {name: value for name, value in (kept | served).items() if value is not None}
        return ServerStore(where, **given)
    if not isinstance(where, str | os.PathLike):
        raise TypeError(f"a store is opened at None, a folder or a URL, got {where!r}")
    _refuse("in a folder", served)
    from m3_integrations.store.embedded import EmbeddedStore  # noqa: PLC0415 - only this kind needs the engine

    return EmbeddedStore(where, multi_vector=multi_vector, token_pooling=token_pooling)


def _refuse(where: str, settings: dict[str, Any]) -> None:
    if given := [name for name, value in settings.items() if value is not None]:
        raise TypeError(f"a store {where} has no {', '.join(given)}: leave it out")
