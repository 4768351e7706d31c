"""The readers of the texts that the small checkpoint learns from, on samples made for them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.small_recipe.packages import PackageFacts, read_facts
from tests.small_recipe.pairs import TextPair, make_pairs
from tests.small_recipe.reading import family_of, read_package
from tests.small_recipe.record import write_sources
from tests.small_recipe.sections import Section, cut, has_placeholders, is_held_out, is_written_in, language_of
from tests.small_recipe.sources.help_html import group_blocks, read_blocks
from tests.small_recipe.sources.libreoffice import read_help
from tests.small_recipe.sources.mallard import read_page
from tests.small_recipe.sources.man import read_man
from tests.small_recipe.sources.messages import read_fluent, read_mo, read_po, read_properties
from tests.small_recipe.sources.wordnet import read_glosses

HELP = """\
<h1 id="hd_1" dir="auto"> Çapa</h1>
<p id="par_1" class="paragraph">Tekneyi <span hidden="true" class="MAC"><span class="emph">Mac</span></span>tutar.</p>
<p class="howtogetheader">Bu komuta</p><p id="par_2" class="tablecontent">7</p>
<h2 id="hd_2">Chain</h2><p id="par_3">It is made of iron.</p>
<h2 id="hd_3">Zincir</h2><p id="par_4">It is made of iron.</p>
"""
PAGE = """\
<page xmlns="http://projectmallard.org/1.0/" id="anchor"><info><desc>Hold a boat.</desc></info>
<title>Anchors</title><p>An <em>anchor</em>
 holds.</p><section id="chain"><title>The chain</title><steps><item><p>Pull it.</p></item></steps></section></page>
"""


def compiled(messages: dict[str, str]) -> bytes:
    """Return a little-endian catalog, made after the description of the format in gettext's manual."""
    strings = [text.encode() for text in (*messages, *messages.values())]
    count, at = len(messages), 28 + 16 * len(messages)
    table = b""
    for string in strings:
        table += struct.pack("<2I", len(string), at)
        at += len(string) + 1
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, at)
    return head + table + b"".join(string + b"\0" for string in strings)


def test_a_compiled_catalog_gives_messages_without_context_and_the_first_plural() -> None:
    data = compiled({"": "header", "menu\x04Drop the anchor": "Çapayı at", "a boat\0boats": "tekne\0tekneler"})
    assert list(read_mo(data)) == [("Drop the anchor", "Çapayı at"), ("a boat", "tekne")]


def test_what_is_no_catalog_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a compiled catalog"):
        list(read_mo(b"x" * 40))


def test_a_gettext_source_gives_messages_that_are_not_fuzzy() -> None:
    text = 'msgid ""\nmsgstr ""\n"head"\n\nmsgid "Drop "\n"it"\nmsgstr "At\\n"\n\n#, fuzzy\nmsgid "a"\nmsgstr "b"\n'
    assert list(read_po(text)) == [("Drop it", "At ")]


def test_fluent_messages_join_their_lines_and_name_their_attributes() -> None:
    text = "# note\nanchor = Hold\n    a boat\nbutton =\n    .label = Drop it\n\nchain = Iron\n"
    assert read_fluent(text) == {"anchor": "Hold a boat", "button.label": "Drop it", "chain": "Iron"}


def test_properties_are_read_by_name() -> None:
    assert read_properties("# note\nanchor.text = Hold a boat\n") == {"anchor.text": "Hold a boat"}


def test_a_mallard_page_gives_its_own_text_and_that_of_its_sections_apart() -> None:
    assert list(read_page(PAGE)) == [
        ("anchor", "Anchors", "Hold a boat. An anchor holds."),
        ("chain", "The chain", "Pull it."),
    ]


def test_english_text_in_a_translated_mallard_page_is_left_out() -> None:
    assert list(read_page(PAGE, frozenset({"Pull it.", "Hold a boat."}))) == [("anchor", "Anchors", "An anchor holds.")]


def test_help_keeps_its_ids_and_leaves_out_tables_other_systems_and_what_is_still_english() -> None:
    blocks = read_help(HELP)
    assert [(block.name, block.text) for block in blocks[:2]] == [("hd_1", "Çapa"), ("par_1", "Tekneyi tutar.")]
    known = frozenset({"Chain", "It is made of iron."})
    assert list(group_blocks(blocks, known)) == [("hd_1", "Çapa", "Tekneyi tutar.")]


def test_html_gives_paragraphs_under_headings_without_numbers_code_and_navigation() -> None:
    page = (
        "<head><title>x</title></head><div class='navheader'><div><p>next</p></div></div>"
        "<h2>1.2. Anchors</h2><p>They <b>hold</b> &amp; stay.<pre>code</pre><ul><li>Iron</ul>"
    )
    assert list(group_blocks(read_blocks(page))) == [("1", "Anchors", "They hold & stay. Iron")]


def test_a_manual_page_gives_the_prose_of_its_sections() -> None:
    text = '.SH NAME\nanchor \\- holds a boat\n.SH "THE CHAIN"\nUse \\fB\\-c\\fR.\n.nf\ncode\n.fi\n.BR iron (1)\n'
    assert list(read_man(text)) == [("NAME", "anchor - holds a boat"), ("THE CHAIN", "Use -c. iron(1)")]


