"""Fixtures, when the suite runs in one process, and the rule that a missing device or hub skips a test."""

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from m3_integrations import M3Encoder
from tests.golden.checkpoints import build_checkpoint

_ALONE = ("M3_SLOW", "M3_REQUIRE", "M3_HUB", "QDRANT_URL")
"""Variables that ask for tests which load a whole machine, a device or a server: one process runs them."""


_IN_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 4 << 30

if _IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK):
    _space = os.statvfs(_IN_MEMORY)
    if _space.f_bavail * _space.f_frsize >= _ENOUGH_BYTES and not _space.f_flag & os.ST_NOEXEC:
        # Stores wait for the disk after every change; on a disk that cost a third of the suite's time.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one more than the number of CPUs: a third of the time tests wait, for processes and deadlines.

    0, for no further process, if files or tests are named, if there is one CPU, or if `_ALONE` asks for it.
    """
    names_files = all(Path(name.partition("::")[0]).is_file() for name in config.args)
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if names_files or n_cpus == 1 or any(map(os.environ.get, _ALONE)) else n_cpus + 1


def pytest_xdist_setupnodes(specs: list[object]) -> None:
    """Divide the cores among the processes, which inherit this, as do the commands that they start."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // len(specs))))


def pytest_runtest_setup(item: pytest.Item) -> None:
    absent = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "slow": None if os.environ.get("M3_SLOW") else "set M3_SLOW=1 to run what takes long",
        "server": None if os.environ.get("QDRANT_URL") else "set QDRANT_URL to a Qdrant server",
        "ray": None if find_spec("ray") else "install the extra ray",
        "hub": None if os.environ.get("M3_HUB") else "set M3_HUB=1 to let tests download BAAI/bge-m3",
    }
    for mark, reason in absent.items():
        if item.get_closest_marker(mark) and reason:
            if mark in os.environ.get("M3_REQUIRE", "").split(","):
                pytest.fail(f"M3_REQUIRE={mark}, but: {reason}")
            pytest.skip(reason)


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """A folder on the disk, where `tmp_path` may be in memory: there a file takes other room."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint: 3 layers, 64 wide, 128 positions."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "small", "small")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint: 2 layers, 96 wide, token vectors 32 wide, 64 positions."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "wide", "wide")


@pytest.fixture
def encoder(small: Path) -> Iterator[M3Encoder]:
    with M3Encoder(small, shared=False, device="cpu") as handle:
        yield handle


@pytest.fixture
def uncached(small: Path) -> M3Encoder:
    return M3Encoder(small, device="cpu", cache_size_bytes=0)
