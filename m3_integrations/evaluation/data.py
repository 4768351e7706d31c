"""What is evaluated on: folders in BEIR's layout, queries of one with the corpus of another, and MKQA's questions."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from m3_integrations.vectors import IntArray

_DEFAULT_SPLIT: Final = "test"


class Corpus:
    """The documents of a corpus.jsonl: ids in memory, texts read from the file whenever they are asked for.

    Args:
        path: A JSON object a line, with "_id", "text" and maybe "title".
        titles: Whether a text is its title, a space and its text, as BEIR joins them; otherwise its text alone.

    Attributes:
        ids: The id of every document, in the order of the file, which is the order of equal scores.
        digest: 32 hexadecimal digits of all ids and texts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no such object, an id comes twice, or there is no document.
    """

    def __init__(self, path: Path, *, titles: bool = True) -> None:
        self.path, self._titles = path, titles
        self.ids: list[str] = []
        digest, offsets = hashlib.blake2b(digest_size=16), []
        for number, (offset, line) in enumerate(_lines(path), start=1):
            row = _parse(line, path, number)
            self.ids.append(row["_id"])
            offsets.append(offset)
            digest.update(f"{row['_id']}\0{self._text(row)}\0".encode("utf-8", "surrogatepass"))
        if not self.ids:
            raise ValueError(f"{path} has no documents")
        if len(set(self.ids)) < len(self.ids):
            twice = next(id_ for id_ in self.ids if self.ids.count(id_) > 1)
            raise ValueError(f"{path} has more than one document with the id {twice!r}")
        self._offsets = np.array(offsets, dtype=np.int64)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def _text(self, row: Mapping[str, Any]) -> str:
        title = row.get("title") or ""
        return f"{title} {row['text']}".strip() if self._titles else str(row["text"]).strip()

    def texts(self, rows: IntArray | None = None) -> Texts:
        """Give the texts of these rows, of all if None, to be read one after another."""
        return Texts(self, np.arange(len(self)) if rows is None else rows)

    def read(self, rows: IntArray) -> Iterator[str]:
        """Read the texts of these rows from the file, in the order given."""
        with self.path.open("rb") as file:
            for row in rows.tolist():
                file.seek(self._offsets[row])
                yield self._text(_parse(file.readline(), self.path, row + 1))


@dataclass(frozen=True, eq=False)
class Texts:
    """Chosen texts of a corpus; their number is known before they are read, so that a progress bar knows its end."""

    corpus: Corpus
    rows: IntArray

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return self.corpus.read(self.rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Queries, the corpus they are asked of, and what is relevant to them.

    Attributes:
        name: What tables call it.
        corpus: The documents.
        queries: Text by id, of those queries that have judgements.
        qrels: For each of these queries, the gain of every judged document; 0 for one that is not relevant. Empty
            where relevance is decided by answers.
        answers: For each query, the strings of which a relevant document contains at least one; empty with qrels.
        unjudged: How many queries were left out because nothing is known about them.
    """

    name: str
    corpus: Corpus
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    answers: Mapping[str, Sequence[str]]
    unjudged: int = 0


def read_dataset(
    folder: str | os.PathLike[str],
    *,
    queries_from: str | os.PathLike[str] | None = None,
    split: str | None = None,
    titles: bool = True,
    name: str | None = None,
) -> Dataset:
    """Read a folder in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

    Args:
        folder: Where corpus.jsonl lies, and the other two unless they are taken from elsewhere.
        queries_from: A folder whose queries and judgements are used instead, for search across languages; or a file
            of MKQA's questions, a JSON object a line with "id", "question" and "answers".
        split: Which judgements; by default "test", or the only ones there are.
        titles: Whether titles are put before the texts, as BEIR does.
        name: What tables call it; by default the folders' names.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is not in the layout, or no query has judgements, or none of the judged documents is in
            the corpus.
    """
    folder = Path(folder)
    source = folder if queries_from is None else Path(queries_from)
    corpus = Corpus(folder / "corpus.jsonl", titles=titles)
    name = name or (folder.resolve().name if source == folder else f"{source.resolve().stem}→{folder.resolve().name}")
    if source.is_file():
        queries, answers = _read_questions(source)
        return Dataset(name=name, corpus=corpus, queries=queries, qrels={}, answers=answers)
    qrels = _read_qrels(_find_qrels(source / "qrels", split))
    texts = _read_queries(source / "queries.jsonl")
    if absent := sorted(qrels.keys() - texts.keys()):
        raise ValueError(f"{source} judges {len(absent)} queries that it does not have, such as {absent[0]!r}")
    queries = {id_: text for id_, text in texts.items() if id_ in qrels}
    if not queries:
        raise ValueError(f"{source} has no query with judgements")
    _check_documents(qrels, corpus)
    return Dataset(
        name=name, corpus=corpus, queries=queries, qrels=qrels, answers={}, unjudged=len(texts) - len(queries)
    )


