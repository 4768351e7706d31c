"""Headings and text of manual pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tests.small_recipe.sections import squeeze

_FONT: Final = re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)|\\s[-+]?\d|\\[&/,|^:%]|\\m\[[^\]]*\]")
_SPECIAL: Final = {
    "\\-": "-", "\\(aq": "'", "\\(dq": '"', "\\(bu": "", "\\e": "\\", "\\ ": " ", "\\~": " ", "\\(co": "(c)",
    "\\[aq]": "'", "\\(lq": '"', "\\(rq": '"', "\\(em": " - ", "\\(en": "-", "\\[bu]": "", "\\(cq": "'", "\\(oq": "'",
}  # fmt: skip
_FONT_MACROS: Final = frozenset({"B", "I", "BR", "RB", "IR", "RI", "BI", "IB", "SM", "SB"})


def read_man(text: str) -> Iterator[tuple[str, str]]:
    """Yield the heading and the prose of every section; examples in fixed type are left out."""
    heading, parts, is_literal = "", list[str](), False
    for line in [*text.splitlines(), ".SH"]:
        macro, _, rest = line[1:].strip().partition(" ") if line.startswith((".", "'")) else ("", "", line)
        if macro in ("SH", "SS"):
            if heading and parts:
                yield heading, squeeze(" ".join(parts))
            heading, parts, is_literal = _plain(rest).strip('"'), [], False
        elif macro in ("nf", "EX", "fi", "EE"):
            is_literal = macro in ("nf", "EX")
        elif is_literal or macro in ("TP", "IP", '\\"'):
            continue
        elif macro in _FONT_MACROS:
            words = re.findall(r'"([^"]*)"|(\S+)', _plain(rest))
            joint = " " if len(macro) == 1 else ""
            parts.append(joint.join(quoted or bare for quoted, bare in words))
        elif not macro:
            parts.append(_plain(rest))


def _plain(text: str) -> str:
    text = _FONT.sub("", text)
    for mark, sign in _SPECIAL.items():
        text = text.replace(mark, sign)
    return text
