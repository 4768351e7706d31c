"""`optimize` in a process of its own: the engine holds the interpreter for minutes, and searches must go on meanwhile.

That process works on a copy of the engine's files, so the store is as before if it fails, and needs nothing of the
program that started it. It ends when that program does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import qdrant_edge as edge

from m3_integrations.store.edge_config import as_config
from m3_integrations.store.edge_folder import StoreFolder
from m3_integrations.store.points import StoreFormat
from m3_integrations.store.syncing import sync_tree

_PROGRAM: Final = "from m3_integrations.store.edge_optimizing import optimize_here; optimize_here()"

_REFUSED: Final = 3
"""The exit status of `optimize_here` if the engine fails. A Python that cannot import this module has another one."""


class Optimizer:
    """One run of `optimize` in a process of its own.

    Args:
        place: The store's folder. Nothing changes the engine's files until `run` has returned.
        format_: The store's format.
        n_records: The number of records in the engine.
    """

    def __init__(self, place: StoreFolder, format_: StoreFormat, n_records: int) -> None:
        self._place, self._copy, self._format, self._n_records = place, place.optimized, format_, n_records
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def run(self) -> bool:
        """Make an optimised copy, durable, and return whether it is there. Other threads can run meanwhile.

        Returns:
            False if this Python cannot be started a second time, for example in a program that contains it.

        Raises:
            OSError: If the engine fails, the disk is full, or the process was killed or stopped.
        """
        if getattr(sys, "frozen", False) or not sys.executable:
            return False
        try:
            shutil.copytree(self._place.engine, self._copy)
        except OSError as error:
            raise self._failed(f"its files could not be copied: {error}") from error
        process = self._start()
        if process is None:
            return False
        with process:
            try:
                said = process.stderr.read() if process.stderr else ""
                process.wait()
            except BaseException:  # interrupted by the keyboard
                self.stop()
                raise
        if process.returncode == 0:
            sync_tree(self._copy)
            return True
        if self._is_stopped:
            raise self._failed("it was stopped")
        if process.returncode == _REFUSED:
            raise self._failed(said.strip())
        if process.returncode < 0:
            raise self._failed(f"its process was ended by signal {-process.returncode}, perhaps for lack of memory")
        return False

    def _start(self) -> subprocess.Popen[str] | None:
        given = [str(self._copy), json.dumps(self._format.to_dict()), str(self._n_records)]
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        with self._lock:
            if self._is_stopped:
                raise self._failed("it was stopped")
            with suppress(OSError):
                self._process = subprocess.Popen(  # noqa: S603 - this Python and this package, no shell
                    [sys.executable, "-c", _PROGRAM, *given],
                    stdin=subprocess.PIPE,  # open as long as this process lives, see `_end_with_parent`
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    env=os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
                )
            return self._process

    def stop(self) -> None:
        """End the process. `run` raises OSError then."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def discard(self) -> None:
        """Delete the copy, unless it has become the store's."""
        shutil.rmtree(self._copy, ignore_errors=True)

    def _failed(self, why: str) -> OSError:
        return OSError(f"the store in {self._place.path} could not be optimised: {why}. It is as it was before")


def optimize_here() -> None:
    """Optimise the engine in a folder. The arguments are the folder, the store's format, and the number of records."""
    _end_with_parent()
    engine, format_, n_records = sys.argv[1:]
    try:
        shard = edge.EdgeShard.load(engine, as_config(StoreFormat.from_dict(engine, json.loads(format_))))
        shard.optimize()
        shard.flush()
        found = shard.count(edge.CountRequest(exact=True))
        shard.close()
    except Exception as error:  # the engine raises Exception itself
        sys.exit(_refused(str(error)))
    if found != int(n_records):  # the engine opens a folder whose records are lost
        sys.exit(_refused(f"{n_records} records were expected in the copy, but {found} are there"))


def _refused(why: str) -> int:
    sys.stderr.write(why)
    return _REFUSED


def _end_with_parent() -> None:
    """Let the system end this process when the other end of its standard input is closed.

    A thread could not watch it, as the engine holds the interpreter.
    """
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415 - not on Windows

    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
