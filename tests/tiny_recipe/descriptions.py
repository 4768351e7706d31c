"""The text that `tiny` learns from: Debian's package descriptions and their translations."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LANGUAGES: Final = ("en", "de", "es", "fr", "it", "ja", "ru", "zh", "zh_CN", "pt_BR", "pl", "uk", "ko", "da", "sk")

_HELD_OUT_PARTS: Final = 50
"""One source text in this many is never trained on; the recipe measures its own progress there."""


@dataclass(frozen=True, slots=True)
class Description:
    """One package in one language.

    Attributes:
        key: What the translations of one text share: the package's name and the checksum of the English text.
        language: As Debian spells it, "en" or "pt_BR".
        short: The one line.
        paragraphs: The long text.
    """

    key: str
    language: str
    short: str
    paragraphs: tuple[str, ...]

    @property
    def long(self) -> str:
        """The long text as one line."""
        return " ".join(self.paragraphs)

    @property
    def is_held_out(self) -> bool:
        """Whether it is kept for measuring; decided by the key, so all languages of a text go together."""
        return int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:4], "big") % _HELD_OUT_PARTS == 0


def fetch_lists(folder: Path, languages: Sequence[str] = LANGUAGES) -> None:
    """Let apt fetch the translations from the sources of this system into a folder of its own.

    The system's own lists stay as they are. Nothing is fetched if the folder holds translations already.

    Args:
        folder: Gets the lists.
        languages: As Debian spells them; a language without translations is passed over.

    Raises:
        RuntimeError: If apt is not there or fails.
    """
    if any(folder.glob("*_i18n_Translation-en")):
        return
    fetched = folder.with_name(f"{folder.name}.unfinished")  # some languages alone would make another checkpoint
    (fetched / "partial").mkdir(parents=True, exist_ok=True)
    options = {
        "Acquire::Languages": ",".join(languages),
        "Acquire::GzipIndexes": "false",
        "Dir::State::Lists": str(fetched.resolve()),
    }
    command = ["apt-get", *(f"-o{name}={value}" for name, value in options.items()), "update"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError("the descriptions come through apt-get, which is not on this machine") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"apt-get failed: {error.stderr.strip()}") from error
    if not any(fetched.glob("*_i18n_Translation-en")):
        raise RuntimeError(f"apt-get left no translations in {fetched}: are there Debian sources on this system?")
    fetched.rename(folder)


def read_descriptions(folder: Path) -> list[Description]:
    """Read every translation in a folder of apt's lists: each text once, in an order that the content decides."""
    found: dict[tuple[str, str], Description] = {}
    for path in sorted(folder.glob("*_i18n_Translation-*"), key=os.fspath):
        language = path.name.rpartition("Translation-")[2].replace("%5f", "_")
        for description in _parse(path, language):
            found.setdefault((description.key, language), description)
    by_text: dict[tuple[str, str], Description] = {}
    for description in sorted(found.values(), key=lambda d: (d.language, d.key)):
        # Packages built from one source often share a text; the same text twice would be its own negative.
        by_text.setdefault((description.language, description.long), description)
    return list(by_text.values())


def _parse(path: Path, language: str) -> Iterator[Description]:
    for stanza in path.read_text(encoding="utf-8").split("\n\n"):
        fields = re.findall(r"^([A-Za-z0-9_-]+): ?(.*(?:\n[ \t].*)*)", stanza, flags=re.MULTILINE)
        values = dict(fields)
        text = values.get(f"Description-{language}")
        if not text or "Package" not in values:
            continue
        short, _, rest = text.partition("\n")
        paragraphs = tuple(_paragraphs(rest))
        if short.strip() and paragraphs:
            key = f"{values['Package']} {values.get('Description-md5', '')}"
            yield Description(key, language, short.strip(), paragraphs)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a long description, each on one line; a lone dot stands for an empty line."""
    words: list[str] = []
    for line in [*text.splitlines(), " ."]:
        if line.strip() != ".":
            words.extend(line.split())
        elif words:
            yield " ".join(words)
            words = []


def split_sentences(paragraph: str) -> list[str]:
    """Cut a paragraph after full stops, question and exclamation marks, Chinese ones too, and at list markers."""
    parts = re.split(r"(?<=[.!?])\s+(?=\S)|(?<=[\u3002\uff01\uff1f])|\s+[*•-]\s+", paragraph)
    return [part.strip() for part in parts if part and len(part.strip()) > 1]
