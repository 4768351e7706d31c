"""Small folders in BEIR's layout, and an encoder whose vectors are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.fakes import FakeEncoder


class WorldEncoder(FakeEncoder):
    """Random vectors, always the same for a text, with what evaluation also asks of an encoder."""

    max_length = 512
    dtype = "float32"
    pooling = "cls"


def write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_beir(
    folder: Path,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    split: str = "test",
) -> Path:
    """Write a collection; documents are texts without titles."""
    write_jsonl(folder / "corpus.jsonl", [{"_id": id_, "title": "", "text": text} for id_, text in documents.items()])
    write_jsonl(folder / "queries.jsonl", [{"_id": id_, "text": text} for id_, text in queries.items()])
    write_qrels(folder, qrels, split=split)
    return folder


def write_qrels(folder: Path, qrels: Mapping[str, Mapping[str, int]], *, split: str = "test") -> None:
    lines = [f"{query}\t{document}\t{gain}\n" for query, gains in qrels.items() for document, gain in gains.items()]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")


def write_world(folder: Path, documents: int = 60, queries: int = 12) -> Path:
    """Texts of one to six words, and for each query one to three judged documents of gain 0 to 2."""
    texts = {f"d{i}": " ".join(["word"] * (i % 6 + 1)) + f" {i}" for i in range(documents)}
    asked = {f"q{i}": f"question {i} of them" for i in range(queries)}
    qrels = {
        id_: {f"d{(7 * i + 11 * j) % documents}": (i + j) % 3 for j in range(1 + i % 3)} for i, id_ in enumerate(asked)
    }
    return write_beir(folder, texts, asked, qrels)
