"""`optimize` in a folder, in a process of its own: searches go on, changes wait, and nothing is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from m3_integrations import M3Vectors, Record, open_store
from m3_integrations.store import edge, edge_optimizing
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.edge_size import allocated_bytes, disk_use
from tests.store.oracle import add, records, vectors
from tests.test_filters import plain

WAIT_S = 60


@pytest.fixture(autouse=True)
def always_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "_MANY", 1)


@pytest.fixture
def kept(random: np.random.Generator) -> list[Record]:
    return records(random, [f"kept{i}" for i in range(30)])


def held_program(gate: Path) -> str:
    """A program that writes its process id beside the gate, and optimises once the gate is there."""
    return (
        "import os, time\nfrom pathlib import Path\n"
        "from m3_integrations.store import edge_optimizing\nedge_optimizing._end_with_parent()\n"
        "edge_optimizing._say(edge_optimizing._BEGUN)\n"
        f"gate = Path({str(gate)!r})\ngate.with_suffix('.new').write_text(str(os.getpid()))\n"
        "gate.with_suffix('.new').rename(gate.with_suffix('.pid'))\n"
        "while not gate.exists():\n    time.sleep(0.01)\n" + edge_optimizing._PROGRAM
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + WAIT_S
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not made"
        time.sleep(0.01)


@contextmanager
def optimizing(store: EdgeStore, gate: Path, change: pytest.MonkeyPatch) -> Iterator[tuple[Future[None], int]]:
    """Optimise in a thread; the other process has begun, and goes on once the gate is there."""
    change.setattr(edge_optimizing, "_PROGRAM", held_program(gate))
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(store.optimize)
        try:
            wait_for(gate.with_suffix(".pid"))
            yield run, int(gate.with_suffix(".pid").read_text())
        finally:
            gate.touch()


def scores_of(store: EdgeStore, query: M3Vectors, kept: list[Record]) -> dict[str, float]:
    ids, columns = store.scores(query, [record.id for record in kept], ["dense", "lexical", "multi_vector"])
    return {f"{mode} {id_}": float(x) for mode, scores in columns.items() for id_, x in zip(ids, scores, strict=True)}


def leftovers(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} - {"engine", "m3-store.json", "m3-store.lock"}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_searches_go_on_and_changes_wait(
    tmp_path: Path, random: np.random.Generator, kept: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, folder = vectors(random, 1), tmp_path / "s"
    with EdgeStore(folder) as store, ThreadPoolExecutor(3) as pool:
        add(store, kept)
        before = scores_of(store, query, kept)
        with optimizing(store, tmp_path / "gate", monkeypatch) as (run, _):
            changes: list[Future[Any]] = [
                pool.submit(add, store, records(random, ["late"])),
                pool.submit(store.delete, ["kept1", "kept2"]),
                pool.submit(store.delete_where, {"topic": {"$in": ["nothing has this"]}}),
            ]
            assert len(store.candidates(query, {"dense": 5})["dense"].ids) == 5
            assert scores_of(store, query, kept) == before
            sized = [record for record in kept if plain({"size": {"$gte": 2}}, dict(record.metadata))]
            assert 0 < store.count({"size": {"$gte": 2}}) == len(sized)
            assert "size" not in store._indexed_paths  # making an index would be a change
            assert [record.id for record in store.get(["kept1", "late"])] == ["kept1"]
            files = [(file, file.stat().st_ino) for file in (tmp_path / "s" / "engine").rglob("*.json")]
            store.flush()  # does not write what is being copied
            assert [(file, file.stat().st_ino) for file in (tmp_path / "s" / "engine").rglob("*.json")] == files
            time.sleep(0.2)
            assert not run.done()
            assert not any(change.done() for change in changes)
        run.result(WAIT_S)
        assert [change.result(WAIT_S) for change in changes] == [None, 2, 0]
        assert {record.id for record in store.get(["kept1", "kept3", "late"])} == {"kept3", "late"}
        after = scores_of(store, query, [record for record in kept if record.id not in ("kept1", "kept2")])
        assert after == {key: score for key, score in before.items() if key.split()[1] not in ("kept1", "kept2")}
    with EdgeStore(folder) as store:
        assert store.count() == 29
    assert leftovers(folder) == set()


def test_records_and_vectors_are_the_same_after_it(
    tmp_path: Path, random: np.random.Generator, kept: list[Record]
) -> None:
    query = vectors(random, 1)
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        before = store.get([record.id for record in kept], with_vectors=True), scores_of(store, query, kept)
        place = store._shard
        store.optimize()
        assert store._shard is not place  # it came from the copy
        after = store.get([record.id for record in kept], with_vectors=True), scores_of(store, query, kept)
        assert [(a.id, a.text, a.metadata) for a in after[0]] == [(b.id, b.text, b.metadata) for b in before[0]]
        for a, b in zip(after[0], before[0], strict=True):
            assert a.vectors is not None
            assert b.vectors is not None
            np.testing.assert_array_equal(a.vectors.dense, b.vectors.dense)
        assert after[1] == before[1]


def test_a_killed_process_leaves_the_store_as_it_was(
    tmp_path: Path, kept: list[Record], random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        with optimizing(store, tmp_path / "gate", monkeypatch) as (run, pid):
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(
                OSError, match=r"ended by signal 9, perhaps for lack of memory\. The store was not changed"
            ):
                run.result(WAIT_S)
        assert leftovers(tmp_path / "s") == set()
        add(store, records(random, ["late"]))
        assert store.count() == 31


def test_closing_ends_the_process(tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    store = EdgeStore(tmp_path / "s")
    add(store, kept)
    with optimizing(store, tmp_path / "gate", monkeypatch) as (run, pid):
        store.close()
        assert not is_alive(pid)
        with pytest.raises(OSError, match="it was stopped"):
            run.result(WAIT_S)
    assert leftovers(tmp_path / "s") == set()
    with EdgeStore(tmp_path / "s") as store:
        assert store.count() == 30


def test_a_damaged_copy_is_given_up(tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
    with EdgeStore(tmp_path / "s") as store:  # the records are in the segments now, and not in the log
        damage = (
            "import shutil\nfrom m3_integrations.store import edge_optimizing\ncopytree = shutil.copytree\n"
            "def lose(source, target, *how, **more):\n    copytree(source, target, *how, **more)\n"
            "    shutil.rmtree(target + '/segments', ignore_errors=True)\nshutil.copytree = lose\n"
        )
        monkeypatch.setattr(edge_optimizing, "_PROGRAM", damage + edge_optimizing._PROGRAM)
        with pytest.raises(OSError, match=r"30 records were expected in the copy, but 0 are there\. The store"):
            store.optimize()
        assert store.count() == 30
        assert leftovers(tmp_path / "s") == set()


@pytest.mark.parametrize("fault", ["no executable", "frozen", "not python", "not installed"])
def test_where_no_process_can_start_it_runs_here(
    fault: str, tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        if fault == "no executable":
            monkeypatch.setattr(sys, "executable", "")
        elif fault == "frozen":
            monkeypatch.setattr(sys, "frozen", True, raising=False)
        elif fault == "not python":
            monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
        else:
            monkeypatch.setattr(edge_optimizing, "_PROGRAM", "import no_such_module")
        with patch.object(EdgeStore, "_optimize", autospec=True, side_effect=EdgeStore._optimize) as here:
            store.optimize()
        here.assert_called_once()
        assert store.count() == 30
        assert leftovers(tmp_path / "s") == set()


def test_few_records_need_no_process(tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "_MANY", 31)
    monkeypatch.setattr(subprocess, "Popen", None)
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        store.optimize()
        assert store.count() == 30


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_it_ends_with_the_process_that_started_it(tmp_path: Path, kept: list[Record]) -> None:
    gate, folder = tmp_path / "gate", tmp_path / "s"
    with EdgeStore(folder) as store:
        add(store, kept)
    program = (
        "from m3_integrations.store import edge, edge_optimizing, open_store\n"
        f"edge._MANY, edge_optimizing._PROGRAM = 1, {held_program(gate)!r}\n"
        f"open_store({str(folder)!r}).optimize()"
    )
    starter = subprocess.Popen([sys.executable, "-c", program])
    wait_for(gate.with_suffix(".pid"))
    pid = int(gate.with_suffix(".pid").read_text())
    starter.kill()
    starter.wait()
    end = time.monotonic() + WAIT_S
    while is_alive(pid):
        assert time.monotonic() < end, "it outlived its parent"
        time.sleep(0.01)
    with open_store(folder) as opened:
        assert opened.count() == 30
    assert leftovers(folder) == set()


@pytest.mark.parametrize("moment", ["copied", "replaced", "renamed"])
def test_killed_while_the_copy_takes_its_place(moment: str, tmp_path: Path, kept: list[Record]) -> None:
    folder = tmp_path / "s"
    with EdgeStore(folder) as store:
        add(store, kept)
        store.optimize()
    engine, optimized, replaced = folder / "engine", folder / "engine.optimized.1", folder / "engine.replaced"
    copied = {"copied": [(engine, optimized)], "replaced": [(engine, optimized), (engine, replaced)]}
    for source, target in copied.get(moment, [(engine, replaced)]):
        subprocess.run(["cp", "-r", source, target], check=True)
    if moment == "replaced":
        subprocess.run(["rm", "-r", engine], check=True)
    with EdgeStore(folder) as store:
        assert store.count() == 30
    assert leftovers(folder) == set()


def test_a_copy_that_cannot_take_its_place_is_given_up(
    tmp_path: Path, kept: list[Record], random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name.startswith("engine.optimized."):
            raise OSError("the disk is gone")
        return rename(path, target)

    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            store.optimize()
        monkeypatch.undo()
        add(store, records(random, ["late"]))
        assert store.count() == 31
    assert leftovers(tmp_path / "s") == set()


def test_a_store_that_lost_a_change_is_not_flushed_or_optimised(tmp_path: Path, kept: list[Record]) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        store._broken_by = OSError("the disk is gone")
        for call in (store.flush, store.optimize):
            with pytest.raises(OSError, match="the disk is gone"):
                call()
        assert store.count() == 30


def test_two_runs_follow_each_other(tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        with optimizing(store, tmp_path / "gate", monkeypatch) as (run, _):
            second = threading.Thread(target=store.optimize)
            second.start()
        run.result(WAIT_S)
        second.join(WAIT_S)
        assert not second.is_alive()
        assert store.count() == 30
    assert leftovers(tmp_path / "s") == set()


def test_a_status_that_another_part_of_the_program_took_is_no_success(
    tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SIGCHLD ignored Python reports a status of 0, whatever the process did."""
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            with optimizing(store, tmp_path / "gate", monkeypatch) as (run, pid):
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(OSError, match="The store was not changed"):
                    run.result(WAIT_S)
        finally:
            signal.signal(signal.SIGCHLD, before)
        assert store.count() == 30


