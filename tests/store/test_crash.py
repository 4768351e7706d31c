"""What survives a kill, and a torn log."""

from pathlib import Path

import numpy as np
import pytest

from m3_integrations import open_store
from tests.store.crash import kill_rounds
from tests.store.oracle import records


def test_what_was_acknowledged_survives_three_kills(tmp_path: Path) -> None:
    assert sum(done for done, _ in kill_rounds(str(tmp_path / "store"), 3, seed=1)) >= 3


@pytest.mark.slow
def test_what_was_acknowledged_survives_twenty_kills(tmp_path: Path) -> None:
    assert sum(done for done, _ in kill_rounds(str(tmp_path / "store"), 20, seed=100)) >= 20


def open_log(folder: Path) -> tuple[Path, int]:
    """The part of the engine's log that is being written, and the length of what it holds; zeros follow."""
    logs = {file: len(file.read_bytes().rstrip(b"\0")) for file in (folder / "engine" / "wal").glob("open-*")}
    return max(logs.items(), key=lambda item: item[1])


@pytest.mark.parametrize("damage", ["cut", "garbage", "zeros"])
def test_a_torn_tail_of_the_log_opens_to_the_last_whole_record(
    tmp_path: Path, damage: str, random: np.random.Generator
) -> None:
    with open_store(tmp_path / "s") as store:
        for i in range(12):
            store.upsert(records(random, [f"r{i}"]))
    file, used = open_log(tmp_path / "s")
    assert used > 1000
    with file.open("r+b") as log:
        if damage == "cut":
            log.truncate(used - 7)
        else:
            log.seek(used - 40)
            log.write(b"\xa5" * 40 if damage == "garbage" else b"\0" * 40)
    with open_store(tmp_path / "s") as store:
        # Flushed segments hold what the log has lost.
        assert {record.id for record in store.records()} == {f"r{i}" for i in range(12)}
        store.upsert(records(random, ["later"]))
    with open_store(tmp_path / "s") as store:
        assert store.count() == 13
