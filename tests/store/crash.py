"""Kill a store at a random moment and look at what is left: `python -m tests.store.crash --rounds 20`.

A child process adds, replaces, deletes, optimises, closes and opens again, and says what it is about to do and when
that was acknowledged. It is killed (SIGKILL), with `--power` its disk loses power first, the store is opened again, and
every acknowledged record must be there and right. The operation in flight may have happened, or not, or in part: that
is what not being acknowledged means.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m3_integrations import Record, open_store
from m3_integrations.store import edge, parse_filter
from m3_integrations.vectors import MODES
from tests.fakes import random_vectors
from tests.store.oracle import add
from tests.store.power import Disk

KEYS = 400
CHANGES = {"upsert", "delete", "delete_where"}


def make(key: int, version: int) -> Record:
    """The record that a key has in a version: known without asking the store."""
    vectors = random_vectors(np.random.default_rng([key, version]), 1, tokens=20)
    return Record(f"r{key}", f"text {version}", {"version": version, "key": key}, vectors)


def work(folder: str, seed: int) -> None:
    """Change a store until killed; one line before and one after each change."""
    chance, version = random.Random(seed), seed * 1_000_000
    edge._MANY = (1, 2500)[seed % 2]  # type: ignore[misc]  # with 1, `optimize` takes a process of its own
    edge._MAX_LOGGED_BYTES = (16 << 20, 100_000, 0)[seed % 3]  # type: ignore[misc]
    with ExitStack() as stack:
        store = stack.enter_context(open_store(folder))
        while True:
            version += 1
            keys = sorted(chance.sample(range(KEYS), chance.randint(1, 120)))
            kind = chance.choices(["upsert", "delete", "delete_where", "optimize", "reopen"], [8, 2, 1, 1, 2])[0]
            print(kind, version, *keys, flush=True)
            if kind == "upsert":
                add(store, [make(key, version) for key in keys])
            elif kind == "delete":
                store.delete([f"r{key}" for key in keys])
            elif kind == "delete_where":
                where = parse_filter({"key": {"$in": keys}})
                assert where is not None
                store.delete_where(where)
            elif kind == "optimize":
                store.optimize()
            else:
                store.close()
                store = stack.enter_context(open_store(folder))
            print("ok", flush=True)


@dataclass
class Expected:
    """What must be in the store: by key the versions that are possible, None where it may be absent."""

    versions: dict[int, set[int | None]] = field(default_factory=lambda: {key: {None} for key in range(KEYS)})

    def follow(self, lines: list[str]) -> int:
        """Take in what a child said; gives the number of acknowledged changes."""
        done = 0
        for i, line in enumerate(lines):
            kind, *numbers = line.split()
            if kind not in CHANGES:
                continue
            is_done = i + 1 < len(lines) and lines[i + 1] == "ok"
            done += is_done
            new = int(numbers[0]) if kind == "upsert" else None
            for key in map(int, numbers[1:]):
                self.versions[key] = {new} if is_done else self.versions[key] | {new}
        return done

    def check(self, folder: str) -> int:
        """Compare with the store, and settle what was open; gives the number of records."""
        with open_store(folder) as store:
            found = {record.id: record for record in store.get([f"r{key}" for key in range(KEYS)], with_vectors=True)}
            assert store.count() == len(found)
            for key, possible in self.versions.items():
                record = found.get(f"r{key}")
                version = None if record is None else record.metadata["version"]
                assert version in possible, f"r{key} has version {version}, possible are {possible}"
                self.versions[key] = {version}
                if record is not None:
                    _check_record(record, make(key, record.metadata["version"]))
            for least in range(0, KEYS, 40):
                wanted = {id_ for id_, record in found.items() if record.metadata["key"] >= least}
                assert store.count(parse_filter({"key": {"$gte": least}})) == len(wanted)
            if found:
                _check_search(store, found)
            return len(found)


def _check_record(record: Record, wanted: Record) -> None:
    assert (record.text, record.metadata) == (wanted.text, wanted.metadata)
    assert record.vectors is not None
    assert wanted.vectors is not None
    np.testing.assert_array_equal(record.vectors.dense, wanted.vectors.dense)
    np.testing.assert_array_equal(record.vectors.lexical.values, wanted.vectors.lexical.values)
    np.testing.assert_allclose(record.vectors.multi_vector.flat, wanted.vectors.multi_vector.flat, atol=3e-4)


def _check_search(store: object, found: dict[str, Record]) -> None:
    from m3_integrations import Store

    assert isinstance(store, Store)
    query = next(iter(found.values())).vectors
    assert query is not None
    hits = store.candidates(query, {"dense": KEYS, "lexical": KEYS})
    assert set(hits["dense"].ids) == set(found)
    ids, scores = store.scores(query, list(found), MODES)
    assert ids == list(found)
    wanted = [float(query.dense[0] @ found[id_].vectors.dense[0]) for id_ in ids]  # type: ignore[union-attr]
    np.testing.assert_allclose(scores["dense"], wanted, atol=1e-5)


def kill_rounds(folder: str, rounds: int, seed: int, disk: Disk | None = None) -> list[tuple[int, int]]:
    """Kill and compare so many times; gives acknowledged changes and records of every round.

    Args:
        folder: Of the store.
        rounds: How many times.
        seed: Of the changes and the moments.
        disk: Where the folder is, to cut its power before each kill.
    """
    expected, chance, outcomes = Expected(), random.Random(seed), []
    said = subprocess.DEVNULL if disk else None  # the lost disk is no news
    for i in range(rounds):
        command = [sys.executable, "-m", "tests.store.crash", "--work", folder, "--seed", str(seed + i)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline().strip()]
        while lines[-1] and not (lines[-1] == "ok" and lines[-2].split()[0] in CHANGES):  # until a change is in
            lines.append(child.stdout.readline().strip())
        time.sleep(chance.uniform(0, 2))
        if disk:
            disk.cut_power()
        child.kill()
        lines += child.stdout.read().splitlines()
        child.wait()
        child.stdout.close()
        if disk:
            disk.unmount()
            disk.mount()
        outcomes.append((expected.follow(lines), expected.check(folder)))
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--power", action="store_true", help="cut the power of the disk, too; as root")
    parser.add_argument("--work", help="the child's part: a folder")
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked.seed)
    with tempfile.TemporaryDirectory() as place:
        disk = Disk(Path(place)) if asked.power else None
        try:
            folder = (disk.mount_point if disk else Path(place)) / "store"
            for done, there in kill_rounds(str(folder), asked.rounds, asked.seed, disk):
                print(f"{done} changes acknowledged, {there} records, all right")
        finally:
            if disk:
                disk.unmount()
