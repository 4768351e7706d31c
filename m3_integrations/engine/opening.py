"""Which networks this process holds, and that none outlives a fork or the process's end."""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path
from typing import Final
from weakref import WeakSet, WeakValueDictionary

import torch

from m3_integrations.checkpoint import head_files, weight_files
from m3_integrations.engine.engine import Engine
from m3_integrations.engine.queue import Scheduler

_EngineKey = tuple[str, tuple[tuple[str, int, int], ...], tuple[str, ...], torch.dtype]
_engines: WeakValueDictionary[_EngineKey, Engine] = WeakValueDictionary()
# Of every network, also of one whose last handle was closed during its last pass: the worker holds its queue alone.
_schedulers: WeakSet[Scheduler] = WeakSet()
# One network at a time: while transformers loads one, torch's default dtype is that network's, for the whole process.
_loading_lock = threading.Lock()
_loading_process_ids: list[int] = []

_SHUT_DOWN_TIMEOUT_S: Final = 30.0
"""How long the end of the process waits for a forward pass."""


def check_not_forked() -> None:
    """Raise RuntimeError in a process that was forked off one that has loaded a network, or was about to.

    The threads and locks of that process do not exist here, so that a forward pass might wait for ever.
    """
    if _loading_process_ids and os.getpid() not in _loading_process_ids:
        raise RuntimeError(
            f"process {_loading_process_ids[0]} loaded an encoder, and this process was forked off it; encoders do not "
            "work after a fork: start workers with multiprocessing's 'spawn' method (an encoder can be pickled), or "
            "load no encoder before the fork"
        )


def open_engine(folder: Path, devices: tuple[torch.device, ...], dtype: torch.dtype, *, shared: bool) -> Engine:
    """Load a network, or return the one that this process already holds for the same files, devices and dtype.

    A network is dropped when the last handle that uses it has been closed or forgotten. A checkpoint whose files were
    rewritten in place counts as another one.

    Raises:
        RuntimeError: In a process forked off one that has loaded a network.
        ValueError: If the checkpoint is incomplete or damaged.
    """
    check_not_forked()
    if not _loading_process_ids:
        atexit.register(_shut_down)
    _loading_process_ids[:] = [os.getpid()]
    key = (str(folder), _signature(folder), tuple(map(str, devices)), dtype)
    if shared and (held := _engines.get(key)) is not None:  # without waiting for another network's loading
        return held
    with _loading_lock:
        held = _engines.get(key) if shared else None
        if held is None:
            held = Engine(folder, devices, dtype)
            _schedulers.add(held.scheduler)
            if shared:
                _engines[key] = held
        return held


def _shut_down() -> None:
    """End every waiting request with an error, and wait for the passes that are running.

    At the end of a process, before the interpreter goes: a thread that comes back from torch later would crash it.
    """
    if os.getpid() not in _loading_process_ids:
        return  # forked: the threads are not here
    schedulers = list(_schedulers)
    for scheduler in schedulers:
        scheduler.close()
    for thread in [thread for scheduler in schedulers for thread in scheduler.threads]:
        thread.join(_SHUT_DOWN_TIMEOUT_S)


def _signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the names, sizes and times of the files that make the network; others may come and go."""
    files = [folder / "config.json", *folder.glob("tokenizer*"), *weight_files(folder), *head_files(folder)]
    files += [*folder.glob("modules.json"), *folder.glob("*_Pooling/config.json"), *folder.glob("sentence_bert_*.json")]
    there = [(str(path.relative_to(folder)), path.stat()) for path in sorted(files) if path.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in there)
