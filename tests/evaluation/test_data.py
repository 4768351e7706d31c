"""Reading folders in BEIR's layout, pairs of folders, and MKQA's questions."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from m3_integrations.evaluation import Corpus, find_folders, read_dataset
from m3_integrations.evaluation.answers import answer_words, contains_answer, document_words
from tests.evaluation.worlds import write_beir, write_jsonl, write_qrels


def test_titles_are_joined_as_beir_does_or_left_out(tmp_path: Path) -> None:
    rows = [
        {"_id": "a", "title": "Salt", "text": "is white. "},
        {"_id": "b", "title": "", "text": " Sugar too."},
        {"_id": "c", "text": "No title."},
    ]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    with_titles, without = Corpus(tmp_path / "corpus.jsonl"), Corpus(tmp_path / "corpus.jsonl", titles=False)
    assert list(with_titles.texts()) == ["Salt is white.", "Sugar too.", "No title."]
    assert list(without.texts()) == ["is white.", "Sugar too.", "No title."]
    assert list(with_titles.texts(np.array([2, 0]))) == ["No title.", "Salt is white."]
    assert len(with_titles.texts(np.array([2, 0]))) == 2
    assert with_titles.digest != without.digest


def test_queries_without_judgements_are_left_out_and_counted(tmp_path: Path) -> None:
    write_beir(tmp_path, {"a": "x", "b": "y"}, {"1": "p", "2": "q", "3": "r"}, {"1": {"a": 2, "b": 0}, "3": {"b": 1}})
    dataset = read_dataset(tmp_path)
    assert dataset.queries == {"1": "p", "3": "r"}
    assert dataset.qrels == {"1": {"a": 2, "b": 0}, "3": {"b": 1}}
    assert dataset.unjudged == 1
    assert dataset.name == tmp_path.name


def test_queries_of_one_folder_are_asked_of_anothers_corpus(tmp_path: Path) -> None:
    english = write_beir(tmp_path / "en", {"a": "salt"}, {"1": "what is salt"}, {"1": {"a": 1}})
    german = write_beir(tmp_path / "de", {"a": "Salz"}, {"1": "was ist Salz"}, {"1": {"a": 1}})
    dataset = read_dataset(german, queries_from=english)
    assert (list(dataset.corpus.texts()), dataset.queries, dataset.name) == (["Salz"], {"1": "what is salt"}, "en→de")
    other = write_beir(tmp_path / "fr", {"z": "sel"}, {"1": "le sel"}, {"1": {"z": 1}})
    with pytest.raises(ValueError, match="none of the judged documents is in"):
        read_dataset(other, queries_from=english)


def test_a_data_set_has_the_name_of_its_folder_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_beir(tmp_path / "en", {"a": "salt"}, {"1": "what is salt"}, {"1": {"a": 1}})
    (folder / "inner").mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    named = [read_dataset(path).name for path in (folder, ".", "inner/..", "../link", "../link/")]
    assert named == ["en", "en", "en", "link", "link"]
    assert read_dataset("../link", queries_from=".").name == "en→link"


def test_judged_documents_that_are_absent_are_warned_of(tmp_path: Path) -> None:
    write_beir(tmp_path, {"a": "x"}, {"1": "p"}, {"1": {"a": 1, "gone": 1}})
    with pytest.warns(UserWarning, match="1 of 2 judged documents are not in"):
        assert read_dataset(tmp_path).qrels == {"1": {"a": 1, "gone": 1}}


def test_the_split_is_test_or_the_only_one_or_the_one_asked_for(tmp_path: Path) -> None:
    write_beir(tmp_path, {"a": "x", "b": "y"}, {"1": "p"}, {"1": {"a": 1}}, split="dev")
    assert read_dataset(tmp_path).qrels == {"1": {"a": 1}}
    write_qrels(tmp_path, {"1": {"b": 1}}, split="train")
    with pytest.raises(FileNotFoundError, match=r"no test\.tsv, only: dev, train"):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, split="train").qrels == {"1": {"b": 1}}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n', "one entry .* 'a'; the second is 2"),
        ("queries.jsonl", '{"_id": "1", "text": "x"}\n{"_id": 1, "text": "y"}\n', "more than one entry .* '1'"),
        ("queries.jsonl", '{"_id": "1", "text": "\\ud800"}\n', "entry 1 holds half a surrogate pair"),
        ("corpus.jsonl", '{"_id": "a", "text": "x", "title": "\\udfff"}\n', "entry 1 holds half a surrogate pair"),
        ("corpus.jsonl", '{"_id": "\\ud800", "text": "x"}\n', "entry 1 holds half a surrogate pair"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n\n{"_id": "a"}\n', "entry 2 must be an object"),
        ("corpus.jsonl", '{"_id": "a", "text": "x", "title": ["y"]}\n', r"entry 1: \"title\" must be .* got \['y'\]"),
        ("corpus.jsonl", "{", "entry 1 is not JSON"),
        ("queries.jsonl", "[" * 100_000, "entry 1 is not JSON"),
        ("corpus.jsonl", "\n", "no documents"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\ta\tmuch\n", "line 2 must be"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n1 a 1\n", "line 2 must be"),
        ("qrels/test.tsv", "\n\nquery-id\tcorpus-id\tscore\n\n1 a 1\n", "line 5 must be"),
        ("qrels/test.tsv", "1\ta\t1\n1\t\udcff\t1\n", "line 2 must be .* in UTF-8"),
        ("qrels/test.tsv", "1\ta\t1700000000\n", "line 1 has the score 1700000000: scores are gains of at most 1,000"),
        ("qrels/test.tsv", "1\ta\t1\n1\ta\t0\n", "line 2 judges '1' and 'a' again"),
        ("qrels/test.tsv", "9\ta\t1\n", "name 1 queries that queries.jsonl lacks, such as '9'"),
    ],
)
def test_what_is_not_in_the_layout_is_refused_with_its_place(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    write_beir(tmp_path, {"a": "x"}, {"1": "p"}, {"1": {"a": 1}})
    (tmp_path / file).write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_dataset(tmp_path)


def test_judgements_that_stand_twice_alike_are_no_error(tmp_path: Path) -> None:
    write_beir(tmp_path, {"a": "x"}, {"1": "p"}, {"1": {"a": 1}})
    (tmp_path / "qrels" / "test.tsv").write_text("1\ta\t1\n1\ta\t1\n")
    assert read_dataset(tmp_path).qrels == {"1": {"a": 1}}


def test_the_look_for_an_id_that_comes_twice_is_linear(tmp_path: Path) -> None:
    rows = [{"_id": str(i), "text": "x"} for i in range(20_000)]
    write_jsonl(tmp_path / "once.jsonl", rows)
    write_jsonl(tmp_path / "twice.jsonl", [*rows, rows[-1]])
    started = time.process_time()
    Corpus(tmp_path / "once.jsonl")
    once_s = time.process_time() - started
    with pytest.raises(ValueError, match="'19999'; the second is 20001"):
        Corpus(tmp_path / "twice.jsonl")
    assert time.process_time() - started < 6 * once_s  # twice as much work; counting every id took twenty times


def test_a_folder_of_folders_is_found(tmp_path: Path) -> None:
    for name in ("de", "en"):
        write_beir(tmp_path / name, {"a": "x"}, {"1": "p"}, {"1": {"a": 1}})
    assert find_folders(tmp_path) == [tmp_path / "de", tmp_path / "en"]
    assert find_folders(tmp_path / "de") == [tmp_path / "de"]
    with pytest.raises(FileNotFoundError, match="nor a folder in it"):
        find_folders(tmp_path / "nowhere")


def test_mkqas_questions_are_read_with_their_answers(tmp_path: Path) -> None:
    write_beir(tmp_path / "nq", {"a": "x"}, {}, {})
    write_jsonl(tmp_path / "de.jsonl", [{"id": -512, "question": "Wer?", "answers": ["Ada", "A. L."]}])
    dataset = read_dataset(tmp_path / "nq", queries_from=tmp_path / "de.jsonl")
    assert dataset.queries == {"-512": "Wer?"}
    assert dataset.answers == {"-512": ["Ada", "A. L."]}
    assert (dataset.qrels, dataset.name) == ({}, "de→nq")
    write_jsonl(tmp_path / "de.jsonl", [{"id": 1, "question": "Wer?", "answers": ["a"]}] * 2)
    with pytest.raises(ValueError, match="more than one entry with the id '1'"):
        read_dataset(tmp_path / "nq", queries_from=tmp_path / "de.jsonl")
    write_jsonl(tmp_path / "de.jsonl", [{"id": 1, "question": "Wer?", "answers": []}])
    with pytest.raises(ValueError, match="entry 1 must have answers"):
        read_dataset(tmp_path / "nq", queries_from=tmp_path / "de.jsonl")


@pytest.mark.parametrize(
    ("document", "answer", "contained"),
    [
        ("It was Ada Lovelace.", "ada lovelace", True),
        ("It was Ada, Lovelace.", "Ada Lovelace", False),  # a comma is a word of its own
        ("Adamant", "Ada", False),
        ("caf\u00e9 au lait", "CAFE\u0301", True),  # composed and decomposed
        ("caf\u00e9", "cafe", False),
        ("1997\u20132003", "1997-2003", True),  # an en dash is a hyphen in documents
        ("1997-2003", "1997\u20132003", False),  # and is not in answers, as in the reference
        ("the \u2018king\u2019", "'king'", True),
        ("\u5317\u4eac\u5e02", "\u5317\u4eac", False),  # a run of letters is one word, in Chinese too
        ("a\u0301b", "\u00e1b", True),
    ],
)
def test_answers_are_found_as_runs_of_whole_words(document: str, answer: str, contained: bool) -> None:
    assert contains_answer(document_words(document), [answer_words(answer)]) is contained


def test_any_of_the_answers_is_enough() -> None:
    words = document_words("The answer is forty-two.")
    assert contains_answer(words, [answer_words("seven"), answer_words("forty-two")])
    assert not contains_answer(words, [answer_words("seven")])
    assert not contains_answer(words, [])


def test_a_title_that_a_data_frame_lacks_is_no_word(tmp_path: Path) -> None:
    write_beir(tmp_path, {"a": "x", "b": "y", "c": "z"}, {"1": "p"}, {"1": {"a": 1}})
    rows = [{"_id": "a", "title": math.nan, "text": "x"}, {"_id": "b", "title": None, "text": "y"}]
    rows.append({"_id": "c", "title": 1917, "text": "z"})
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_dataset(tmp_path).corpus.texts()) == ["x", "y", "1917 z"]
