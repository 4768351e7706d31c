"""Messages of programs with their translations, from compiled gettext catalogs and JSON files."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import Final

_MAGIC: Final = 0x950412DE


def read_mo(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield each English message with its translation; of plurals the first form, contexts are dropped.

    Raises:
        ValueError: If the bytes are no compiled catalog.
    """
    if len(data) < 28:
        raise ValueError(f"a compiled catalog has at least 28 bytes, got {len(data)}")
    order = "<" if struct.unpack("<I", data[:4])[0] == _MAGIC else ">"
    magic, _, count, originals, translations = struct.unpack(f"{order}5I", data[:20])
    if magic != _MAGIC:
        raise ValueError(f"not a compiled catalog: it begins with {data[:4]!r}")
    for number in range(count):
        original = _string(data, order, originals + 8 * number).rpartition("\x04")[2]
        translation = _string(data, order, translations + 8 * number)
        if original and translation:
            yield original, translation


def _string(data: bytes, order: str, at: int) -> str:
    length, start = struct.unpack(f"{order}2I", data[at : at + 8])
    return data[start : start + length].partition(b"\0")[0].decode("utf-8", errors="replace")


def read_json(text: str) -> dict[str, str]:
    """Return the messages of a flat JSON file by their names; what is not text is left out."""
    return {name: value for name, value in json.loads(text).items() if isinstance(value, str)}


def read_po(text: str) -> Iterator[tuple[str, str]]:
    """Yield each English message of a gettext source file with its translation; fuzzy and plural ones are left out."""
    for block in re.split(r"\n\s*\n", text):
        if "\n#, fuzzy" in f"\n{block}" or "msgid_plural" in block:
            continue
        strings = {
            name: "".join(re.findall(r'^\s*"(.*)"\s*$', f'"{first}"\n{rest}', flags=re.MULTILINE))
            for name, first, rest in re.findall(r'^(msgid|msgstr) "(.*)"((?:\n".*")*)', block, flags=re.MULTILINE)
        }
        original, translation = (_unescape(strings.get(name, "")) for name in ("msgid", "msgstr"))
        if original and translation:
            yield original, translation


def read_fluent(text: str) -> dict[str, str]:
    """Return the messages of a Fluent file by their names, attributes by the name and theirs; variants are left out."""
    found: dict[str, str] = {}
    name = message = ""
    for line in text.splitlines():
        opening = re.match(r"([a-zA-Z][\w-]*)\s*=\s*(.*)", line)
        attribute = re.match(r"\s+\.([\w-]+)\s*=\s*(.*)", line)
        if opening:
            message = name = opening[1]
            found[name] = opening[2]
        elif attribute:
            name = f"{message}.{attribute[1]}"
            found[name] = attribute[2]
        elif name and line.startswith(" ") and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
        else:
            name = ""
    return {key: value for key, value in found.items() if value}


def read_properties(text: str) -> dict[str, str]:
    """Return the messages of a Java properties file by their names."""
    pairs = re.findall(r"^\s*([\w.-]+)\s*[=:]\s*(.+)$", text, flags=re.MULTILINE)
    return {name: value.strip() for name, value in pairs}


def read_language_pack(data: bytes, locale: str) -> dict[str, str]:
    """Return the messages of every Fluent and properties file in a zip archive, by path without locale, and name."""
    found: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for path in sorted(archive.namelist()):
            read = read_fluent if path.endswith(".ftl") else read_properties if path.endswith(".properties") else None
            if read is not None:
                name = path.replace(f"/{locale}/", "/")
                messages = read(archive.read(path).decode("utf-8", errors="replace"))
                found.update({f"{name} {message}": value for message, value in messages.items()})
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": " ", "t": " "}.get(match[1], match[1]), text)
