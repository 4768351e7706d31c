"""Headings and paragraphs of LibreOffice's help, whose ids are the same in every language."""

from __future__ import annotations

import html
import re
from typing import Final

from tests.small_recipe.sections import squeeze
from tests.small_recipe.sources.help_html import Block

_BLOCK: Final = re.compile(r'<(h[1-6]|p) id="([^"]+)"([^>]*)>(.*?)</\1>', flags=re.DOTALL)
_OTHER_SYSTEM: Final = re.compile(r'<span[^>]*class="MAC">(?:<span[^>]*>[^<]*</span>|[^<])*</span>')
_TAG: Final = re.compile(r"<[^>]*>")
_LEFT_OUT: Final = ("table", "code", "howto", "relatedtopics")


def read_help(page: str) -> list[Block]:
    """Return the headings and paragraphs of a help page; tables, code and what holds for macOS are left out.

    A page has hundreds of kilobytes in 26 languages; a whole HTML parser takes ten times as long.
    """
    blocks = []
    for tag, name, attributes, content in _BLOCK.findall(_OTHER_SYSTEM.sub("", page)):
        text = squeeze(html.unescape(_TAG.sub("", content)))
        if text and not any(word in attributes for word in _LEFT_OUT):
            blocks.append(Block(name, tag != "p", text))
    return blocks
