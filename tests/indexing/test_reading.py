"""What is in a file, and what is said of one that cannot be read."""

from pathlib import Path

import pytest

from m3_integrations.indexing.reading import Entry, read_entries


def entries(name: str, content: bytes) -> list[Entry]:
    return read_entries(Path("/docs") / name, content)


def test_a_text_file_is_one_entry_with_plain_line_ends_and_no_byte_order_mark() -> None:
    for name in ("a.txt", "a.MD"):
        assert entries(name, b"\xef\xbb\xbfone\r\ntwo\rthr\xc3\xa9e\n") == [Entry("", "one\ntwo\nthrée\n")]
    assert entries("a.txt", b"") == [Entry("", "")]


def test_a_line_of_jsonl_is_a_record() -> None:
    lines = (
        b'\xef\xbb\xbf{"_id": "k1", "title": " T ", "text": "a\\r\\nb", "metadata": {"year": 2024}}\r\n\r\n'
        b'{"id": 7, "text": "c\xe2\x80\xa8d", "lang": "en", "title": null, "metadata": null}\n'
        b'{"text": "e"}'
    )
    assert entries("a.jsonl", lines) == [
        Entry("k1", "T\na\nb", {"_id": "k1", "title": " T ", "year": 2024}),
        Entry("7", "c\u2028d", {"id": 7, "lang": "en"}),
        Entry("line 4", "e", {}),
    ]
    assert entries("a.jsonl", b"") == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntwo\n\xff\xfe", r"/docs/a.txt:3: not UTF-8 text \(byte 0xff\)"),
        ("a.md", "ö".encode("latin-1"), "/docs/a.md:1: not UTF-8 text"),
        ("a.txt", b"one\r\ntwo\0", "/docs/a.txt:2: holds a null character"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "/docs/a.jsonl:2: cannot be read as JSON"),
        ("a.jsonl", b'\n"text"', "/docs/a.jsonl:2: must be an object with a text, got '\"text\"'"),
        ("a.jsonl", b'{"title": "a"}', ":1: 'text' must be a string, got None"),
        ("a.jsonl", b'{"text": "a", "title": 3}', ":1: 'title' must be a string, got 3"),
        ("a.jsonl", b'{"text": "a", "metadata": [1]}', r":1: 'metadata' must be an object, got \[1\]"),
        ("a.jsonl", b'{"text": "a", "_id": 1.5}', ":1: '_id' must be a string or an integer, got 1.5"),
        ("a.jsonl", b'{"text": "a", "_id": ""}', ":1: '_id' must be a string or an integer, got ''"),
        ("a.jsonl", b'{"_id": "x", "text": "a"}\n{"id": "x", "text": "b"}', ":2: has the _id 'x', as line 1 has"),
        ("a.jsonl", b'{"text": "a", "year": 1, "metadata": {"year": 2}}', ":1: 'year' occurs both in 'metadata' and"),
        ("a.jsonl", b'{"text": "a", "m3_file": "b"}', ":1: 'm3_file' begins with 'm3_'"),
        ("a.jsonl", b'{"text": "\\ud800"}', ":1: holds a value that cannot be stored"),
        ("a.jsonl", b'{"text": "a", "year": NaN}', ":1: cannot be read as JSON: NaN is not a number in JSON"),
        ("a.jsonl", b'{"text": "a", "year": 1e999}', ":1: holds a value that cannot be stored"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 400 + b"}", ":1: .*integer"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"[" * 60 + b"1" + b"]" * 60 + b"}", ":1: .*nested"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, ":1: cannot be read as JSON"),
        ("a.html", b"<div>" * 3000 + b"deep", "/docs/a.html: its elements are nested too deeply to be read"),
        ("a.html", b"<p>hello <![foo]> world</p>", "/docs/a.html: cannot be read as HTML: The markup you provided was"),
        ("a.html", b"<meta charset=utf-7><p>+2AA- a</p>", r"/docs/a.html: holds U\+D800, which is not valid Unicode"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_that_names_file_and_line(name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entries(name, content)


def test_json_of_any_depth_is_refused_with_its_line() -> None:
    for depth in range(600, 1000):  # from some depth on it can be parsed but not printed, and then not parsed
        with pytest.raises(ValueError, match=r"^/docs/a\.jsonl:1: "):
            entries("a.jsonl", b'{"text": "a", "n": ' + b"[" * depth + b"1" + b"]" * depth + b"}")