def test_a_process_that_ends_after_it_began_is_not_repeated_here(
    tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        program = (
            "from m3_integrations.store import edge_optimizing\nedge_optimizing._say('begun')\nraise SystemExit(1)"
        )
        monkeypatch.setattr(edge_optimizing, "_PROGRAM", program)
        monkeypatch.setattr(store, "_optimize", None)
        with pytest.raises(OSError, match="its process ended without a result"):
            store.optimize()
        assert store.count() == 30


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_it_does_not_begin_if_its_parent_ended_before() -> None:
    read, written = os.pipe()
    os.close(written)
    program = "from m3_integrations.store.edge_optimizing import _end_with_parent\n_end_with_parent()\nprint('on')"
    ended = subprocess.run([sys.executable, "-c", program], stdin=read, capture_output=True, text=True, check=False)
    os.close(read)
    assert (ended.stdout, ended.returncode != 0) == ("", True)


def test_what_the_engine_reserves_takes_no_room_in_the_copy(disk_path: Path) -> None:
    source, target = disk_path / "a", disk_path / "b"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(5 << 20)
        file.write(b"records" * 100_000)
    edge_optimizing.copy_sparse(str(source), str(target))
    assert target.read_bytes() == source.read_bytes()
    assert allocated_bytes(target) < 2 << 20
    with source.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 << 20)
    reserved = allocated_bytes(source)
    edge_optimizing.copy_sparse(str(source), str(target))
    assert allocated_bytes(target) >= min(reserved, 4 << 20)
    for content in (b"", b"x", bytes(10), bytes(200_000) + b"x"):
        source.write_bytes(content)
        edge_optimizing.copy_sparse(str(source), str(target))
        assert target.read_bytes() == content


