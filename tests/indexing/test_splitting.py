"""Texts are cut where they should be, to the letter, and never longer than the model reads."""

import random
import re
from collections.abc import Sequence

import pytest

from m3_integrations import M3Encoder
from m3_integrations.indexing import Part, Splitter, Splitting
from m3_integrations.indexing.headings import read_headings, read_rst_headings, read_sections
from m3_integrations.vectors import Kind
from tests.fakes import FakeEncoder

GUIDE = """# Guide

One two three.

## Install

Four five six seven. Eight nine ten.

```bash
# no heading
run it
```

## Use

### Call

Alpha beta gamma delta one. Alpha beta gamma delta two. Alpha beta gamma delta three. Alpha beta gamma delta four.

Last
====

The end.
"""


def by_words(size: int, overlap: int = 0) -> Splitter:
    """Counts words: a part of size 16 has 14 of them, beside [CLS] and [SEP]."""
    return Splitter(FakeEncoder(), Splitting(size, overlap))


def test_a_text_that_fits_is_one_part_without_the_white_space_around_it() -> None:
    assert by_words(16).split("\n  one two\n\nthree \n") == [Part("one two\n\nthree", 3)]
    assert by_words(16).split("\n \n") == []
    assert by_words(16).split("") == []


def test_markdown_is_cut_at_headings_and_knows_the_headings_above() -> None:
    parts = by_words(18).split(GUIDE, markup="markdown")
    assert [(part.text.split("\n")[0], part.headings) for part in parts] == [
        ("# Guide", ("Guide",)),
        ("## Install", ("Guide", "Install")),
        ("## Use", ("Guide", "Use", "Call")),
        ("Alpha beta gamma delta three. Alpha beta gamma delta four.", ("Guide", "Use", "Call")),
        ("Last", ("Last",)),
    ]
    # Headings that a cut at sentences would have left alone stand before their section.
    assert parts[2].text == "## Use\n\n### Call\n\nAlpha beta gamma delta one. Alpha beta gamma delta two."
    # Also a text that would fit as a whole is cut there; a heading with nothing below it goes with the next.
    starts = [part.text[:6] for part in by_words(200).split("Preface.\n\n" + GUIDE, markup="markdown")]
    assert starts == ["Prefac", "# Guid", "## Ins", "## Use", "Last\n="]


def test_paragraphs_are_kept_before_sentences_and_sentences_before_words() -> None:
    text = "A b c d e f g h i j.\n\nK l m n o. P q r s t u v w x. Y " + "y " * 19
    assert [part.text for part in by_words(16).split(text)] == [
        "A b c d e f g h i j.",
        "K l m n o. P q r s t u v w x.",
        "Y " + " ".join("y" * 13),
        " ".join("y" * 6),
    ]


def test_parts_are_slices_that_cover_the_text_and_fit(tiny: M3Encoder) -> None:
    choose = random.Random(7)
    pieces = ["# Heading\n\n", "## Sub\n", "Words follow here, and more of them. ", "中文没有空格。", "\n\n"]
    pieces += ["- item\n", "```\ncode\n```\n", "👩\u200d👧 ", "x" * 90 + " "]
    for size, overlap, is_markdown in ((16, 0, True), (40, 20, True), (40, 8, False), (100, 10, True)):
        splitter = Splitter(tiny, Splitting(size, overlap))
        text = "".join(choose.choice(pieces) for _ in range(300))
        parts = splitter.split(text, markup="markdown" if is_markdown else "plain")
        covered: set[int] = set()
        for part in parts:
            assert text[part.start : part.start + len(part.text)] == part.text
            assert len(tiny.tokenize([part.text])[0]) + 1 <= size  # with [CLS]
            covered.update(range(part.start, part.start + len(part.text)))
        assert [i for i, c in enumerate(text) if i not in covered and not c.isspace()] == []
        assert [part.start for part in parts] == sorted(part.start for part in parts)


