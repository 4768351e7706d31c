"""A corpus that two workers encode is, after kills too, the one that one process would have stored."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from m3_integrations import open_store
from tests.ray.cluster import add_corpus, assert_equal_stores, driver, wait_until, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.slow]

N = 2000


def written(folder: Path) -> list[str]:
    """The ids in the files of a folder."""
    import pyarrow.parquet as pq

    return [id_ for path in sorted(folder.glob("*.parquet")) for id_ in pq.read_table(path)["id"].to_pylist()]


def n_files(folder: Path) -> int:
    return len(list(folder.glob("*.parquet")))


def test_a_killed_run_goes_on_and_encodes_nothing_twice_and_its_files_load_to_the_same_store(tmp_path: Path) -> None:
    from m3_integrations.parquet import load_parquet

    lines = write_corpus(tmp_path / "corpus", N)
    out = tmp_path / "out"
    with driver("encode", tmp_path / "corpus", out) as killed:
        wait_until(lambda: n_files(out) >= 4 or killed.process.poll() is not None)
        killed.kill()
    acknowledged = written(out)
    assert 0 < len(acknowledged) < N
    with driver("encode", tmp_path / "corpus", out) as again:
        assert again.answer() == {"n_encoded": N - len(acknowledged), "n_there": len(acknowledged)}
    assert sorted(written(out)) == sorted(line["id"] for line in lines)
    with driver("encode", tmp_path / "corpus", out, "--max-length", 100) as other:
        assert "They cannot be compared: use a folder for each" in other.answer()["refused"]
    with open_store(tmp_path / "loaded") as store, open_store(tmp_path / "added") as expected:
        assert load_parquet([out], store).n_loaded == N
        add_corpus(expected, lines)
        assert_equal_stores(store, expected)


@pytest.mark.enable_socket
def test_a_killed_run_into_a_server_writes_nothing_twice_that_was_answered(tmp_path: Path) -> None:
    from tests.ray.standin import standing_in

    lines = write_corpus(tmp_path / "corpus", N // 2)
    with standing_in() as server:
        with driver("encode", tmp_path / "corpus", server.url) as killed:
            wait_until(lambda: len(server.written) >= 150 or killed.process.poll() is not None)
            killed.kill()
        with open_store(server.url, prefer_grpc=False) as store:
            n_acknowledged = store.count()
            assert 0 < n_acknowledged < N // 2
            with driver("encode", tmp_path / "corpus", server.url) as again:
                assert again.answer() == {"n_encoded": N // 2 - n_acknowledged, "n_there": n_acknowledged}
            assert set(server.written.values()) == {1}
            with open_store(tmp_path / "added") as expected:
                add_corpus(expected, lines)
                assert_equal_stores(store, expected)


def test_a_worker_that_dies_is_replaced_and_no_record_doubles(tmp_path: Path) -> None:
    lines = write_corpus(tmp_path / "corpus", N)
    out = tmp_path / "out"
    with driver("encode", tmp_path / "corpus", out) as running:
        wait_until(lambda: n_files(out) >= 4)
        os.kill(running.named("MapWorker")[0], signal.SIGKILL)
        report = running.answer()
    assert report["n_encoded"] + report["n_there"] == N
    assert sorted(written(out)) == sorted(line["id"] for line in lines)
