"""The unit of text that every source yields, and the rules that a text must meet."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from tests.tiny_recipe.descriptions import split_sentences

LANGUAGES: Final = (
    *("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "pl", "cs", "ro", "hu"),
    *("tr", "vi", "id", "fi", "ru", "uk", "bg", "el", "ar", "he", "hi", "th", "ja", "ko", "zh"),
)
LOCALES: Final = (*LANGUAGES, "pt_BR", "zh_CN", "zh_TW")
"""The languages as the names of Debian's translations spell them."""

SPACELESS: Final = frozenset({"ja", "th", "zh"})

_OTHER_SCRIPTS: Final = {
    **dict.fromkeys(("ru", "uk", "bg"), "\u0400-\u04ff"),
    "el": "\u0370-\u03ff\u1f00-\u1fff",
    "ar": "\u0600-\u06ff",
    "he": "\u0590-\u05ff",
    "hi": "\u0900-\u097f",
    "th": "\u0e00-\u0e7f",
    "ja": "\u3040-\u30ff\u4e00-\u9fff",
    "ko": "\uac00-\ud7af",
    "zh": "\u3400-\u9fff",
}
_SCRIPT_PATTERNS: Final = {language: re.compile(f"[{span}]") for language, span in _OTHER_SCRIPTS.items()}
_LEAST_SCRIPT_SHARE: Final = 0.3
_LONGEST: Final = 900
_HELD_OUT_PARTS: Final = 50
_LETTER: Final = re.compile(r"[^\W\d_]")
_PLACEHOLDER: Final = re.compile(
    r"%[-0-9.]*[a-zA-Z(1-9]|\$[\w({]|[{}<>|\\]|\[\[|https?:|&\w|\w&|@\w|__|--\w|==|~|(?:^|\s)_\w|\w_\w|[A-Z]{2,}_"
)


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of text in one language.

    Attributes:
        language: One of `LANGUAGES`.
        source: What the text comes from, "libreoffice-help".
        key: What the translations of one text share.
        title: The heading or the short text; empty if the text has none.
        text: The body, on one line.
    """

    language: str
    source: str
    key: str
    title: str
    text: str


def language_of(locale: str) -> str | None:
    """Return the language of a locale as files spell it, "pt_BR.UTF-8" or "zh-tw"; None for one not wanted."""
    if locale in ("C", "en-us", "en_US"):
        return "en"
    base, _, _ = locale.partition("@")
    if base != locale:  # sr@latin, and dialects
        return None
    language = re.split(r"[_.-]", base)[0].lower()
    return language if language in LANGUAGES else None


def is_held_out(key: str) -> bool:
    """Whether no pair of this text may be trained on; all languages of a text share the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % _HELD_OUT_PARTS == 0


def squeeze(text: str) -> str:
    """Return the text on one line, without runs of white space."""
    return " ".join(text.replace("\u200b", "").replace("\u00ad", "").split())


def is_written_in(text: str, language: str) -> bool:
    """Whether the text has letters, and for another script than the Latin one at least 30% of them from it.

    This does not find the language, the path of the file does. It finds text that nobody has translated yet.
    """
    letters = len(_LETTER.findall(text))
    if letters < 0.5 * len(text.replace(" ", "")) and language not in ("th", "hi"):  # their vowel signs are marks
        return False
    pattern = _SCRIPT_PATTERNS.get(language)
    return letters > 0 and (pattern is None or len(pattern.findall(text)) >= _LEAST_SCRIPT_SHARE * letters)


def has_placeholders(text: str) -> bool:
    """Whether a program fills in the text, or it holds markup or an access key."""
    return _PLACEHOLDER.search(text) is not None


def cut(text: str) -> str:
    """Return at most 900 characters, cut after a sentence where one ends late enough."""
    if len(text) <= _LONGEST:
        return text
    kept, length = [], 0
    for sentence in split_sentences(text):
        length += len(sentence) + 1
        if length > _LONGEST:
            break
        kept.append(sentence)
    joined = " ".join(kept)
    return joined if len(joined) >= _LONGEST // 3 else text[:_LONGEST].rpartition(" ")[0] or text[:_LONGEST]
