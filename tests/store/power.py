"""A disk whose power can be cut: an ext4 file system in a file, shut down without writing what is in memory."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: _IOR('X', 125, u32)."""
_NO_LOG_FLUSH = 2
"""Nothing more reaches the disk, not even the file system's own log: what was not synced is lost."""


class Disk:
    """A mounted file system; needs root, and a kernel that may mount one.

    Args:
        place: An empty folder for the file and the mount point.
        size_mb: Of the disk.

    Raises:
        OSError: If it cannot be made or mounted here.
    """

    def __init__(self, place: Path, size_mb: int = 1500) -> None:
        self._image, self.mount_point = place / "image", place / "disk"
        self.mount_point.mkdir()
        with self._image.open("wb") as file:
            file.truncate(size_mb << 20)
        _run(shutil.which("mkfs.ext4") or "mkfs.ext4", "-q", str(self._image))
        self.mount()

    def mount(self) -> None:
        """Give the disk power, or see it for the first time."""
        _run("mount", "-o", "loop", str(self._image), str(self.mount_point))

    def cut_power(self) -> None:
        """Lose what was not synced; everything that uses the disk then gets errors."""
        handle = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def unmount(self) -> None:
        """Take it away; nobody may have a file on it open."""
        end = time.monotonic() + 10  # a process that optimises ends a moment after the one that started it
        while True:
            done = subprocess.run(["umount", str(self.mount_point)], capture_output=True, text=True, check=False)
            if not done.returncode:
                return
            if "busy" not in done.stderr or time.monotonic() > end:
                raise OSError(f"umount {self.mount_point}: {done.stderr.strip()}")
            time.sleep(0.1)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
