"""Drivers of Ray in processes of their own, and their sudden end; a corpus, and what its store must hold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from m3_integrations import M3Encoder, Searcher, Store

ROOT: Final = Path(__file__).parent.parent.parent
WORDS: Final = (
    "vault",
    "key",
    "museum",
    "rotate",
    "harbour",
    "lamp",
    "monday",
    "ship",
    "year",
    "copper",
    "gate",
    "night",
)


@dataclass
class Driver:
    """A process of `tests.ray.driver`."""

    process: subprocess.Popen[str]
    log: Path

    def answer(self) -> dict[str, Any]:
        """Return what it printed; Ray prints lines of its own."""
        assert self.process.stdout is not None
        line = next((each for each in self.process.stdout if each.startswith("{")), None)
        assert line is not None, self.log.read_text()[-4000:]
        found: dict[str, Any] = json.loads(line)
        return found

    def named(self, name: str) -> list[int]:
        """Return its processes of Ray that are called so."""
        return [pid for pid in descendants(self.process.pid) if _command(pid).startswith(f"ray::{name}")]

    def kill(self) -> None:
        """Kill it and all that it has started (SIGKILL), and return when they are gone."""
        for pid in (found := [self.process.pid, *descendants(self.process.pid)]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(_is_alive(pid) for pid in found))


@contextmanager
def driver(*arguments: object) -> Iterator[Driver]:
    """Start a driver; whatever it has started is gone at the end."""
    # Short, as paths of sockets must be; a home of its own, as Ray writes a token there.
    folder = Path(tempfile.mkdtemp(prefix="m3-"))
    environment = {"RAY_TMPDIR": str(folder), "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray.driver", *map(str, arguments)],
            cwd=ROOT, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            text=True,
        )  # fmt: skip
    try:
        yield (running := Driver(process, folder / "log"))
        if process.stdin is not None and process.poll() is None:
            process.stdin.close()
            process.wait(300)
    finally:
        running.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found.extend(child for child, parent in parents.items() if parent == each)
    return found[1:]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(is_so: Callable[[], bool], timeout_s: float = 400) -> None:
    """Return when something has become true in other processes."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def write_corpus(path: Path, n: int) -> list[dict[str, Any]]:
    """Write n short texts as JSONL in four files, and return their lines as objects."""
    random = np.random.default_rng(7)
    path.mkdir()
    lines = [
        {
            "id": f"t{i}",
            "text": " ".join(random.choice(WORDS, random.integers(3, 20))),
            "year": 1990 + i % 40,
            "metadata": {"loc": {"page": i / 8}, "tags": ["a", "ü\u2028"]},
        }
        for i in range(n)
    ]
    for part in range(4):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[part::4])
        (path / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return lines


def add_corpus(store: Store, lines: list[dict[str, Any]]) -> None:
    """Add the same texts as one process does that has no Ray."""
    searcher = Searcher(M3Encoder("tiny", max_length=512), store)
    metadatas = [{"id": line["id"], "year": line["year"], **line["metadata"]} for line in lines]
    searcher.add([line["text"] for line in lines], ids=[line["id"] for line in lines], metadatas=metadatas)


def assert_equal_stores(store: Store, other: Store, *, token_atol: float = 1e-3) -> None:
    """Compare every record with its vectors; token vectors are rounded to float16 on both ways."""
    ids = sorted(record.id for record in other.records())
    assert (store.count(), store.fingerprint) == (len(ids), other.fingerprint)
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        ours, theirs = store.get(part, with_vectors=True), other.get(part, with_vectors=True)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.id, a.text, a.metadata) == (b.id, b.text, b.metadata)
            assert a.vectors is not None
            assert b.vectors is not None
            np.testing.assert_allclose(a.vectors.dense, b.vectors.dense, atol=1e-5)
            np.testing.assert_array_equal(a.vectors.lexical.indices, b.vectors.lexical.indices)
            np.testing.assert_allclose(a.vectors.lexical.values, b.vectors.lexical.values, atol=1e-5)
            np.testing.assert_allclose(a.vectors.multi_vector.flat, b.vectors.multi_vector.flat, atol=token_atol)
