"""A store follows its files: what is encoded, what is deleted, and what is left alone."""

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from m3_integrations import M3Encoder, M3Vectors, Searcher, Store, open_store
from m3_integrations.indexing import IndexReport, Splitting, index_files, indexing
from m3_integrations.vectors import MODES, Kind, Mode
from tests.fakes import FakeEncoder


class Killed(BaseException):
    """Stands for the end of the process."""


class DyingEncoder(FakeEncoder):
    """Ends the process once it has encoded so many texts."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def encode(
        self, texts: Sequence[str], *, kind: Kind = "document", modes: Sequence[Mode] | None = None
    ) -> M3Vectors:
        self.left -= len(texts)
        if self.left < 0:
            raise Killed
        return super().encode(texts, kind=kind, modes=modes)


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store() as opened:
        yield opened


def run(
    store: Store, *paths: Path, encoder: FakeEncoder | None = None, splitting: Splitting | None = None
) -> tuple[IndexReport, list[str]]:
    """Index; give the report and the texts that were encoded."""
    encoder = encoder or FakeEncoder()
    report = index_files(paths, encoder, store, splitting=splitting or Splitting(16, 0))
    return report, [text for _, text in encoder.encoded]


def texts_of(store: Store) -> dict[str, str]:
    return {record.id: record.text for record in store.records()}


def words(*numbers: int) -> str:
    """Paragraphs of 14 words: one part of size 16 each."""
    return "\n\n".join(" ".join(f"{number}x{i}" for i in range(14)) for number in numbers)


def test_files_become_records_that_say_where_they_are_from(docs: Path, store: Store) -> None:
    first, second = (" ".join(words(n).split()[:12]) for n in (4, 5))
    (docs / "a.md").write_text(f"# One\n\n{first}\n\n{second}\n")
    (docs / "b.txt").write_text(words(2, 3))
    (docs / "c.jsonl").write_text(
        '{"_id": "k#1", "text": "museum", "year": 2021, "source": "web"}\n{"text": "opera"}\n'
    )
    report, encoded = run(store, docs)
    assert texts_of(store) == {
        f"{docs}/a.md#0": f"# One\n\n{first}",
        f"{docs}/a.md#1": second,
        f"{docs}/b.txt#0": words(2),
        f"{docs}/b.txt#1": words(3),
        f"{docs}/c.jsonl#k#1#0": "museum",
        f"{docs}/c.jsonl#line 2#0": "opera",
    }
    assert sorted(encoded) == sorted(texts_of(store).values())
    metadata = {record.id: record.metadata for record in store.records()}
    assert metadata[f"{docs}/a.md#1"]["headings"] == ["One"]
    assert metadata[f"{docs}/a.md#1"]["source"] == f"{docs}/a.md"
    museum = metadata[f"{docs}/c.jsonl#k#1#0"]
    assert (museum["_id"], museum["year"], museum["source"]) == ("k#1", 2021, "web")
    assert museum["m3_file"] == f"{docs}/c.jsonl"
    assert report == IndexReport(added=[docs / "a.md", docs / "b.txt", docs / "c.jsonl"], parts_encoded=6)


def test_what_did_not_change_is_not_encoded_again(docs: Path, tiny: M3Encoder) -> None:
    (docs / "a.md").write_text("# Keys\n\nRotate the keys once a year.")
    (docs / "b.txt").write_text("The museum is closed on Mondays.")
    with open_store() as store:
        before = tiny.stats.encoded_texts
        index_files([docs], tiny, store)
        assert tiny.stats.encoded_texts - before == 2
        os.utime(docs / "a.md", (1, 1))  # a new time is no change
        report = index_files([docs], tiny, store)
        assert (tiny.stats.encoded_texts - before, report.unchanged) == (2, [docs / "a.md", docs / "b.txt"])
        (docs / "b.txt").write_text("The museum is closed on Tuesdays.")
        report = index_files([docs], tiny, store)
        assert (tiny.stats.encoded_texts - before, report.changed) == (3, [docs / "b.txt"])
        hits = Searcher(tiny, store).search("when is the museum closed?", k=1)
        assert [hit.text for hit in hits] == ["The museum is closed on Tuesdays."]
        assert store.count() == 2


def test_of_a_changed_file_only_the_first_and_the_changed_parts_are_encoded(docs: Path, store: Store) -> None:
    file = docs / "a.txt"
    file.write_text(words(1, 2, 3, 4))
    run(store, docs)
    file.write_text(words(1, 2, 9, 4))
    report, encoded = run(store, docs)
    assert encoded == [words(1), words(9)]
    assert (report.parts_encoded, report.parts_kept, report.parts_deleted) == (2, 2, 0)
    file.write_text(words(1, 2))
    report, encoded = run(store, docs)
    assert (encoded, report.parts_deleted) == ([words(1)], 2)
    assert texts_of(store) == {f"{file}#0": words(1), f"{file}#1": words(2)}
    assert run(store, docs)[0].unchanged == [file]


def test_records_of_jsonl_are_known_by_their_ids_wherever_they_stand(docs: Path, store: Store) -> None:
    file = docs / "a.jsonl"
    lines = [f'{{"_id": "{i}", "text": "text {i}"}}' for i in range(4)]
    file.write_text("\n".join(lines))
    run(store, docs)
    file.write_text("\n".join([lines[3], '{"_id": "new", "text": "new"}', lines[0], '{"_id": "1", "text": "other"}']))
    _, encoded = run(store, docs)
    assert sorted(encoded) == [
        "new",
        "other",
        "text 0",
        "text 3",
    ]  # the first of the file before and now, beside the new
    assert sorted(texts_of(store).values()) == ["new", "other", "text 0", "text 3"]
    file.write_text(lines[3].replace("}", ', "lang": "en"}'))
    assert run(store, docs)[1] == ["text 3"]  # other metadata is another record
    assert [record.metadata["lang"] for record in store.records()] == ["en"]


def test_files_that_went_are_deleted_and_those_of_other_roots_are_not(docs: Path, store: Store) -> None:
    other = docs.parent / "docs2"  # begins with the name of the first
    (docs / "sub").mkdir()
    other.mkdir()
    for path in (docs / "same.txt", docs / "sub" / "same.txt", other / "same.txt"):
        path.write_text(f"text of {path}")
    run(store, docs, other)
    assert len(texts_of(store)) == 3
    (docs / "same.txt").unlink()
    (other / "same.txt").unlink()
    assert run(store, docs / "sub")[0].deleted == []
    report, encoded = run(store, docs)
    assert (report.deleted, encoded) == ([docs / "same.txt"], [])
    assert sorted(texts_of(store)) == sorted([f"{docs}/sub/same.txt#0", f"{other}/same.txt#0"])
    assert run(store, other / "same.txt")[0].deleted == [other / "same.txt"]  # named though it is gone
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*never\.txt, and the store has nothing of it"):
        run(store, docs, docs / "never.txt")


def test_a_folder_that_is_not_there_loses_nothing_unless_the_one_above_is_indexed(docs: Path, store: Store) -> None:
    (docs / "disk").mkdir()
    (docs / "disk" / "a.txt").write_text("one")
    run(store, docs / "disk")
    (docs / "disk").rename(docs.parent / "unmounted")
    with pytest.raises(FileNotFoundError, match=r"the store has 1 of its files: is its disk mounted\?"):
        run(store, docs / "disk")
    assert list(texts_of(store)) == [f"{docs}/disk/a.txt#0"]
    assert run(store, docs)[0].deleted == [docs / "disk" / "a.txt"]
    assert list(texts_of(store)) == []


def test_records_that_were_not_made_from_files_are_never_touched(docs: Path, store: Store) -> None:
    (docs / "a.txt").write_text("one")
    run(store, docs)
    (made,) = store.get([f"{docs}/a.txt#0"], with_vectors=True)
    # A copy that somebody added under another id has our metadata.
    ids = ["copy", f"{docs}/a.txt"]
    assert made.vectors is not None
    store.upsert(ids, ["theirs"] * 2, [made.metadata] * 2, made.vectors[[0, 0]])
    (docs / "a.txt").write_text("two")
    run(store, docs)
    (docs / "a.txt").unlink()
    run(store, docs)
    assert texts_of(store) == {"copy": "theirs", f"{docs}/a.txt": "theirs"}


def test_other_sizes_split_everything_anew(docs: Path, store: Store) -> None:
    (docs / "a.txt").write_text(words(1, 2))
    run(store, docs)
    report, encoded = run(store, docs, splitting=Splitting(40, 0))
    assert (report.changed, encoded) == ([docs / "a.txt"], [words(1, 2)])
    assert texts_of(store) == {f"{docs}/a.txt#0": words(1, 2)}


def test_a_killed_run_is_taken_up_where_it_was(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_BATCH_SIZE", 3)
    choose = random.Random(3)
    for name in ("a.txt", "b.txt"):
        (docs / name).write_text(words(*range(5)).replace("x", name[0]))
    with open_store() as whole:
        run(whole, docs)
        wanted = texts_of(whole)
    for change in (False, True):
        with open_store() as store:
            if change:  # the old files have as many parts, and more
                for name, n in (("a.txt", 5), ("b.txt", 8)):
                    (docs / name).write_text(words(*range(10, 10 + n)))
                run(store, docs)
                for name in ("a.txt", "b.txt"):
                    (docs / name).write_text(words(*range(5)).replace("x", name[0]))
            total = 0
            for left in [*choose.choices(range(7), k=4), 99]:
                encoder = DyingEncoder(left)
                try:
                    run(store, docs, encoder=encoder)
                except Killed:
                    assert left < 99
                total += len(encoder.encoded)
            assert texts_of(store) == wanted
            assert total == 10  # nothing that was stored was encoded again
            assert run(store, docs)[0].unchanged == [docs / "a.txt", docs / "b.txt"]


def test_files_that_cannot_be_read_are_named_and_keep_what_is_stored(docs: Path, store: Store) -> None:
    (docs / "a.jsonl").write_text('{"text": "one"}\n')
    (docs / "b.txt").write_text("two")
    (docs / "c.txt").write_text("three")
    run(store, docs)
    (docs / "a.jsonl").write_text('{"text": "other"}\n{"text": }\n')
    (docs / "b.txt").write_bytes(b"\xff\xfet\0w\0o\0")
    (docs / "c.txt").write_text("four")
    report, encoded = run(store, docs)
    assert encoded == ["four"]
    assert sorted(texts_of(store).values()) == ["four", "one", "two"]
    assert list(report.failures) == [docs / "a.jsonl", docs / "b.txt"]
    assert report.failures[docs / "a.jsonl"].startswith(f"{docs}/a.jsonl:2: cannot be read as JSON")
    assert report.failures[docs / "b.txt"].startswith(f"{docs}/b.txt:1: not UTF-8 text (byte 0xff)")
    assert report.deleted == []


def test_files_below_a_folder_that_cannot_be_listed_are_kept(
    docs: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "sub").mkdir()
    (docs / "sub" / "a.txt").write_text("one")
    run(store, docs)
    list_folder = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report, _ = run(store, docs)
    assert report.failures == {docs / "sub": f"{docs}/sub: Permission denied"}
    assert (report.deleted, store.count()) == ([], 1)


def test_a_file_that_cannot_be_looked_at_is_named_and_keeps_what_is_stored(
    docs: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "a.txt").write_text("one")
    run(store, docs)
    look = Path.stat

    def refuse(path: Path, **settings: Any) -> os.stat_result:
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **settings)

    monkeypatch.setattr(Path, "stat", refuse)
    report, _ = run(store, docs)
    assert report.failures == {docs / "a.txt": f"{docs}/a.txt: Permission denied"}
    assert (report.deleted, store.count()) == ([], 1)


def test_a_file_that_goes_while_it_is_looked_at_is_named_and_keeps_what_is_stored(
    docs: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = docs / "a.txt"
    file.write_text("one")
    run(store, docs)
    file.write_text("two")
    monkeypatch.setattr(Path, "read_bytes", lambda path: path.with_name("gone").open("rb").read())
    report, _ = run(store, docs)
    assert report.failures == {file: f"{file}: No such file or directory"}
    assert texts_of(store) == {f"{file}#0": "one"}


def test_a_file_that_its_parser_rejects_is_named_and_the_others_are_indexed(docs: Path, store: Store) -> None:
    for name in ("a.html", "b.rst", "c.txt", "d.txt"):
        (docs / name).write_text("one")
    run(store, docs)
    (docs / "a.html").write_text("<p>hello <![foo]> world</p>")
    (docs / "b.rst").write_text(f"Title\n=====\n\n{'- ' * 400}\n\ntext\n")
    (docs / "c.txt").write_text("two")
    (docs / "d.txt").unlink()
    report, encoded = run(store, docs)
    assert [line.partition(": ")[0] for line in report.failures.values()] == [f"{docs}/a.html", f"{docs}/b.rst"]
    assert (report.deleted, encoded) == ([docs / "d.txt"], ["two"])
    assert texts_of(store) == {f"{docs}/a.html#0": "one", f"{docs}/b.rst#0": "one", f"{docs}/c.txt#0": "two"}


def test_markdown_that_its_parser_rejects_is_a_failure_and_a_mistake_of_ours_is_none(
    docs: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "a.md").write_text("# One")

    def failing(*_: object) -> NoReturn:
        raise IndexError("list index out of range")

    def out_of_memory(*_: object) -> NoReturn:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("m3_integrations.indexing.headings.MarkdownIt.parse", failing)
        report, _ = run(store, docs)
    (line,) = report.failures.values()
    assert line.startswith(f"{docs}/a.md: cannot be read as Markdown: list index out of range: correct the file")
    with monkeypatch.context() as patched:
        patched.setattr("m3_integrations.indexing.headings.MarkdownIt.parse", out_of_memory)
        with pytest.raises(MemoryError):
            run(store, docs)
    monkeypatch.setattr("m3_integrations.indexing.headings.pairwise", failing)
    with pytest.raises(IndexError):
        run(store, docs)


def test_a_name_that_is_not_unicode_is_reported(docs: Path, store: Store) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (docs / name).write_text("one")
    report, _ = run(store, docs)
    assert list(report.failures.values()) == [
        f"'{docs}/caf\\udce9.txt': the name is not valid Unicode: rename the file"
    ]
    assert store.count() == 0


def test_files_without_text_have_no_record_and_lose_those_they_had(docs: Path, store: Store) -> None:
    (docs / "a.txt").write_text("one")
    (docs / "b.jsonl").write_text("\n")
    run(store, docs)
    (docs / "a.txt").write_text(" \n")
    for deleted in (1, 0):
        report, encoded = run(store, docs)
        assert (report.empty, report.parts_deleted, encoded) == ([docs / "a.txt", docs / "b.jsonl"], deleted, [])
    assert store.count() == 0


def test_line_ends_and_byte_order_marks_are_not_encoded(docs: Path, store: Store) -> None:
    (docs / "a.md").write_bytes(b"\xef\xbb\xbf# One\r\n\r\n" + words(1).encode() + b"\r\n\r\n" + words(2).encode())
    run(store, docs, splitting=Splitting(18, 0))
    assert list(texts_of(store).values()) == ["# One\n\n" + words(1), words(2)]


def test_only_modes_that_the_store_keeps_are_encoded(docs: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (docs / "a.txt").write_text("one")
    monkeypatch.setattr(type(store), "kept_modes", MODES[:2])
    run(store, docs)
    assert store.modes == ("dense", "lexical")


def test_another_model_is_refused_before_anything_is_changed(docs: Path, store: Store) -> None:
    (docs / "a.txt").write_text("one")
    run(store, docs)
    (docs / "a.txt").unlink()
    encoder = FakeEncoder()
    encoder.fingerprint = "0ther"
    with pytest.raises(ValueError, match="vectors of the model fa4e, not of 0ther"):
        run(store, docs, encoder=encoder)
    assert store.count() == 1


def test_the_progress_bar_counts_the_bytes_of_changed_files(
    docs: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    (docs / "a.txt").write_text("a" * 1234)
    index_files([docs], FakeEncoder(), store, show_progress=True)
    assert "1.23k/1.23k" in capsys.readouterr().err
    index_files([docs], FakeEncoder(), store, show_progress=True)
    assert capsys.readouterr().err == ""


def test_the_progress_bar_ends_where_the_files_end(
    store: Store, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Shares of a size that are no whole bytes would add up to a little more, of which tqdm warns.
    (docs / "a.txt").write_text(words(*range(11)))
    index_files([docs], FakeEncoder(), store, splitting=Splitting(16, 0), show_progress=True)
    assert "100%" in capsys.readouterr().err
