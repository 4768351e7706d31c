"""The networks of this process: shared between handles, refused after a fork, shut down at the end."""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path
from typing import Final
from weakref import WeakSet, WeakValueDictionary

import torch

from m3_integrations.checkpoint import files_stamp
from m3_integrations.engine.engine import Engine
from m3_integrations.engine.queue import Scheduler
from m3_integrations.model import limit_threads

_EngineKey = tuple[str, tuple[tuple[str, int, int], ...], tuple[str, ...], torch.dtype]
_engines: WeakValueDictionary[_EngineKey, Engine] = WeakValueDictionary()
# The queue of every network. A worker keeps its queue through its last pass, even if the network's handles are closed.
_schedulers: WeakSet[Scheduler] = WeakSet()
# One network is loaded at a time: meanwhile transformers sets torch's default dtype for the whole process.
_loading_lock = threading.Lock()
_loading_process_ids: list[int] = []

_SHUT_DOWN_TIMEOUT_S: Final = 30.0
"""How long the process waits at its end for a running forward pass."""


def check_not_forked() -> None:
    """Raise RuntimeError in a process forked from one that has loaded a network, or was loading one.

    A fork does not copy the parent's threads, and locks may stay locked: a forward pass could block without end.
    """
    if _loading_process_ids and os.getpid() not in _loading_process_ids:
        raise RuntimeError(
            f"this process was forked from process {_loading_process_ids[0]}, which had loaded an encoder. Encoders do "
            "not work after a fork: start workers with multiprocessing's 'spawn' method (an encoder can be pickled), "
            "or fork before an encoder is loaded"
        )


def open_engine(folder: Path, devices: tuple[torch.device, ...], dtype: torch.dtype, *, shared: bool) -> Engine:
    """Load a network, or return the one that this process already holds for the same files, devices and dtype.

    A network is freed when its last handle is closed or garbage collected. If a checkpoint's files were rewritten in
    place, the network is loaded anew.

    Raises:
        RuntimeError: In a process forked from one that has loaded a network.
        ValueError: If the checkpoint is incomplete or damaged.
    """
    check_not_forked()
    if not _loading_process_ids:
        atexit.register(_shut_down)
    _loading_process_ids[:] = [os.getpid()]
    key = (str(folder), files_stamp(folder), tuple(map(str, devices)), dtype)
    if shared and (held := _engines.get(key)) is not None:  # without a wait for a network that is being loaded
        return held
    with _loading_lock:
        held = _engines.get(key) if shared else None
        if held is None:
            if any(device.type == "cpu" for device in devices):
                limit_threads()
            held = Engine(folder, devices, dtype)
            _schedulers.add(held.scheduler)
            if shared:
                _engines[key] = held
        return held


def _shut_down() -> None:
    """End every waiting request with an error, and wait for the passes that are running.

    It runs at the end of the process: a thread that returns from torch during the interpreter's shutdown would crash.
    """
    if os.getpid() not in _loading_process_ids:
        return  # a forked child has no such threads
    schedulers = list(_schedulers)
    for scheduler in schedulers:
        scheduler.close()
    for thread in [thread for scheduler in schedulers for thread in scheduler.threads]:
        thread.join(_SHUT_DOWN_TIMEOUT_S)
