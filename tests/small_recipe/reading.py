"""Every section of every unpacked package, by what the path of a file says about its format and language."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from tests.small_recipe.sections import Section, cut, has_placeholders, language_of, squeeze
from tests.small_recipe.sources.help_html import Block, group_blocks, read_blocks
from tests.small_recipe.sources.libreoffice import read_help
from tests.small_recipe.sources.mallard import read_page
from tests.small_recipe.sources.man import read_man
from tests.small_recipe.sources.messages import read_json, read_language_pack, read_mo, read_po
from tests.small_recipe.sources.wordnet import read_glosses

_FAMILY: Final = re.compile(
    r"(libreoffice-help|libreoffice-l10n|debian-reference|manpages|gimp-help|maint-guide|debian-faq|aptitude-doc"
    r"|developers-reference|debian-edu-doc-legacy|debian-edu-doc|firefox-esr-l10n|thunderbird-l10n)-"
)
_HTML_SOURCES: Final = {
    "libreoffice-help": re.compile(r"/help/(?P<language>[\w-]+)/(?P<page>text/.*)\.html$"),
    "gimp-help": re.compile(r"/help/(?P<language>[\w-]+)/(?P<page>.*)\.html$"),
    "debian-reference": re.compile(r"/(?P<page>[^/]+)\.(?P<language>[\w-]+)\.html$"),
    "maint-guide": re.compile(r"/(?P<page>[^/]+)\.(?P<language>[\w-]+)\.html$"),
    "debian-faq": re.compile(r"/(?P<page>[^/]+)\.(?P<language>[\w-]+)\.html$"),
    "installation-guide-amd64": re.compile(r"/(?P<language>[\w-]+)/(?P<page>[^/]+)\.html$"),
    "stellarium-data": re.compile(r"/(?P<page>\w+/[^/]+)/description\.(?P<language>[\w-]+)\.utf8$"),
    "debian-handbook": re.compile(r"/html/(?P<language>[\w-]+)/(?P<page>[^/]+)\.html$"),
}
_MO: Final = re.compile(
    r"/(?P<language>[\w@-]+)/LC_MESSAGES/[^/]+\.mo$|/(?P<language2>[\w@-]+)\.mo$|languages/(?:[a-z-]+-)?(?P<language3>\w+)\.mo$"
)
_PAGE: Final = re.compile(r"/help/(?P<language>[\w@-]+)/(?P<page>.*)\.page$")
_MAN: Final = re.compile(r"/man/(?P<language>[\w@.-]+)/man\d/(?P<page>[^/]+)\.gz$")
_PO: Final = re.compile(r"/(?:resource\.language\.)?(?P<language>[\w@]+)(?:/strings)?\.po$")
_PACK: Final = re.compile(r"/langpack-(?P<language>[\w-]+)@[^/]*\.xpi$")
_JSON: Final = re.compile(r"(?P<folder>.*)/(?P<language>[\w-]+)\.json$")


def family_of(package: str) -> str:
    """Return the name that the packages of all languages share: "libreoffice-help" for "libreoffice-help-tr"."""
    match = _FAMILY.match(package)
    return match[1] if match else package


def read_package(folder: Path, known: frozenset[str]) -> list[Section]:
    """Return the sections of one unpacked package, in the order of its paths.

    Args:
        folder: Named like the package.
        known: English texts of the same family, to leave out elsewhere.
    """
    family = family_of(folder.name)
    sections: list[Section] = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        reader = _reader(family, name)
        if reader is not None:
            sections.extend(reader(family, name, path, known))
    return sections


_Reader = Callable[[str, str, Path, frozenset[str]], Iterator[Section]]


def _reader(family: str, name: str) -> _Reader | None:
    if family in _HTML_SOURCES and family != "stellarium-data":
        return _read_html if name.endswith(".html") else None
    if family == "wordnet-base":
        return _read_wordnet if "/data." in name else None
    if family == "mediawiki" and "/i18n/" in name and name.endswith(".json"):
        return _read_mediawiki
    if "/description." in name and name.endswith(".utf8"):
        return _read_html
    for ending, reader in _READERS.items():
        if name.endswith(ending):
            return reader
    return _read_manual if "/man/" in name and name.endswith(".gz") else None


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="replace")


def _blocks(family: str, path: Path) -> list[Block]:
    return (read_help if family == "libreoffice-help" else read_blocks)(_text(path))


def _read_html(family: str, name: str, path: Path, known: frozenset[str]) -> Iterator[Section]:
    match = _HTML_SOURCES[family].search(f"/{name}")
    language = language_of(match["language"]) if match else None
    if match is None or language is None:
        return
    left_out = frozenset[str]() if language == "en" else known
    for section, title, text in group_blocks(_blocks(family, path), left_out):
        yield Section(language, family, f"{family} {match['page']} {section}", title, cut(text))


def _read_mallard(family: str, name: str, path: Path, known: frozenset[str]) -> Iterator[Section]:
    match = _PAGE.search(f"/{name}")
    language = language_of(match["language"]) if match else None
    if match is None or language is None:
        return
    left_out = frozenset[str]() if language == "en" else known
    try:
        for section, title, text in read_page(_text(path), left_out):
            yield Section(language, family, f"{family} {match['page']} {section}", title, cut(text))
    except ET.ParseError:  # a page with entities of a file that other packages hold
        return


def _read_messages(family: str, name: str, path: Path, known: frozenset[str]) -> Iterator[Section]:
    match = _MO.search(f"/{name}")
    locale = (match["language"] or match["language2"] or match["language3"]) if match else ""
    language = language_of(locale) if locale else None
    if language is None or language == "en":
        return
    for english, translation in read_mo(path.read_bytes()):
        yield from _message(family, language, english, translation)


def _message(family: str, language: str, english: str, translation: str) -> Iterator[Section]:
    if len(english) < 16 or english == translation or has_placeholders(english) or has_placeholders(translation):
        return
    if len(english.split()) < 3:
        return
    key = f"message {squeeze(english)}"
    yield Section("en", family, key, "", cut(squeeze(english)))
    yield Section(language, family, key, "", cut(squeeze(translation)))


def _read_po(family: str, name: str, path: Path, known: frozenset[str]) -> Iterator[Section]:
    match = _PO.search(f"/{name}")
    language = language_of(match["language"]) if match else None
    if language is None or language == "en":
        return
    for english, translation in read_po(_text(path)):
        yield from _message(family, language, english, translation)


def _read_language_pack(family: str, name: str, path: Path, known: frozenset[str]) -> Iterator[Section]:
    """Yield the messages of a browser's language pack; the British one holds the English texts."""
    match = _PACK.search(name)
    language = language_of(match["language"]) if match else None
    others = path.parents[len(Path(name).parts)].glob(f"{family}-en-gb/**/langpack-en-GB@*.xpi")
    english_path = next(others, None)
    if match is None or language is None or language == "en" or english_path is None:
        return
    english = read_language_pack(english_path.read_bytes(), "en-GB")
    for message, translation in read_language_pack(path.read_bytes(), match["language"]).items():
        if message in english:
            yield from _message(family, language, english[message], translation)


