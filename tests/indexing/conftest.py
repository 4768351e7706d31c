"""A folder of files, and the bundled checkpoint without a cache, so that what is encoded twice is counted twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from m3_integrations import M3Encoder


@pytest.fixture(scope="session")
def tiny() -> Iterator[M3Encoder]:
    with M3Encoder("tiny", shared=False, device="cpu", cache_size_bytes=0) as handle:
        yield handle


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder
