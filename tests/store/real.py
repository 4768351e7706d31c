"""The real server or cluster that tests run over, as the environment has it.

QDRANT_URL is its URL, or those of its nodes with commas between them; QDRANT_API_KEY its key; QDRANT_REPLICATION_FACTOR
and QDRANT_SHARD_NUMBER are what the collections of the tests are made with.
"""

import os
from typing import Any

from qdrant_client import QdrantClient

from m3_integrations import Store, open_store


def real_client() -> QdrantClient:
    """A client of the first node, of whatever version it is."""
    url, key = os.environ["QDRANT_URL"].split(",")[0], os.environ.get("QDRANT_API_KEY")
    return QdrantClient(url=url, api_key=key, check_compatibility=False)


def open_real(**settings: Any) -> Store:
    """A store on the server, over all its nodes."""
    placed: dict[str, Any] = {
        name: int(os.environ[variable])
        for name, variable in (
            ("replication_factor", "QDRANT_REPLICATION_FACTOR"),
            ("shard_number", "QDRANT_SHARD_NUMBER"),
        )
        if variable in os.environ
    }
    urls = os.environ["QDRANT_URL"].split(",")
    return open_store(urls, api_key=os.environ.get("QDRANT_API_KEY"), **placed, **settings)