def _read_mediawiki(family: str, name: str, path: Path, known: frozenset[str]) -> Iterator[Section]:
    match = _JSON.search(name)
    language = language_of(match["language"]) if match else None
    english_path = path.with_name("en.json")
    if match is None or language is None or language == "en" or not english_path.exists():
        return
    english = read_json(_text(english_path))
    for message, translation in read_json(_text(path)).items():
        if message in english:
            yield from _message(family, language, english[message].replace("''", ""), translation.replace("''", ""))


def _read_manual(family: str, name: str, path: Path, known: frozenset[str]) -> Iterator[Section]:
    match = _MAN.search(f"/{name}")
    language = language_of(match["language"]) if match else None
    if match is None or language is None:
        return
    sections = list(read_man(_text(path)))
    if not sections:
        return
    short = sections[0][1].partition(" - ")[2]
    for number, (heading, text) in enumerate(sections[1:]):
        title = f"{match['page'].partition('.')[0]}: {short if number == 0 else heading}"
        yield Section(language, family, f"{family} {match['page']} {number}", title, cut(text))


def _read_wordnet(family: str, name: str, path: Path, known: frozenset[str]) -> Iterator[Section]:
    for offset, terms, gloss in read_glosses(path.read_text(encoding="utf-8")):
        yield Section("en", family, f"{family} {name.rpartition('.')[2]} {offset}", terms, gloss)


_READERS: Final[dict[str, _Reader]] = {
    ".mo": _read_messages,
    ".po": _read_po,
    ".page": _read_mallard,
    ".xpi": _read_language_pack,
}


def english_texts(folder: Path) -> frozenset[str]:
    """Return the texts of the English pages of an unpacked package, block by block."""
    family = family_of(folder.name)
    texts: set[str] = set()
    for path in sorted(folder.rglob("*")):
        name = f"/{path.relative_to(folder).as_posix()}"
        if path.is_symlink() or not path.is_file():
            continue
        html = _HTML_SOURCES[family].search(name) if family in _HTML_SOURCES else None
        page = _PAGE.search(name)
        if html and language_of(html["language"]) == "en":
            texts.update(block.text for block in _blocks(family, path))
        elif page and page["language"] == "C":
            for element in ET.fromstring(_text(path)).iter():
                texts.add(squeeze("".join(element.itertext())))
    return frozenset(texts)
