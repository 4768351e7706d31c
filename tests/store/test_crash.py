"""What survives a kill, a power cut, and a torn log."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m3_integrations import open_store
from tests.store.crash import kill_rounds
from tests.store.oracle import add, records
from tests.store.power import Disk


def test_what_was_acknowledged_survives_three_kills(tmp_path: Path) -> None:
    assert all(done for done, _ in kill_rounds(str(tmp_path / "store"), 3, seed=1))


@pytest.mark.slow
def test_what_was_acknowledged_survives_twenty_kills(tmp_path: Path) -> None:
    assert all(done for done, _ in kill_rounds(str(tmp_path / "store"), 20, seed=100))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        disk = Disk(tmp_path)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    yield disk
    disk.unmount()


def test_what_was_acknowledged_survives_three_power_cuts(disk: Disk) -> None:
    outcomes = kill_rounds(str(disk.mount_point / "store"), 3, seed=1, disk=disk)
    assert all(done for done, _ in outcomes)


@pytest.mark.slow
def test_what_was_acknowledged_survives_forty_power_cuts(disk: Disk) -> None:
    outcomes = kill_rounds(str(disk.mount_point / "store"), 40, seed=2000, disk=disk)
    assert all(done for done, _ in outcomes)


def open_log(folder: Path) -> tuple[Path, int]:
    """The part of the engine's log that is being written, and the length of what it holds; zeros follow."""
    logs = {file: len(file.read_bytes().rstrip(b"\0")) for file in (folder / "engine" / "wal").glob("open-*")}
    return max(logs.items(), key=lambda item: item[1])


_ENDS_WITHOUT_CLOSING = """
import os, sys
import numpy as np
from m3_integrations import open_store
from tests.store.oracle import add, records
random = np.random.default_rng(0)
store = open_store(sys.argv[1])
add(store, records(random, ["first"]))  # written out, as the first change after opening always is
for i in range(12):
    add(store, records(random, [f"r{i}"]))
os._exit(0)
"""


@pytest.mark.parametrize("damage", ["cut", "garbage", "zeros"])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every change is written out at once")
def test_a_torn_log_of_what_was_not_written_out_opens_to_the_last_whole_record(tmp_path: Path, damage: str) -> None:
    """Killed, and on top of that the disk has lost the end of a file that it had synced."""
    folder = tmp_path / "s"
    subprocess.run([sys.executable, "-c", _ENDS_WITHOUT_CLOSING, str(folder)], check=True, env=os.environ)
    file, used = open_log(folder)
    assert used > 1000
    with file.open("r+b") as log:
        if damage == "cut":
            log.truncate(used - 7)
        else:
            log.seek(used - 40)
            log.write(b"\xa5" * 40 if damage == "garbage" else b"\0" * 40)
    with open_store(folder) as store:
        there = {record.id for record in store.records()}
        assert there - {"r11"} == {"first", *(f"r{i}" for i in range(11))}
        add(store, records(np.random.default_rng(1), ["later"]))
    with open_store(folder) as store:
        assert store.count() == len(there) + 1
