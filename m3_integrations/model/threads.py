"""Torch's threads in a container that may use fewer CPUs than its host has."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import torch

_PROC: Final = Path("/proc/self")
_CHOSEN_BY_USER: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_logger = logging.getLogger(__name__)


@cache
def limit_threads() -> None:
    """Limit torch's threads to the CPUs that a control group allows, as `docker run --cpus 2` does.

    Torch counts the CPUs that it sees, all of the host's. With a thread on each, the system stops the whole process
    for most of every period. Nothing is changed without such a limit, or if OMP_NUM_THREADS or MKL_NUM_THREADS is set,
    and only the first call of a process changes anything: a later `torch.set_num_threads` stays.
    """
    limit = cpu_limit()
    if limit is None or any(map(os.environ.get, _CHOSEN_BY_USER)):
        return
    allowed, threads = math.ceil(limit), torch.get_num_threads()
    if threads > allowed:
        torch.set_num_threads(allowed)
        _logger.info("torch uses %d threads, not %d: this container may use %g CPUs", allowed, threads, limit)


def cpu_limit(proc: Path = _PROC) -> float | None:
    """Return how many CPUs' time the control groups of a process allow, such as 1.5; None for no limit.

    Source: the kernel's documentation, cgroup-v2 (cpu.max) and sched-bwc (cpu.cfs_quota_us). The smallest limit counts
    among the process's group and the groups around it. None on systems other than Linux.

    Args:
        proc: The folder of /proc with the process's files `cgroup` and `mountinfo`.
    """
    try:
        groups = list(_groups(proc))
    except (OSError, ValueError):  # not Linux, or files of another form
        return None
    return min((limit for group in groups if (limit := _limit_of(group)) is not None), default=None)


def _groups(proc: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups for the CPU, and those around them, as far as they are mounted."""
    own: dict[bool, str] = {}  # by whether it is of version 2
    for line in (proc / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            own[number == "0"] = path
    mounts: dict[bool, list[tuple[str, Path]]] = {False: [], True: []}  # the root in the hierarchy, and the folder
    for line in (proc / "mountinfo").read_text().splitlines():
        mount, _, file_system = line.partition(" - ")
        kind, _, options = file_system.partition(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.replace(",", " ").split()):
            root, point = mount.split()[3:5]
            mounts[kind == "cgroup2"].append((root, Path(point)))
    for version_2, path in own.items():
        around = [(root, folder) for root, folder in mounts[version_2] if Path(path).is_relative_to(root)]
        # A container may see its own group as the root of the mount, and its path as the host names it.
        for root, folder in around or mounts[version_2]:
            inside = Path(path).relative_to(root) if around else Path()
            yield from (folder / group for group in (inside, *inside.parents))


def _limit_of(group: Path) -> float | None:
    """Return the limit that a group itself sets; None for none, and if it cannot be read."""
    try:
        if (version_2 := group / "cpu.max").is_file():
            quota, period = version_2.read_text().split()
        elif (version_1 := group / "cpu.cfs_quota_us").is_file():
            quota, period = version_1.read_text(), (group / "cpu.cfs_period_us").read_text()
        else:
            return None
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (ArithmeticError, OSError, ValueError):
        return None
