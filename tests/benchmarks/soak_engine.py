"""Many callers with faults at random, minute after minute: is every one answered, and does memory stay flat?

    python -m tests.benchmarks.soak_engine [MINUTES]

Prints the resident memory after each tenth round of 200 threads with 10 requests each, what the allocator keeps for the
next ones given back first, and what the callers got.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from m3_integrations import M3Encoder
from tests.benchmarks.measure import trim_heap
from tests.engine.traffic import run_traffic
from tests.golden.checkpoints import build_checkpoint


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(minutes: float) -> None:
    threading.excepthook = lambda _: None  # workers die on purpose
    outcomes: Counter[str] = Counter()
    end, n = time.monotonic() + 60 * minutes, 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = build_checkpoint(Path(folder) / "small", "small")
        encoder = M3Encoder(checkpoint, shared=False, device="cpu,cpu", cache_size_bytes=0)
        launches = [network.launch for network in encoder._live_engine().networks]
        while time.monotonic() < end:
            for network, launch in zip(encoder._live_engine().networks, launches, strict=True):
                network.launch = launch  # type: ignore[method-assign]
            encoder._live_engine().scheduler.max_tokens = 1024
            tally, faults, _ = run_traffic(encoder, n_threads=200, n_requests=10, seed=n)
            assert not tally.wrong, tally.wrong
            outcomes += tally.outcomes
            n += 1
            if n % 10 == 1:
                gc.collect()
                trim_heap()
                state = f"{resident_mb():8.0f} MB, {threading.active_count()} threads"
                print(f"{n:5d} rounds {state}, in the last {dict(faults.n_raised)}", flush=True)
    print(f"{n} rounds, {sum(outcomes.values())} requests: {dict(outcomes)}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
