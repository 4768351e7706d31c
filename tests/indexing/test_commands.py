"""`m3 index` and `m3 search` as they are called, over stores in folders."""

import contextlib
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from m3_integrations import M3Encoder, Searcher, langchain, llama_index, open_store
from m3_integrations.cli import app
from m3_integrations.cli.search import excerpt
from m3_integrations.cli.shared import counted
from tests.serve.conftest import serving_store

M3 = Path(sys.executable).parent / "m3"

KEYS = "# Vault\n\n## Keys\n\nRotate the keys of the vault once a year.\n"
MUSEUM = {"_id": "m1", "text": "The museum is closed on Mondays.", "year": 2021}
OPERA = {"_id": "o1", "text": "The opera begins at eight in the evening.", "year": 2024}


def call(*arguments: str | Path) -> Result:
    """Run the command in this process, which has `tiny` loaded. New stores are of it; searches name no model."""
    model = ["--model", "tiny"] if arguments[0] == "index" and "--model" not in arguments else []
    return CliRunner().invoke(app, [*map(str, arguments), *model])


def found_by(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module", autouse=True)
def loaded() -> Iterator[None]:
    """The bundled checkpoint stays loaded, so that every command shares it."""
    with M3Encoder("tiny", device="cpu"):
        yield


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store over two files in the folder docs beside it; for tests that change neither."""
    docs = tmp_path_factory.mktemp("commands") / "docs"
    docs.mkdir()
    return index_two_files(docs)


def index_two_files(docs: Path) -> Path:
    (docs / "guide.md").write_text(KEYS)
    (docs / "events.jsonl").write_text(f"{json.dumps(MUSEUM)}\n{json.dumps(OPERA)}\n")
    store = docs.parent / "idx"
    assert call("index", docs, "--store", store, "--device", "cpu").exit_code == 0
    return store


def test_files_are_indexed_changed_deleted_and_found(disk_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = disk_path / "docs"
    docs.mkdir()
    (docs / "guide.md").write_text(KEYS)
    (docs / "events.jsonl").write_text(f"{json.dumps(MUSEUM)}\n{json.dumps(OPERA)}\n")
    (docs / "logo.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(docs.parent)
    done = call("index", "docs/", "--store", "./idx")
    *lines, size = done.stdout.splitlines()
    assert (done.exit_code, lines) == (0, [
        "files: 2 added, 0 changed, 0 unchanged, 0 deleted",
        "parts: 3 encoded, 0 kept, 0 deleted",
        "passed over: 1 .png file",
        "./idx holds 3 records",
    ])  # fmt: skip
    assert re.fullmatch(
        r"it takes 0\.\d MB on the disk, 0\.\d of it token vectors\. Times smaller with --multi-vector: turbo8 1\.\d, "
        r"turbo4 1\.\d, none 1\.\d \(m3 fit says at what cost\)", size,
    )  # fmt: skip
    assert "indexing:" in done.stderr
    (docs / "events.jsonl").write_text(f"{json.dumps(MUSEUM | {'text': 'The museum is closed on Fridays.'})}\n")
    (docs / "guide.md").unlink()
    done = call("index", "docs", "--store", "idx")
    assert done.stdout.splitlines()[:2] == [
        "files: 0 added, 1 changed, 0 unchanged, 1 deleted",
        "parts: 1 encoded, 0 kept, 2 deleted",
    ]
    (hit,) = found_by(call("search", "./idx", "when is the museum closed?", "--json"))["hits"]
    assert (hit["id"], hit["text"]) == (f"{docs}/events.jsonl#m1#0", "The museum is closed on Fridays.")
    done = call("search", "idx", "rotate the keys", "--mode", "lexical", "--filter", '{"year": 1999}')
    assert (done.exit_code, done.stdout) == (0, "nothing found\n")


def test_a_killed_process_is_taken_up_by_the_next(docs: Path) -> None:
    lines = [json.dumps({"_id": str(i), "text": f"Record {i} of the list."}) for i in range(600)]
    (docs / "list.jsonl").write_text("\n".join(lines))
    store = docs.parent / "idx"
    arguments = [str(M3), "index", str(docs), "--store", str(store), "--model", "tiny"]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0) as killed:
        assert killed.stderr is not None
        said = b""
        while b"k/" not in said.rpartition(b"indexing:")[2]:  # a batch of 128 was stored
            said += killed.stderr.read(1)
        killed.kill()
    with open_store(store) as opened:
        n = opened.count()
    assert 128 <= n < 600
    result = call("index", docs, "--store", store, "--device", "cpu")
    assert result.stdout.splitlines()[:2] == [
        "files: 0 added, 1 changed, 0 unchanged, 0 deleted",
        f"parts: {600 - n:,} encoded, {n:,} kept, 0 deleted",
    ]
    with open_store(store) as opened:
        wanted = {f"{docs}/list.jsonl#{i}#0": f"Record {i} of the list." for i in range(600)}
        assert {record.id: record.text for record in opened.records()} == wanted
    again = call("index", docs, "--store", store, "--device", "cpu")
    assert again.stdout.startswith("files: 0 added, 0 changed, 1 unchanged")


def test_json_has_the_hits_of_the_searcher(idx: Path) -> None:
    question = "when do they rotate keys or open the museum?"
    options = ["--k", 2, "--filter", '{"year": {"$exists": false}}', "--weights", "1,0.3,0", "--explain"]
    found = found_by(call("search", idx, question, "--json", "--device", "cpu", *map(str, options)))
    with Searcher(M3Encoder("tiny", device="cpu"), open_store(idx)) as searcher:
        (hit,) = searcher.search(question, k=2, filter={"year": {"$exists": False}}, weights="miracl")
        reason = searcher.explain(question, hit.id)
    (shown,) = found["hits"]
    assert (found["question"], found["mode"], found["k"]) == (question, "all", 2)
    assert (shown["id"], shown["text"], shown["metadata"]) == (hit.id, KEYS.strip(), hit.metadata)
    assert shown["metadata"]["headings"] == ["Vault", "Keys"]
    assert shown["scores"] == pytest.approx(hit.scores)
    dense_and_lexical = (hit.scores["dense"] + 0.3 * hit.scores["lexical"]) / 1.3
    assert shown["score"] == pytest.approx(dense_and_lexical, abs=1e-6)
    assert shown["explanation"]["scores"] == pytest.approx(reason.scores)
    assert [match["token"] for match in shown["explanation"]["lexical"]] == [match.token for match in reason.lexical]
    assert shown["explanation"]["lexical"][0]["score"] == pytest.approx(reason.lexical[0].score)
    pairs = [(pair["query_token"], pair["document_token"]) for pair in shown["explanation"]["multi_vector"]]
    assert pairs == [(pair.query_token, pair.document_token) for pair in reason.multi_vector]


def test_every_mode_ranks_by_its_own_scores(idx: Path) -> None:
    for mode, names in (
        ("dense", {"dense"}),
        ("lexical", {"lexical"}),
        ("dense+lexical", {"dense", "lexical"}),
        ("all", {"dense", "lexical", "multi_vector"}),
    ):
        hits = found_by(call("search", idx, "the evening at the opera", "--mode", mode, "--json"))["hits"]
        assert hits[0]["metadata"]["_id"] == "o1"
        for hit in hits:
            assert hit["scores"].keys() == names
            assert hit["score"] == pytest.approx(sum(hit["scores"].values()) / len(names), abs=1e-6)


def test_results_are_shown_with_scores_place_and_reason(idx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(idx.parent)
    result = call("search", "idx", "how to rotate keys", "--k", "1", "--explain", "--device", "cpu")
    with Searcher(M3Encoder("tiny", device="cpu"), open_store(idx)) as searcher:
        (hit,) = searcher.search("how to rotate keys", k=1)
    first, scores, text, shared, pairs, *_ = result.stdout.splitlines()
    assert first == f"1.  {hit.score:.3f}  docs/guide.md#0 > Vault > Keys"
    assert scores.split() == ["dense", f"{hit.scores['dense']:.3f}", "lexical", f"{hit.scores['lexical']:.3f}",
                              "multi-vector", f"{hit.scores['multi_vector']:.3f}"]  # fmt: skip
    assert text == "  # Vault ## Keys Rotate the keys of the vault once a year."
    assert shared.startswith("  shared tokens: ")
    assert "key" in shared
    assert pairs.startswith("  query tokens and what they found: ")


@pytest.mark.parametrize("headings", [5, "abc", [1, 2], None, {"a": 1}, True])
def test_metadata_that_are_no_headings_are_not_shown_as_headings(docs: Path, headings: object) -> None:
    (docs / "a.jsonl").write_text(json.dumps({"_id": "1", "text": "apple", "headings": headings}))
    store = docs.parent / "idx"
    assert call("index", docs, "--store", store, "--device", "cpu").exit_code == 0
    shown = call("search", store, "apple", "--device", "cpu")
    assert shown.stdout.splitlines()[0].endswith("docs/a.jsonl#1#0"), shown.output


def test_a_text_sends_no_commands_to_the_terminal(docs: Path) -> None:
    evil = "evil \x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J\x7f"
    record = {"_id": "a\x1b[2Jb", "text": evil, "headings": ["\x1b[1m"]}
    (docs / "a.jsonl").write_text(json.dumps(record))
    (docs / "\x1b[31m.txt").write_bytes(b"\xff")
    store = docs.parent / "idx"
    indexed = call("index", docs, "--store", store, "--device", "cpu")
    assert "docs/\\x1b[31m.txt:1: not UTF-8 text" in indexed.stderr
    found = call("search", store, "evil", "--explain", "--device", "cpu")
    assert "docs/a.jsonl#a\\x1b[2Jb#0 > \\x1b[1m" in found.stdout, found.output
    assert r"evil \x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J\x7f" in found.stdout
    refused = call("search", store, "evil", "--mode", "\x1b[31m", "--device", "cpu")
    everything = indexed.output + found.output + refused.output
    assert {each for each in everything if unicodedata.category(each) == "Cc"} <= {"\n", "\r"}  # the bar has \r


def test_a_page_says_why_a_record_is_not_found(idx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(idx.parent)
    asked = [
        "idx",
        "how to rotate keys",
        "--k",
        "1",
        "--filter",
        '{"headings": "Museum"}',
        "--why-not",
        "docs/guide.md#0",
    ]
    result = call("search", *asked, "--device", "cpu")
    with Searcher(M3Encoder("tiny", device="cpu"), open_store(idx)) as searcher:
        id_ = f"{idx.parent}/docs/guide.md#0"
        expected = searcher.explain_missing("how to rotate keys", id_, k=1, filter={"headings": "Museum"})
    assert result.stdout.rstrip() == str(expected)
    assert "{'headings': 'Museum'}: the record has headings = ['Vault', 'Keys']" in result.stdout
    found = found_by(call("search", *asked, "--json", "--device", "cpu"))
    assert (found["id"], found["is_found"], found["rank"]) == (id_, False, expected.rank)
    assert found["excluded_by"][0]["said"] == {"headings": "Museum"}
    absent = call("search", "idx", "keys", "--why-not", "nothing", "--device", "cpu")
    assert absent.exit_code == 1
    assert "The store has no record 'nothing'." in absent.stderr


def test_files_that_cannot_be_read_are_named_and_the_status_says_so(docs: Path) -> None:
    store = index_two_files(docs)
    (docs / "bad.jsonl").write_text('{"text": "a"}\n{"text": }\n')
    (docs / "good.txt").write_text("The library opens at nine.")
    result = call("index", docs, "--store", store, "--device", "cpu")
    assert result.exit_code == 1
    assert result.stdout.startswith("files: 1 added, 0 changed, 2 unchanged, 0 deleted")
    (line,) = [line for line in result.stderr.splitlines() if "not indexed" in line]
    assert line.startswith(f"not indexed: {docs}/bad.jsonl:2: cannot be read as JSON")


def test_the_store_itself_is_not_indexed(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (docs / "a.txt").write_text("one")
    monkeypatch.chdir(docs)
    assert call("index", ".", "--store", "idx", "--optimize").stdout.startswith("files: 1 added")
    (docs / "idx" / "stray.txt").write_text("two")
    assert call("index", ".", "--store", "./idx").stdout.startswith("files: 0 added, 0 changed, 1 unchanged")


def test_a_store_without_token_vectors_is_made_and_searched(docs: Path) -> None:
    (docs / "a.txt").write_text("The museum is closed on Mondays.")
    store = docs.parent / "idx"
    assert call("index", docs, "--store", store, "--multi-vector", "none").exit_code == 0
    (hit,) = found_by(call("search", store, "closed museum", "--json"))["hits"]
    assert hit["scores"].keys() == {"dense", "lexical"}


def test_parts_are_as_long_as_asked_for(docs: Path) -> None:
    (docs / "a.txt").write_text("a b c d e f g h i j k l m n o p q r s t u v w x y z")
    store = docs.parent / "idx"
    call("index", docs, "--store", store, "--size", "16", "--overlap", "4")
    with open_store(store) as opened:
        texts = sorted(record.text for record in opened.records())
    assert texts == ["a b c d e f g h i j k l m n", "k l m n o p q r s t u v w x", "u v w x y z"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "EMPTY", "museum"], "no store at EMPTY: make one with m3 index"),
        (["search", "IDX", "museum", "--filter", "{year: 1}"], "--filter must be JSON such as"),
        (["search", "IDX", "museum", "--filter", "[" * 100_000], "--filter must be JSON such as"),
        (["search", "IDX", "museum", "--filter", "[1]"], "--filter must be a JSON object"),
        (["search", "IDX", "museum", "--filter", '{"year": {"$near": 1}}'], "unknown $near on 'year'"),
        (["search", "IDX", "museum", "--filter", '{"$not": 5}'], "--filter: a filter must be a mapping"),
        (["search", "IDX", "museum", "--filter", f'{{"year": 1{"0" * 400}}}'], "integers must be below 2**1023"),
        (["search", "IDX", "museum", "--weights", "1,2"], "--weights must be three numbers"),
        (["search", "IDX", "museum", "--weights", "0,0,0"], "mode weights must be finite"),
        (["search", "IDX", "museum", "--weights", "best"], "unknown weights 'best'"),
        (["search", "IDX", "museum", "--mode", "sparse"], "mode must be one of dense, lexical"),
        (["search", "IDX", "museum", "--model", "OTHER"], "this store holds vectors of the model"),
        (["search", "IDX", "museum", "--collection", "c"], "--collection is for a server"),
        (
            ["index", "DOCS", "--store", "IDX", "--model", "OTHER", "--size", "99"],
            "this store holds vectors of the model",
        ),
        (["index", "DOCS", "--store", "IDX", "--size", "5"], "size must be at least 16 tokens, got 5"),
        (["index", "DOCS", "--store", "IDX", "--size", "2000"], "so size can be 1023 at most"),
        (["index", "DOCS", "--store", "IDX", "--multi-vector", "none"], "was made with multi_vector='float16'"),
        (["index", "DOCS/nowhere", "--store", "NEW"], "no file or folder DOCS/nowhere"),
        (["index", "PDF", "--store", "NEW"], "files can be indexed: name a folder or such a file"),
        (["index", "DOCS", "--store", "NEW", "--size", "2000"], "so size can be 1023 at most"),
        (["index", "DOCS", "--store", "NEW", "--multi-vector", "foo"], "multi_vector must be one of"),
        (
            ["index", "DOCS/nowhere", "--store", "IDX"],
            "no file or folder DOCS/nowhere, and the store has nothing of it",
        ),
        (
            ["index", "PDF", "--store", "IDX"],
            "only .txt, .md, .markdown, .rst, .html, .htm, .jsonl files can be indexed",
        ),
        (["index", "DOCS", "--store", "DOCS"], "DOCS cannot be indexed into DOCS, which is or contains it"),
        (["index", "IDX", "--store", "IDX"], "cannot be indexed into IDX"),
        (["search", "DOCS", "museum"], "is not a store of this package"),
        (["index", "DOCS", "--store", "localhost:6333"], "write 'http://localhost:6333' for a server"),
        (["search", "localhost:6333", "museum"], "write 'http://localhost:6333' for a server"),
        (["index", "DOCS", "--store", ""], "where is empty"),
        (["search", "", "museum"], "where is empty"),
        (["index", "DOCS", "--store", ":memory:"], "in memory ends with the command"),
        (["search", ":memory:", "museum"], "in memory ends with the command"),
        (["index", "DOCS", "--store", "~nobody-of-this-name/x"], "the home folder in"),
        (["index", "DOCS", "--store", "ftp://nowhere"], "a server's URL must begin with http"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line_and_changes_nothing(
    idx: Path, tmp_path: Path, small: Path, arguments: list[str], message: str
) -> None:
    before_it = set(tmp_path.iterdir())
    pdf, empty = tmp_path / "x.pdf", tmp_path / "empty"
    pdf.write_bytes(b"%PDF")
    empty.mkdir()
    places = {"IDX": idx, "DOCS": idx.with_name("docs"), "PDF": pdf, "EMPTY": empty, "NEW": tmp_path / "new"}
    places["OTHER"] = small
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
        message = message.replace(name, str(path))
    with contextlib.chdir(tmp_path):
        result = call(*arguments, "--device", "cpu")
    *before, line = result.stderr.splitlines()
    assert result.exit_code == 1
    assert (line.startswith("error: "), message in line, result.stdout) == (True, True, ""), result.output
    assert not [other for other in before if "oading weights" not in other and other.strip()]
    assert list(empty.iterdir()) == []
    assert set(tmp_path.iterdir()) == {*before_it, pdf, empty}
    with open_store(idx) as store:
        assert store.count() == 3


@pytest.mark.enable_socket
def test_a_setting_that_the_store_behind_m3_serve_does_not_have_is_one_line(idx: Path, small: Path) -> None:
    with open_store() as store, serving_store(store) as url:
        for option, arguments in (
            ("collection", ["search", url, "museum", "--collection", "c"]),
            ("multi-vector", ["index", idx.with_name("docs"), "--store", url, "--multi-vector", "turbo4"]),
            ("collection", ["load", idx, "--store", url, "--collection", "c"]),
            ("multi-vector", ["migrate", idx, "--model", small, "--to", url, "--multi-vector", "turbo4"]),
        ):
            result = call(*arguments)
            said = f"error: {url} is an m3 serve, whose store has its own settings: leave --{option} out"
            assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, said), result.output
        assert store.count() == 0


def test_a_store_that_another_has_open_is_one_line(idx: Path) -> None:
    with open_store(idx):
        result = call("search", idx, "museum")
    assert result.exit_code == 1
    assert "is open already in this process" in result.stderr.splitlines()[-1]


def test_one_of_a_kind_is_no_plural() -> None:
    for things, one in (
        (".js files", ".js file"),
        (".css files", ".css file"),
        ("files without text", "file without text"),
        ("links to folders", "link to folders"),
        ("records", "record"),
    ):
        assert (counted(1, things), counted(0, things), counted(2345, things)) == (
            f"1 {one}", f"0 {things}", f"2,345 {things}",
        )  # fmt: skip


def test_a_question_needs_no_quotes(idx: Path) -> None:
    quoted = found_by(call("search", idx, "when is the museum closed", "--json"))
    assert found_by(call("search", idx, "when", "is", "the", "museum", "closed", "--json")) == quoted
    assert quoted["question"] == "when is the museum closed"


@pytest.mark.parametrize("question", ["", " "])
def test_a_blank_question_is_answered_as_the_retrievers_answer_it(idx: Path, question: str) -> None:
    hits = found_by(call("search", idx, question, "--json", "--device", "cpu"))["hits"]
    encoder = M3Encoder("tiny", device="cpu")
    with open_store(idx) as store:
        documents = langchain.M3HybridRetriever(encoder=encoder, store=store).invoke(question)
        nodes = llama_index.M3HybridRetriever(encoder=encoder, store=store, similarity_top_k=4).retrieve(question)
    assert [hit["id"] for hit in hits] == [each.id for each in documents] == [each.node.node_id for each in nodes]
    assert len(hits) == 3


def test_pages_and_restructured_text_are_indexed_under_their_headings(docs: Path) -> None:
    (docs / "vault.html").write_bytes(
        "<html><head><title>Vault &amp; keys</title><meta charset='latin-1'><script>no()</script></head><body>"
        "<h1>Tür</h1><p>Rotate the keys once a year.</p></body></html>".encode("latin-1")
    )
    (docs / "museum.rst").write_text("======\nMuseum\n======\n\nHours\n-----\n\n.. note:: It is closed on Mondays.\n")
    store = docs.parent / "idx"
    assert call("index", docs, "--store", store, "--device", "cpu").stdout.startswith("files: 2 added")
    (page, _) = found_by(call("search", store, "rotate", "keys", "--json"))["hits"]
    assert (page["text"], page["metadata"]["headings"]) == ("# Tür\n\nRotate the keys once a year.", ["Tür"])
    assert page["metadata"]["title"] == "Vault & keys"
    (text, _) = found_by(call("search", store, "closed on mondays", "--json"))["hits"]
    assert text["metadata"]["headings"] == ["Museum", "Hours"]
    assert text["text"] == "======\nMuseum\n======\n\nHours\n-----\n\n.. note:: It is closed on Mondays."


def test_an_excerpt_shows_where_the_text_matched(docs: Path) -> None:
    (docs / "long.txt").write_text(f"{'Filler about nothing much. ' * 20}The vault keys rotate yearly. {'More. ' * 60}")
    store = docs.parent / "idx"
    call("index", docs, "--store", store, "--size", "512", "--device", "cpu")
    shown = call("search", store, "rotate the vault keys").stdout.splitlines()[2]
    assert "The vault keys rotate yearly." in shown
    assert shown.startswith("  … ")
    assert shown.endswith(" …")
    assert len(shown) <= 310


def test_the_part_with_the_most_weight_is_shown_in_long_texts_too() -> None:
    random = np.random.default_rng(0)
    for n_words in (60, 200, 30_000):  # the last takes minutes if every match is held to every other
        words = random.choice(["an", "the", "river", "keep", "of"], n_words).tolist()
        words[n_words // 2 : n_words // 2] = ["rivers", "keys"]
        text, weights = " ".join(words), {"an": 0.1, "the": 0.2, "e": 0.1, "keys": 1.0, "s": 0.01, "x" * 300: 9.0}
        shown = excerpt(text, weights)
        assert "rivers keys" in shown
        assert shown.strip("… ") in text
    assert excerpt(f"{'b ' * 300}key {'b ' * 300}", {"key": 1.0}).startswith("… b b b")


def test_ctrl_c_says_that_the_same_line_goes_on(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("m3_integrations.indexing.index_files", interrupted)
    result = call("index", docs, "--store", docs.parent / "idx", "--device", "cpu")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        "interrupted. Finished work is kept: run the same command again to continue."
    )


def search_in_a_shell(idx: Path, line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f"{M3} search {idx} {line}"],
        env={**os.environ, **environment}, capture_output=True, check=False,
    )  # fmt: skip


def test_an_encoding_without_a_character_ends_nothing(docs: Path) -> None:
    (docs / "arrow.txt").write_text("The museum → opera, 博物館.")
    store = docs.parent / "idx"
    call("index", docs, "--store", store, "--device", "cpu")
    as_json = search_in_a_shell(store, "museum --json", PYTHONIOENCODING="cp1252")
    assert as_json.returncode == 0, as_json.stderr
    assert json.loads(as_json.stdout)["hits"][0]["text"] == "The museum → opera, 博物館."
    as_lines = search_in_a_shell(store, "museum", PYTHONIOENCODING="cp1252")
    assert as_lines.returncode == 0, as_lines.stderr
    assert b"The museum ? opera, ???." in as_lines.stdout


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_closed_streams_end_nothing(idx: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as Python starts after `>&- 2>&-`
    app(["search", str(idx), "museum", "--device", "cpu", *options], standalone_mode=False)
    for stream in (sys.stdout, sys.stderr):
        stream.close()


@pytest.mark.parametrize("arguments", ["museum --json", "museum"])
def test_a_reader_that_goes_away_ends_it_without_a_word(idx: Path, arguments: str) -> None:
    done = search_in_a_shell(idx, f"{arguments} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (141, b"")
