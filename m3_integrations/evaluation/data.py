"""Datasets: folders in BEIR's layout, or queries from one place and the corpus from another."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from m3_integrations.evaluation.answers import check_answer_metrics, judge_by_answers, read_questions
from m3_integrations.evaluation.corpus import Corpus, parse_row, read_lines
from m3_integrations.evaluation.metrics import MOST_GAIN, check_gains, check_judgements, check_metrics
from m3_integrations.vectors import IntArray

_DEFAULT_SPLIT: Final = "test"

_LAYOUT: Final = (
    'a data set is a folder with corpus.jsonl (a line: {"_id": .., "title": .., "text": ..}), queries.jsonl '
    '({"_id": .., "text": ..}) and qrels/test.tsv (query-id, corpus-id and score, with tabs between)'
)


@dataclass(frozen=True, eq=False)
class JudgedQueries:
    """Queries with judgements.

    Attributes:
        texts: The text of each query that has judgements, by its id.
        qrels: For each of these queries, the gain of every judged document; 0 for one that is not relevant.
        unjudged: The number of queries that were left out because they have no judgements.

    Raises:
        ValueError: If a query has no judgements, or for the reasons of `metrics.check_gains`.
    """

    texts: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    unjudged: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "qrels", _judgements(self.texts, self.qrels))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset:
    """A corpus, and queries with judgements.

    Attributes:
        name: Its name in tables.
        corpus: The documents.
        queries: The text of each query that has judgements, by its id.
        qrels: For each of these queries, the gain of every judged document; 0 for one that is not relevant. Empty if
            relevance is decided by answers.
        answers: For each query, the strings of which a relevant document contains at least one; empty if there are
            qrels.
        unjudged: The number of queries that were left out because they have no judgements.

    Raises:
        ValueError: If a query has no judgements, or for the reasons of `metrics.check_gains`.
    """

    name: str
    corpus: Corpus
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    answers: Mapping[str, Sequence[str]]
    unjudged: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "qrels", {} if self.answers else _judgements(self.queries, self.qrels))

    def __repr__(self) -> str:
        judged_by = "answers" if self.answers else "qrels"
        return f"Dataset({self.name!r}, {len(self.corpus)} documents, {len(self.queries)} queries, {judged_by})"

    def check_metrics(self, metrics: Sequence[str] | None) -> Sequence[str]:
        """Return the metrics, or the usual ones for this kind of relevance if None.

        Raises:
            TypeError: If metrics is one string.
            ValueError: If metrics is empty, one is unknown, or one has no meaning for answers or for one of the gains.
        """
        checked = check_answer_metrics(metrics) if self.answers else check_metrics(metrics)
        check_judgements(checked, self.qrels)
        return checked

    def judge(self, found: Mapping[str, IntArray]) -> Mapping[str, Mapping[str, int]]:
        """Return the gain of every query's judged documents.

        Args:
            found: The rows of the documents that each query found. If answers decide, only these are judged.
        """
        if self.answers:
            return judge_by_answers(self.corpus, self.answers, found)
        return {query: self.qrels[query] for query in found}


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
        folder: The folder of corpus.jsonl, and of the other two files unless queries_from is given.
        queries_from: A folder whose queries and judgements are used instead, for search across languages. Or a file of
            MKQA's questions: a JSON object in each line with "id", "question" and "answers".
        split: The name of the judgements; by default "test", or the only split if there is one.
        titles: Whether titles are put before the texts, as BEIR does.
        name: Its name in tables; by default the folders' names as they were passed, those of links included.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is not in the layout, or no query has judgements, or none of the judged documents is in
            the corpus.
    """
    folder = Path(folder)
    source = folder if queries_from is None else Path(queries_from)
    _check_files(folder, source)
    corpus = Corpus(folder / "corpus.jsonl", titles=titles)
    name = name or (_name(folder) if source == folder else f"{Path(_name(source)).stem}→{_name(folder)}")
    if source.is_file():
        queries, answers = read_questions(source)
        return Dataset(name=name, corpus=corpus, queries=queries, qrels={}, answers=answers)
    judged = read_queries(source, split=split)
    _check_documents(judged.qrels, corpus)
    return Dataset(
        name=name, corpus=corpus, queries=judged.texts, qrels=judged.qrels, answers={}, unjudged=judged.unjudged
    )


