"""Memory does not grow with the length of a stream."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3_integrations import M3Encoder


def resident_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_encode_batches_over_50_000_texts_holds_memory_flat(small: Path) -> None:
    encoder = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=2_000_000)
    taken = 0

    def stream() -> Iterator[str]:
        nonlocal taken
        for i in range(50_000):
            taken += 1
            yield f"record {i}"

    readings, done = [], 0
    for vectors in encoder.encode_batches(stream()):
        done += len(vectors)
        assert taken - done <= 2048 + 1  # at most one batch ahead was read
        readings.append(resident_mb())
    assert done == 50_000
    settled = readings[len(readings) // 4]
    assert max(readings[len(readings) // 4 :]) - settled < 20  # the vectors of the whole stream would be 110 MB