def test_wordnet_gives_terms_and_gloss() -> None:
    line = '00001740 03 n 02 anchor 0 ground_tackle(a) 1 001 ~ 00001930 n 0000 | holds a boat; "drop it"  \n'
    assert list(read_glosses(f"  1 licence\n{line}")) == [
        ("00001740", "anchor, ground tackle", 'holds a boat; "drop it"')
    ]


@pytest.mark.parametrize(
    ("locale", "language"),
    [("pt_BR", "pt"), ("zh-tw", "zh"), ("C", "en"), ("en-GB", "en"), ("sr@latin", None), ("kn", None)],
)
def test_languages_come_from_locales(locale: str, language: str | None) -> None:
    assert language_of(locale) == language


def test_text_in_another_script_is_not_taken_for_a_translation() -> None:
    assert is_written_in("เรือ ทอดสมอ", "th")
    assert not is_written_in("Drop the anchor", "th")
    assert is_written_in("Çapa tekneyi tutar", "tr")


@pytest.mark.parametrize("text", ["%s files", "Open $1", "{name} left", "<b>bold</b>", "Save _as", "&File", "~Close"])
def test_messages_that_a_program_fills_in_are_recognised(text: str) -> None:
    assert has_placeholders(text)


def test_a_long_text_ends_after_a_sentence() -> None:
    assert cut("A sentence of words. " * 60) == " ".join(["A sentence of words."] * 42)


def test_a_package_is_read_by_its_paths(tmp_path: Path) -> None:
    folder = tmp_path / "boats-data" / "usr/share/locale/tr/LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "boats.mo").write_bytes(compiled({"Drop the anchor now": "Çapayı şimdi at", "Quit": "Çık"}))
    key = "message Drop the anchor now"
    assert read_package(tmp_path / "boats-data", frozenset()) == [
        Section("en", "boats-data", key, "", "Drop the anchor now"),
        Section("tr", "boats-data", key, "", "Çapayı şimdi at"),
    ]


def test_a_family_has_the_packages_of_all_languages() -> None:
    assert family_of("libreoffice-help-pt-br") == "libreoffice-help"
    assert family_of("gramps") == "gramps"


def sections(count: int) -> list[Section]:
    return [
        Section(language, "boats", f"text {i}", f"{title} {i}", f"{text} {i}. {text}, {text} {i}.")
        for i in range(count)
        for language, title, text in (
            ("en", "anchor", "it holds a boat"),
            ("tr", "çapa", "tekneyi denizde tutar"),
        )
    ]


def test_pairs_of_one_text_are_held_out_together_in_every_language() -> None:
    pairs = make_pairs(sections(400), seed=0)
    assert {pair.language for pair in pairs if pair.held_out} == {"en", "tr"}
    assert all(pair.held_out == is_held_out(pair.key) for pair in pairs)


def test_about_one_text_in_fifty_is_held_out() -> None:
    assert 150 < sum(is_held_out(f"text {i}") for i in range(10_000)) < 250


def test_pairs_come_within_a_language_and_across_both_ways() -> None:
    pairs = {(pair.language, pair.is_cross, pair.query, pair.passage) for pair in make_pairs(sections(40), seed=0)}
    english = "it holds a boat 3. it holds a boat, it holds a boat 3."
    turkish = "tekneyi denizde tutar 3. tekneyi denizde tutar, tekneyi denizde tutar 3."
    assert ("tr", False, "çapa 3", turkish) in pairs
    assert {("tr", True, "anchor 3", turkish), ("tr", True, "çapa 3", english)} <= pairs


def test_the_same_seed_makes_the_same_pairs() -> None:
    assert make_pairs(sections(40), seed=0) == make_pairs(sections(40), seed=0)
    assert make_pairs(sections(40), seed=0) != make_pairs(sections(40), seed=1)


def test_a_title_of_many_texts_is_no_query() -> None:
    same = [
        Section("tr", "boats", f"text {i}", "Sözdizimi", f"Bir metin {i} burada uzun uzun durur.") for i in range(9)
    ]
    assert "Sözdizimi" not in {pair.query for pair in make_pairs(same, seed=0)}
    assert "Sözdizimi" in {pair.query for pair in make_pairs(same[:6], seed=0)}


def test_the_record_names_packages_with_their_licences(tmp_path: Path) -> None:
    document = tmp_path / "boats-data/usr/share/doc/boats-data/copyright"
    document.parent.mkdir(parents=True)
    document.write_text("Files: *\nLicense: GPL-2+\n text\n\nLicense: GPL-2+\n\nLicense: CC0\n")
    facts = read_facts(tmp_path / "boats-data_1%3a2.0-1_all.deb", tmp_path)
    assert facts == PackageFacts("boats-data", "1:2.0-1", ("CC0", "GPL-2+"))
    pairs = [
        TextPair("tr", "boats-data", "k", "q", "p", True, False),
        TextPair("tr", "descriptions", "", "", "", False, False),
    ]
    write_sources(tmp_path / "SOURCES.md", pairs, [facts])
    text = (tmp_path / "SOURCES.md").read_text(encoding="utf-8")
    assert "| tr | 2 | 1 |" in text
    assert "| boats-data | 1:2.0-1 | CC0, GPL-2+ | 1 |" in text
