"""Debian packages, fetched by apt and unpacked into folders without being installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGES: Final = Path(__file__).with_name("packages.txt")
"""The names of the packages, one a line."""

_MEDIA: Final = ("*.png", "*.jpg", "*.jpeg", "*.webp", "*.ogg", "*.wav", "*.mp3", "*.so", "*.so.*")


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """A package as the record of the sources names it.

    Attributes:
        name: "libreoffice-help-tr".
        version: "4:7.4.7-1".
        licences: The short names in its copyright file, sorted; "see its copyright file" if that is free text.
    """

    name: str
    version: str
    licences: tuple[str, ...]


def fetch_packages(folder: Path, names: Sequence[str]) -> None:
    """Let apt download the packages that the folder lacks.

    Raises:
        RuntimeError: If apt is not there or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = {path.name.partition("_")[0] for path in folder.glob("*.deb")}
    missing = [name for name in names if name not in present]
    if not missing:
        return
    try:
        subprocess.run(["apt-get", "download", *missing], cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError("the texts come through apt-get, which is not on this machine") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"apt-get failed: {error.stderr.strip()}") from error


def unpack_packages(debs: Path, unpacked: Path) -> None:
    """Unpack every package that is not unpacked yet into a folder of its name, without pictures and sounds."""
    unpacked.mkdir(parents=True, exist_ok=True)
    for deb in sorted(debs.glob("*.deb")):
        target = unpacked / deb.name.partition("_")[0]
        if target.exists():
            continue
        unfinished = unpacked / f".{target.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as reading:
            excluded = [f"--exclude={pattern}" for pattern in _MEDIA]
            subprocess.run(["tar", "-x", "-C", unfinished, *excluded], stdin=reading.stdout, check=True)
        unfinished.rename(target)


def read_facts(deb: Path, unpacked: Path) -> PackageFacts:
    """Return the name and version that the archive's name holds, and the licences of its copyright file."""
    name, version, _ = deb.stem.split("_", 2)
    path = unpacked / name / "usr/share/doc" / name / "copyright"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = set(re.findall(r"^License:[ \t]*(\S.*)$", text, flags=re.MULTILINE))
    return PackageFacts(name, version.replace("%3a", ":"), tuple(sorted(found)) or ("see its copyright file",))