def test_the_overlap_repeats_the_end_of_the_part_before_but_not_across_a_heading() -> None:
    words = " ".join(f"w{i}" for i in range(40))
    plain = [part.text.split() for part in by_words(18, 4).split(words)]
    assert [part[0] for part in plain] == ["w0", "w12", "w24"]
    assert plain[0][-4:] == plain[1][:4] == ["w12", "w13", "w14", "w15"]
    parts = by_words(18, 4).split(f"# A\n\n{words}\n\n# B\n\n{words}", markup="markdown")
    assert next(part for part in parts if part.headings == ("B",)).text.split()[:3] == ["#", "B", "w0"]


def test_short_pieces_go_before_the_next_but_not_into_another_section() -> None:
    long = " ".join(["word"] * 28)
    parts = by_words(34).split(
        f"# A\n\nIntro here.\n\n{long}\n\nShort end here.\n\n# B\n\n{long[:99]}", markup="markdown"
    )
    assert [(len(part.text.split()), part.headings) for part in parts] == [(32, ("A",)), (3, ("A",)), (22, ("B",))]


class ByCharacters(FakeEncoder):
    """Every character is a token; counts how many were looked at."""

    looked_at = 0

    def tokenize(
        self, texts: Sequence[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[list[str]]:
        self.looked_at += sum(map(len, texts))
        return [[*text, "</s>"] for text in texts]


def test_the_work_for_a_huge_line_grows_with_its_length_and_not_with_its_square() -> None:
    looked_at = []
    for n in (40_000, 160_000):
        encoder = ByCharacters()
        parts = Splitter(encoder, Splitting(256, 0)).split("a" * n)
        assert "".join(part.text for part in parts) == "a" * n
        looked_at.append(encoder.looked_at)
    assert looked_at[1] < 5 * looked_at[0]  # uncut it would be 16 times as much


def test_headings_are_those_of_commonmark() -> None:
    text = "---\ntitle: x\n---\n\n# **A** `b` [l](u)\n\n> # quoted\n\nSet\next\n---\n\n"
    text += "~~~\n# code\n~~~\n###### F ##\n#no\n# \n"
    headings = read_headings(text)
    assert [(h.title, h.level) for h in headings] == [("A b l", 1), ("Set ext", 2), ("F", 6), ("", 1)]
    lines = [text[h.start : h.end] for h in headings]
    assert lines == [
        "# **A** `b` [l](u)\n",
        "Set\next\n---\n",
        "###### F ##\n",
        "# \n",
    ]
    assert read_sections("# A\n\n## \n\ntext")[-1].trail == ("A",)  # one without a title is no heading to stand under
    assert read_headings("---\nno end\n\n# A\n")[0].title == "A"


def test_sizes_that_cannot_be_are_refused(tiny: M3Encoder) -> None:
    for size, overlap, message in (
        (15, 0, "size must be at least 16 tokens, got 15"),
        (40, 21, "0 to 20"),
        (40, -1, "got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Splitting(size, overlap)
    with pytest.raises(TypeError, match=r"overlap must be an integer, got 1\.5"):
        Splitting(40, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape("(tiny) cuts texts after 1024, so size can be 1023 at most")):
        Splitter(tiny, Splitting(1024))
    text = " ".join(["word"] * 1021)
    assert len(Splitter(tiny, Splitting(1023)).split(text)) == 1
    assert len(Splitter(tiny, Splitting(1023)).split(text + " word")) == 2


RST = """=====
Title
=====

Intro.

Sub
===

.. function:: spam(eggs)

   Does it.

Deep *one*
----------

text::

   No heading
   ----------

Last
===="""


def test_headings_of_restructured_text_are_found_and_nothing_is_lost() -> None:
    headings = read_rst_headings(RST)
    assert [(each.title, each.level) for each in headings] == [("Title", 1), ("Sub", 2), ("Deep one", 3), ("Last", 2)]
    assert [RST[each.start : each.end] for each in headings] == [
        "=====\nTitle\n=====\n", "Sub\n===\n", "Deep *one*\n----------\n", "Last\n====",
    ]  # fmt: skip
    sections = read_sections(RST, "rst")
    assert "".join(RST[each.start : each.end] for each in sections) == RST
    assert [each.trail for each in sections] == [
        ("Title",), ("Title", "Sub"), ("Title", "Sub", "Deep one"), ("Title", "Last"),
    ]  # fmt: skip
