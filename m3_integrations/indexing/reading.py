"""Reads a file's texts: one from a text, Markdown, reStructuredText or HTML file, one from each line of JSONL."""

from __future__ import annotations

import json
import warnings
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from bs4 import BeautifulSoup, UnusualUsageWarning
from markdownify import MarkdownConverter

from m3_integrations.indexing.headings import Markup, rejected_by_parser
from m3_integrations.store.values import check_metadata

KINDS: Final = (".txt", ".md", ".markdown", ".rst", ".html", ".htm", ".jsonl")
"""Endings of the files that can be read."""

_PAGES: Final = (".html", ".htm")
_UNREAD: Final = ("head", "script", "style", "template", "noscript")
_MARKDOWN: Final = MarkdownConverter(
    heading_style="ATX", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
)

RESERVED_PREFIX: Final = "m3_"
"""The index's own metadata keys begin with this; a file's metadata must not have such keys."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One text of a file.

    Attributes:
        key: Unique among the lines of a JSONL file; empty for any other file.
        text: The text; lines end with a line feed only.
        metadata: The metadata that the file has for the text.
    """

    key: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def markup_of(path: Path) -> Markup:
    """Return the markup of a file's text. HTML is converted to Markdown."""
    suffix = path.suffix.lower()
    if suffix == ".rst":
        return "rst"
    return "markdown" if suffix in {".md", ".markdown", *_PAGES} else "plain"


def read_entries(path: Path, content: bytes) -> list[Entry]:
    r"""Return the texts of a file.

    HTML is converted to Markdown, which keeps headings, lists, tables and code; scripts and styles are left out. The
    page states its encoding. Every other file must be UTF-8, with or without a byte order mark; \r\n and \r end lines
    like \n. A line of JSONL is an object with a string `text`; `_id` or `id`, `title` and an object `metadata` are
    optional, and all further keys count as metadata. A title becomes the first line of its text. Blank lines are
    skipped.

    Args:
        path: The file; its ending determines its kind.
        content: The file's bytes.

    Raises:
        ValueError: If the file is not UTF-8 text, a line of JSONL does not have this format, or a page is rejected by
            its parser or holds invalid Unicode; the message names the file, and the line if there is one.
    """
    if path.suffix.lower() in _PAGES:
        return [_page(path, content)]
    text = _decoded(path, content)
    if path.suffix.lower() != ".jsonl":
        return [Entry("", text)]
    entries: list[Entry] = []
    line_of: dict[str, int] = {}
    # Not splitlines(): a JSON string may contain other line separators unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        entry = read_line(f"{path}:{number}", line, number)
        if entry.key in line_of:
            _refuse(f"{path}:{number}", f"has the _id {entry.key!r}, as line {line_of[entry.key]} has")
        line_of[entry.key] = number
        entries.append(entry)
    return entries


def _page(path: Path, content: bytes) -> Entry:
    where = f"{path}: "
    with warnings.catch_warnings(), rejected_by_parser("HTML", where=where):
        warnings.simplefilter("ignore", UnusualUsageWarning)  # BeautifulSoup takes a page of one word for a file name
        page = BeautifulSoup(content, "html.parser")
    if (content.removeprefix(BOM_UTF8) and page.contains_replacement_characters) or "\0" in page.get_text():
        _refuse(str(path), "not a text in the encoding that the page states: convert the file, or leave it out")
    title = " ".join(page.title.get_text().split()) if page.title else ""
    for element in page(_UNREAD):
        element.decompose()
    with rejected_by_parser("HTML", where=where):
        text = _MARKDOWN.convert_soup(page)
    try:
        f"{title}{text}".encode()
    except UnicodeEncodeError as error:  # charset=utf-7 can spell half a surrogate pair
        half = f"U+{ord(error.object[error.start]):04X}"
        raise ValueError(f"{where}holds {half}, which is not valid Unicode: remove it, or the file") from error
    return Entry("", _unix_lines(text), {"title": title} if title else {})


def _decoded(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x}): convert the file, or leave it out"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        _refuse(f"{path}:{line}", "holds a null character, so it is not a text: leave the file out")
    return _unix_lines(text)


def read_line(where: str, line: str, number: int) -> Entry:
    """Return the entry of a line of JSONL, in the format of `read_entries`; without an id its key is "line N".

    Args:
        where: The file and the line, for error messages.
        line: One JSON object.
        number: The line's number, from 1.

    Raises:
        ValueError: If the line does not have this format.
    """
    try:
        found = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        _refuse(where, f"must be an object with a text, got {line[:60]!r}")
    try:
        return _entry(where, found, number)
    except RecursionError as error:  # JSON may nest deeper than Python can print
        raise ValueError(f"{where}: its values are nested too deeply to be read: remove some levels") from error


def _entry(where: str, found: dict[str, Any], number: int) -> Entry:
    for key, kind, name in (("text", str, "a string"), ("title", str, "a string"), ("metadata", dict, "an object")):
        if found.get(key) is None and key != "text":
            found.pop(key, None)
        elif not isinstance(found.get(key), kind):
            _refuse(where, f"{key!r} must be {name}, got {found.get(key)!r}")
    title = found.get("title", "").strip()
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # half a surrogate pair, or a number beyond the largest float
        raise ValueError(f"{where}: holds a value that cannot be stored: {error}") from error
    text = f"{title}\n{found['text']}" if title else found["text"]
    return Entry(_key(where, found, number), _unix_lines(text), _metadata(where, found))


def _key(where: str, found: Mapping[str, Any], number: int) -> str:
    """Return the record's `_id` or `id` as a string, or "line N" without one."""
    given = found.get("_id") if found.get("_id") is not None else found.get("id")
    if given is None:
        return f"line {number}"
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        _refuse(where, f"'_id' must be a string or an integer, got {given!r}")
    return str(given)


def _metadata(where: str, found: Mapping[str, Any]) -> dict[str, Any]:
    given = found.get("metadata", {})
    beside = {key: value for key, value in found.items() if key not in {"text", "metadata"} and value is not None}
    if twice := sorted(given.keys() & beside.keys()):
        _refuse(where, f"{twice[0]!r} occurs both in 'metadata' and beside it: remove one")
    metadata = {**beside, **given}
    if reserved := [key for key in metadata if key.startswith(RESERVED_PREFIX)]:
        _refuse(where, f"{reserved[0]!r} begins with {RESERVED_PREFIX!r}, which the index keeps for itself: rename it")
    try:
        return check_metadata(metadata, "the text")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse(where: str, why: str) -> NoReturn:
    raise ValueError(f"{where}: {why}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