def find_folders(folder: str | os.PathLike[str]) -> list[Path]:
    """Give the folder itself if it has a corpus.jsonl, or else those of its folders that have one, by name.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(folder)
    found = [
        path.parent for path in (folder / "corpus.jsonl", *sorted(folder.glob("*/corpus.jsonl"))) if path.is_file()
    ]
    if not found:
        raise FileNotFoundError(f"neither {folder} nor a folder in it has a corpus.jsonl")
    return found[:1] if found[0] == folder else found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give every line that is not blank, and where in the file it begins."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield offset, line
            offset += len(line)


def _parse(line: bytes, path: Path, number: int, keys: tuple[str, str] = ("_id", "text")) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, entry {number} is not JSON: {error}") from error
    if isinstance(row, dict) and isinstance(row.get(keys[0]), int):
        row[keys[0]] = str(row[keys[0]])  # MKQA's ids are numbers
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise ValueError(f"{path}, entry {number} must be an object with the strings {' and '.join(keys)}")
    return row


def _read_queries(path: Path) -> dict[str, str]:
    rows = [_parse(line, path, number) for number, (_, line) in enumerate(_lines(path), start=1)]
    return {row["_id"]: row["text"] for row in rows}


def _read_questions(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    queries, answers = {}, {}
    for number, (_, line) in enumerate(_lines(path), start=1):
        row = _parse(line, path, number, ("id", "question"))
        known = row.get("answers")
        if not isinstance(known, list) or not known or not all(isinstance(answer, str) for answer in known):
            raise ValueError(f"{path}, entry {number} must have answers, a list of one or more strings, got {known!r}")
        queries[row["id"]], answers[row["id"]] = row["question"], known
    if not queries:
        raise ValueError(f"{path} has no questions")
    return queries, answers


def _find_qrels(folder: Path, split: str | None) -> Path:
    there = sorted(path.stem for path in folder.glob("*.tsv"))
    if split is None:
        split = there[0] if len(there) == 1 else _DEFAULT_SPLIT
    if split not in there:
        raise FileNotFoundError(f"{folder} has no {split}.tsv, only: {', '.join(there) or 'nothing'}")
    return folder / f"{split}.tsv"


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, (_, line) in enumerate(_lines(path), start=1):
        cells = line.decode().rstrip("\r\n").split("\t")
        if number == 1 and cells[-1] == "score":
            continue
        try:
            query, document, gain = cells
            qrels.setdefault(query, {})[document] = int(gain)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} must be query-id, corpus-id and a whole number: {cells}"
            ) from error
    return qrels


def _check_documents(qrels: Mapping[str, Mapping[str, int]], corpus: Corpus) -> None:
    known = set(corpus.ids)
    judged = [document for gains in qrels.values() for document in gains]
    absent = [document for document in judged if document not in known]
    if len(absent) == len(judged):
        raise ValueError(f"none of the judged documents is in {corpus.path}: {absent[0]!r}, for instance, is not")
    if absent:
        warnings.warn(
            f"{len(absent)} of {len(judged)} judged documents are not in {corpus.path} and count as not found",
            stacklevel=3,
        )