def read_queries(folder: str | os.PathLike[str], *, split: str | None = None) -> JudgedQueries:
    """Read queries.jsonl and qrels/SPLIT.tsv of a folder in BEIR's layout; it may lack corpus.jsonl.

    Args:
        folder: The folder of these files.
        split: The name of the judgements; by default "test", or the only split if there is one.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is not in the layout, or no query has judgements.
    """
    folder = Path(folder)
    if not (folder / "queries.jsonl").is_file():
        raise FileNotFoundError(f"{folder / 'queries.jsonl'} is not there: {_LAYOUT}")
    qrels = _read_qrels(_find_qrels(folder / "qrels", split))
    texts = _read_texts(folder / "queries.jsonl")
    if absent := sorted(qrels.keys() - texts.keys()):
        raise ValueError(
            f"the qrels of {folder} name {len(absent)} queries that queries.jsonl lacks, such as {absent[0]!r}"
        )
    queries = {id_: text for id_, text in texts.items() if id_ in qrels}
    if not queries:
        raise ValueError(f"{folder} has no query with judgements")
    return JudgedQueries(queries, qrels, len(texts) - len(queries))


def find_folders(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the folder itself if it has a corpus.jsonl, or else the folders in it that have one, by name.

    Raises:
        FileNotFoundError: If neither the folder nor a folder in it has one.
    """
    folder = Path(folder)
    found = [
        path.parent for path in (folder / "corpus.jsonl", *sorted(folder.glob("*/corpus.jsonl"))) if path.is_file()
    ]
    if not found:
        raise FileNotFoundError(f"neither {folder} nor a folder in it has a corpus.jsonl: {_LAYOUT}")
    return found[:1] if found[0] == folder else found


def _name(path: Path) -> str:
    """Return the name of a file or a folder. A link has its own name: the targets of several may have the same."""
    own = path.absolute().name
    return own if own not in {"", ".."} else path.resolve().name


def _check_files(folder: Path, source: Path) -> None:
    """Raise FileNotFoundError if a file of the layout is missing. Called before a large corpus is read."""
    if not source.exists():
        raise FileNotFoundError(
            f"{source} is not there: queries come from a folder in this layout, or a file of MKQA's"
        )
    needed = [folder / "corpus.jsonl"] if source.is_file() else [folder / "corpus.jsonl", source / "queries.jsonl"]
    if absent := [path for path in needed if not path.is_file()]:
        raise FileNotFoundError(f"{absent[0]} is not there: {_LAYOUT}")


def _read_texts(path: Path) -> dict[str, str]:
    known: set[str] = set()
    rows = [parse_row(line, path, number, known=known) for number, (_, line) in enumerate(read_lines(path), start=1)]
    return {row["_id"]: row["text"] for row in rows}


def _find_qrels(folder: Path, split: str | None) -> Path:
    there = sorted(path.stem for path in folder.glob("*.tsv"))
    if split is None:
        split = there[0] if len(there) == 1 else _DEFAULT_SPLIT
    if split not in there:
        raise FileNotFoundError(f"{folder} has no {split}.tsv, only: {', '.join(there) or 'nothing'}; {_LAYOUT}")
    return folder / f"{split}.tsv"


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    lines = path.read_bytes().splitlines(keepends=True)
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    for row, (number, line) in enumerate(numbered):
        cells = line.decode("utf-8-sig", "backslashreplace").rstrip("\r\n").split("\t")
        if row == 0 and cells[-1] == "score":
            continue
        try:
            line.decode()
            query, document, cell = cells
            gain = int(cell)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} must be query-id, corpus-id and a whole number, in UTF-8: {cells}"
            ) from error
        if gain > MOST_GAIN:
            raise ValueError(f"{path}, line {number} has the score {gain}: scores are gains of at most {MOST_GAIN:,}")
        if qrels.setdefault(query, {}).setdefault(document, gain) != gain:
            raise ValueError(f"{path}, line {number} judges {query!r} and {document!r} again with another score")
    return qrels


def _judgements(queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return the checked judgements of the queries."""
    if unjudged := [query for query in queries if query not in qrels]:
        raise ValueError(f"{len(unjudged)} queries have no judgements, such as {unjudged[0]!r}: leave them out")
    return check_gains({query: qrels[query] for query in queries})


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
