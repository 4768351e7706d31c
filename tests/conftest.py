"""Fixtures and the rule that a missing device or hub skips a test, unless M3_REQUIRE says that it must not."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from m3_integrations import M3Encoder
from tests.golden.checkpoints import build_checkpoint


def pytest_runtest_setup(item: pytest.Item) -> None:
    absent = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "slow": None if os.environ.get("M3_SLOW") else "set M3_SLOW=1 to run what takes minutes",
        "server": None if os.environ.get("QDRANT_URL") else "set QDRANT_URL to a Qdrant server",
        "ray": None if find_spec("ray") else "install the extra ray",
        "hub": None if os.environ.get("M3_HUB") else "set M3_HUB=1 to let tests download BAAI/bge-m3",
    }
    for mark, reason in absent.items():
        if item.get_closest_marker(mark) and reason:
            if mark in os.environ.get("M3_REQUIRE", "").split(","):
                pytest.fail(f"M3_REQUIRE={mark}, but: {reason}")
            pytest.skip(reason)


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
