"""Aliases of a Qdrant server: further names of a collection, each of which can be moved to another collection."""

from __future__ import annotations

from qdrant_client import QdrantClient, models


def collection_of(client: QdrantClient, name: str) -> str:
    """Return the collection that an alias names; a name that is no alias is returned unchanged."""
    named = {each.alias_name: each.collection_name for each in client.get_aliases().aliases}
    return named.get(name, name)


def move_alias(client: QdrantClient, alias: str, collection: str) -> None:
    """Let an alias name another collection, in one step: no search meanwhile finds the alias without a collection."""
    client.update_collection_aliases(
        [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(alias_name=alias, collection_name=collection),
            ),
        ]
    )
