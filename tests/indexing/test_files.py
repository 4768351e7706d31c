"""Which files are found, and which are passed over."""

from pathlib import Path

import pytest

from m3_integrations.indexing.files import find_files


def write(path: Path, text: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_folders_are_searched_and_the_rest_is_passed_over_by_its_reason(docs: Path) -> None:
    wanted = [write(docs / name) for name in ("a.txt", "b.MD", "sub/c.jsonl", "sub/deep/d.markdown")]
    passed = [write(docs / name) for name in ("x.png", "sub/y.PNG", "Makefile")]
    for name in (".hidden.txt", ".git/e.txt", "idx/f.txt"):
        write(docs / name)
    (docs / "loop").symlink_to(docs, target_is_directory=True)
    (docs / "broken.txt").symlink_to(docs / "nowhere")
    link = docs / "link.txt"
    link.symlink_to(docs / "a.txt")
    found = find_files([docs, docs / "sub", docs / "a.txt"], exclude=[docs / "idx"])
    assert found.files == sorted([*wanted, link])
    assert found.roots == [docs, docs / "sub", docs / "a.txt"]
    assert found.skipped == {
        "links to folders": [docs / "loop"],
        "files without an ending": [passed[2]],
        "links to nothing": [docs / "broken.txt"],
        ".png files": [passed[0], passed[1], passed[1]],  # of two roots
    }
    assert found.failures == {}


def test_hidden_paths_are_indexed_if_they_are_named(docs: Path) -> None:
    file, folder = write(docs / ".notes.txt"), write(docs / ".vault" / "a.md").parent
    assert find_files([file, folder]).files == [file, folder / "a.md"]


def test_a_file_of_another_kind_is_refused_if_it_is_named(docs: Path) -> None:
    with pytest.raises(
        ValueError, match=r"x.pdf: only .txt, .md, .markdown, .rst, .html, .htm, .jsonl files can be indexed"
    ):
        find_files([write(docs / "x.pdf")])
    with pytest.raises(ValueError, match="at least one file or folder"):
        find_files([])


def test_relative_paths_and_links_to_folders_mean_the_folder_itself(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(docs / "a.txt")
    (docs.parent / "link").symlink_to(docs, target_is_directory=True)
    monkeypatch.chdir(docs)
    assert find_files([".", "../link", "a.txt", "../docs"]).files == [file]
