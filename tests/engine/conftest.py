"""The encoder that these tests use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from m3_integrations import M3Encoder
from tests.engine.gate import pipelined


@pytest.fixture(params=[False, True], ids=["in turn", "pipelined"])
def alone(small: Path, request: pytest.FixtureRequest) -> Iterator[M3Encoder]:
    """An encoder with an unshared network and without a cache."""
    with M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0) as encoder:
        yield pipelined(encoder) if request.param else encoder
