"""Timing and peak memory of calls that compete with each other, and the description of the machine they ran on."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

Call = Callable[[int], object]
"""What a contender does in round i; round 0 is the warm-up."""

_STATM = Path("/proc/self/statm")
_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Measurement:
    """The timed rounds of one contender: wall and process CPU seconds of each, and the peak memory in megabytes."""

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    peak_mb: float

    def wall_quantile(self, q: float = 0.5) -> float:
        """Seconds on the wall clock; the median unless another quantile in [0, 1] is asked for."""
        return float(np.quantile(self.wall_s, q))

    def cpu_quantile(self, q: float = 0.5) -> float:
        """Seconds of all the process's threads together, waiting in a spin included."""
        return float(np.quantile(self.cpu_s, q))


@dataclass(frozen=True, slots=True)
class Row:
    """One workload's line in the table: FlagEmbedding and ours side by side.

    Attributes:
        workload: Its name, which says so if the seconds are not medians.
        texts: How many texts one run takes.
        tokens: Their tokens, padding not counted.
        flag: FlagEmbedding's runs.
        ours: Ours.
        quantile: Of the runs' seconds, in [0, 1].
        is_encoded: Whether we encode the tokens in each run, so that tokens per second mean something.
    """

    workload: str
    texts: int
    tokens: int
    flag: Measurement
    ours: Measurement
    quantile: float = 0.5
    is_encoded: bool = True

    HEADER: ClassVar[str] = (
        f"{'workload':<24}{'texts':>6}{'tokens':>9}{'runs':>5}{'FlagEmbedding s (CPU s)':>25}{'ours s (CPU s)':>20}"
        f"{'ratio (CPU)':>17}{'ours tok/s':>11}{'FlagEmbedding peak MB':>23}{'ours':>8}"
    )

    def __str__(self) -> str:
        flag_s, ours_s = self.flag.wall_quantile(self.quantile), self.ours.wall_quantile(self.quantile)
        flag_cpu_s, ours_cpu_s = self.flag.cpu_quantile(self.quantile), self.ours.cpu_quantile(self.quantile)
        flag, ours = f"{flag_s:.4g} ({flag_cpu_s:.4g})", f"{ours_s:.4g} ({ours_cpu_s:.4g})"
        ratio = f"{flag_s / ours_s:.2f} ({flag_cpu_s / ours_cpu_s:.2f})"
        speed = f"{self.tokens / ours_s:.0f}" if self.is_encoded else ""
        return (
            f"{self.workload:<24}{self.texts:>6}{self.tokens:>9}{len(self.ours.wall_s):>5}{flag:>25}{ours:>20}"
            f"{ratio:>17}{speed:>11}{self.flag.peak_mb:>23.0f}{self.ours.peak_mb:>8.0f}"
        )


class PeakMemory:
    """Measures how far memory rises above where it stood on entry, results that are still held included.

    On CUDA this is the allocator's own peak. On the CPU it is the resident set without what is mapped from files, since
    weights come in page by page as they are first used; a thread samples it every 2 ms. Free memory is handed back to
    the system first, so that what an earlier call left behind does not hide the rise. NaN where there is no /proc.
    """

    def __init__(self, device: str) -> None:
        self._is_cuda = device.startswith("cuda")
        self.peak_mb = math.nan

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._baseline = torch.cuda.memory_allocated()
            return self
        trim_heap()
        self._baseline = self._highest = _anonymous_bytes()
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_cuda:
            self._highest = torch.cuda.max_memory_allocated()
        else:
            self._done.set()
            self._sampler.join()
            self._highest = max(self._highest, _anonymous_bytes())
        if self._is_cuda or _STATM.exists():
            self.peak_mb = (self._highest - self._baseline) / _MEGABYTE

    def _sample(self) -> None:
        while not self._done.wait(0.002):
            self._highest = max(self._highest, _anonymous_bytes())


def _anonymous_bytes() -> int:
    if not _STATM.exists():
        return 0
    resident, from_files = map(int, _STATM.read_text().split()[1:3])  # pages
    return (resident - from_files) * os.sysconf("SC_PAGE_SIZE")


def trim_heap() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def measure(contenders: Mapping[str, Call], *, repeats: int, budget_s: float, device: str) -> dict[str, Measurement]:
    """Time the contenders in turns; the order turns round after each round.

    The first round warms everybody up and measures memory, with a sampling thread beside it; it is not timed.

    Args:
        contenders: Who does what in round i.
        repeats: How many timed rounds, if the budget allows; one is always timed.
        budget_s: Seconds that all rounds together may take, judged by the warm-up.
        device: Synchronised before and after each call if it is CUDA.

    Returns:
        The measurements by contender, all of the same number of rounds.
    """
    started = time.perf_counter()
    peaks = {name: _peak_mb(call, device) for name, call in contenders.items()}
    warm_up_s = time.perf_counter() - started
    repeats = max(1, min(repeats, int(budget_s / warm_up_s) - 1))
    gc.collect()
    gc.freeze()  # collections between the rounds would walk every object, and leave the next call's caches cold
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    try:
        for i in range(1, repeats + 1):
            for name in list(contenders)[:: 1 if i % 2 else -1]:
                times[name].append(_time_once(contenders[name], i, device))
    finally:
        gc.unfreeze()
    return {
        name: Measurement(tuple(wall for wall, _ in pairs), tuple(cpu for _, cpu in pairs), peaks[name])
        for name, pairs in times.items()
    }


def _peak_mb(call: Call, device: str) -> float:
    with PeakMemory(device) as memory:
        result = call(0)
        _synchronise(device)
    del result
    return memory.peak_mb


def _time_once(call: Call, i: int, device: str) -> tuple[float, float]:
    gc.collect()  # nobody pays for what another left behind
    _synchronise(device)
    cpu, wall = time.process_time(), time.perf_counter()
    result = call(i)
    _synchronise(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    del result  # freeing it is outside the clock
    return wall, cpu


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def available_bytes(device: str) -> int:
    """Memory that can still be taken on the device, in bytes; 0 where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def describe_machine(device: str) -> str:
    """CPU model, cores, torch's threads, the load before the run, and the GPU if one is used."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    model = model or platform.processor() or platform.machine()
    text = f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, load {os.getloadavg()[0]:.1f}"
    return f"{text}; {torch.cuda.get_device_name()}" if device.startswith("cuda") else text


def describe_versions(*packages: str) -> str:
    """Python and these distributions, each with its installed version."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