def test_the_store_is_no_larger_after_it(disk_path: Path, kept: list[Record]) -> None:
    with EdgeStore(disk_path / "s") as store:
        add(store, kept)
        store.flush()
        before = disk_use(disk_path / "s").size_bytes
        store.optimize()
        assert disk_use(disk_path / "s").size_bytes < before + (4 << 20)


def test_paths_that_python_ignores_do_not_matter(
    tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path, None])
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        monkeypatch.setattr(store, "_optimize", None)
        store.optimize()
        assert store.count() == 30


def test_an_interrupted_cleanup_holds_up_no_change(
    tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: edge_optimizing.Optimizer) -> None:
        raise KeyboardInterrupt

    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        with monkeypatch.context() as change:
            change.setattr(edge_optimizing.Optimizer, "discard", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.optimize()
        assert store.delete(["kept1"]) == 1


def test_it_can_be_run_again_after_the_disk_failed(
    tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError("the disk is gone")

    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
        with monkeypatch.context() as change:
            change.setattr("m3_integrations.store.edge_folder.sync", fail)
            with pytest.raises(OSError, match="the disk is gone"):
                store.optimize()
        store.optimize()
        assert store.count() == 30
    assert leftovers(tmp_path / "s") == set()


def test_a_folder_that_can_only_be_read_is_opened_in_every_state(
    tmp_path: Path, kept: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, kept)
    (tmp_path / "s" / "engine").rename(tmp_path / "s" / "engine.replaced")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    with EdgeStore(tmp_path / "s") as store:
        assert store.count() == 30
