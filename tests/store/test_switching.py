"""A switch to another model's store where there is no folder to rename: an alias on Qdrant, and none on m3 serve."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

from m3_integrations import M3Encoder, Searcher, open_store
from m3_integrations.store import copy_store
from m3_integrations.store.aliases import move_alias
from m3_integrations.store.server import ServerStore
from m3_integrations.store.switching import collection_beside
from tests.serve.conftest import serving_store
from tests.store.test_migrating import index, migrate

__all__ = ["index"]  # a fixture


class Staying(QdrantClient):
    """A local mode that keeps its collections although every command closes it."""

    def close(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture
def qdrant(index: Path, monkeypatch: pytest.MonkeyPatch) -> Staying:
    """Let every URL open one server, which has the store of `index` in its collection docs-1."""
    client = Staying(":memory:")
    monkeypatch.setattr("m3_integrations.store.cluster.QdrantClient", lambda **_: client)
    monkeypatch.setattr("m3_integrations.store.served.is_m3_serve", lambda _: False)
    with open_store(index) as store:
        copy_store(store, open_store("http://qdrant", collection="docs-1"))
    return client


def aliases(client: QdrantClient) -> dict[str, str]:
    return {each.alias_name: each.collection_name for each in client.get_aliases().aliases}


@pytest.mark.filterwarnings("ignore:Local mode performs exact", "ignore:Payload indexes have no effect in the local")
def test_on_qdrant_the_alias_is_switched_and_what_is_open_stays(qdrant: Staying, small: Path) -> None:
    url, options = "http://qdrant", ("--collection", "docs")
    refused = migrate(url, "--model", small, "--switch", "--collection", "docs-1")
    with M3Encoder("tiny", device="cpu") as encoder, M3Encoder(str(small), shared=False, device="cpu") as other:
        old, new, beside = encoder.fingerprint, other.fingerprint, collection_beside("docs", other.fingerprint)
        assert refused.exit_code == 1
        assert f"migrate without it to {collection_beside('docs-1', new)}, and have" in refused.stderr
        assert [each.name for each in qdrant.get_collections().collections] == ["docs-1"]
        move_alias(qdrant, "docs", "docs-1")
        with open_store(url, collection="docs") as store:
            assert (store.fingerprint, store.count()) == (old, 3)
            done = migrate(url, "--model", small, "--switch", *options)
            assert done.exit_code == 0, done.output
            assert f"docs names {beside} now; docs-1 is kept" in done.stdout
            assert aliases(qdrant) == {"docs": beside}
            Searcher(encoder, store).add(["It is of the old model."], ids=["late"])
            assert (store.fingerprint, store.count(), qdrant.count("docs").count) == (old, 4, 3)
            assert pickle.loads(pickle.dumps(store)).fingerprint == new
        with open_store(url, collection="docs") as store:
            assert (store.fingerprint, store.count()) == (new, 3)
    again = migrate(url, "--model", small, "--switch", *options)
    assert (again.exit_code, "already" in again.stdout) == (0, True)


@pytest.mark.filterwarnings("ignore:Local mode performs exact", "ignore:Payload indexes have no effect in the local")
def test_an_alias_is_not_switched_to_a_copy_that_lags_behind(
    qdrant: Staying, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3_integrations.store.migrating._MOST_PASSES", 1)  # so its last pass found something to do
    move_alias(qdrant, "docs", "docs-1")
    done = migrate("http://qdrant", "--model", small, "--switch", "--collection", "docs")
    assert (done.exit_code, "kept changing, so its alias stays" in done.stderr) == (1, True), done.output
    assert aliases(qdrant) == {"docs": "docs-1"}


@pytest.mark.filterwarnings("ignore:Local mode performs exact", "ignore:Payload indexes have no effect in the local")
@pytest.mark.parametrize("is_beside", [True, False])
def test_a_new_collection_keeps_token_vectors_as_the_old_one(qdrant: Staying, small: Path, is_beside: bool) -> None:
    settings: dict[str, Any] = {"multi_vector": "none", "token_pooling": 2}
    with M3Encoder("tiny", device="cpu") as encoder:
        Searcher(encoder, open_store("http://qdrant", collection="pooled", **settings)).add(["Rotate the keys."])
    to = () if is_beside else ("--to", "http://qdrant2")
    done = migrate("http://qdrant", "--model", small, "--collection", "pooled", *to)
    assert done.exit_code == 0, done.output
    (made,) = {each.name for each in qdrant.get_collections().collections} - {"docs-1", "pooled"}
    with open_store("http://qdrant", collection=made) as store:
        assert isinstance(store, ServerStore)
        assert (store.format.multi_vector, store.format.token_pooling, store.count()) == ("none", 2, 1)


def test_a_key_that_may_not_list_aliases_opens_its_collection(qdrant: Staying, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise UnexpectedResponse(403, "", b"Global access is required", httpx.Headers())

    monkeypatch.setattr(qdrant, "get_aliases", refused)
    with open_store("http://qdrant", collection="docs-1") as store:
        assert store.count() == 3


@pytest.mark.enable_socket
def test_behind_m3_serve_a_switch_names_the_way(index: Path, small: Path) -> None:
    with open_store(index) as store, serving_store(store) as url:
        refused = migrate(url, "--model", small, "--switch")
        assert (refused.exit_code, "switch its store where it lies" in refused.stderr) == (1, True), refused.output
