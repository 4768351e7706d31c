"""Scripts that are run again: the same documents are left, what went is gone, and only new texts are encoded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_text_splitters import RecursiveCharacterTextSplitter

from m3_integrations import M3Encoder, Store, open_store
from m3_integrations.langchain import M3HybridRetriever, M3VectorStore
from tests.fakes import FakeEncoder

Cleanup = Literal["incremental", "full", "scoped_full"]
Texts = dict[str, list[str]]
"""Of every source."""


@pytest.fixture(params=["memory", "folder"])
def vectors(request: pytest.FixtureRequest, fake: FakeEncoder, tmp_path: Path) -> Iterator[M3VectorStore]:
    with open_store(tmp_path / "store" if request.param == "folder" else None) as store:
        yield M3VectorStore(encoder=fake, store=store)


# The texts of every source, run by run: one is changed, one goes, one goes entirely, one comes.
RUNS: list[Texts] = [
    {"a": ["a one", "a two"], "b": ["b one", "b two"], "c": ["c one"]},
    {"a": ["a one", "a two, changed"], "b": ["b one", "b two"]},
    {"a": ["a two, changed"], "d": ["d one", "d two"]},
]


def as_documents(run: Texts) -> list[Document]:
    return [Document(text, metadata={"source": source}) for source, texts in run.items() for text in texts]


def held(store: Store) -> list[tuple[str, str]]:
    return sorted((record.metadata["source"], record.text) for record in store.records())


def kept_after(before: Texts, run: Texts, cleanup: Cleanup | None) -> Texts:
    """What must be there, source by source, after one more run."""
    if cleanup == "full":
        return run
    if cleanup is None:
        sources = [*before, *(source for source in run if source not in before)]
        return {source: list(dict.fromkeys(before.get(source, []) + run.get(source, []))) for source in sources}
    return before | run


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("cleanup", [None, "incremental", "full", "scoped_full"])
async def test_indexing_three_times_leaves_what_the_cleanup_says(
    vectors: M3VectorStore, fake: FakeEncoder, cleanup: Cleanup | None, is_async: bool
) -> None:
    manager = InMemoryRecordManager(namespace="test")
    manager.create_schema()
    asked: dict[str, Any] = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
    expected: Texts = {}
    for run in RUNS:
        new = [text for source, texts in run.items() for text in texts if text not in expected.get(source, [])]
        gone = expected
        expected = kept_after(expected, run, cleanup)
        gone = {source: [t for t in texts if t not in expected.get(source, [])] for source, texts in gone.items()}
        for repeat in range(2):  # the same again changes nothing
            documents = as_documents(run)
            result = (
                await aindex(documents, manager, vectors, **asked)
                if is_async
                else index(documents, manager, vectors, **asked)
            )
            assert [text for _, text in fake.encoded] == ([] if repeat else new)
            assert result["num_added"] == len(fake.encoded)
            assert result["num_deleted"] == (0 if repeat else sum(map(len, gone.values())))
            assert held(vectors.store) == sorted((s, text) for s, texts in expected.items() for text in texts)
            fake.encoded.clear()


def test_a_forced_update_replaces(vectors: M3VectorStore) -> None:
    manager = InMemoryRecordManager(namespace="test")
    manager.create_schema()
    for forced in (False, True):
        result = index(as_documents(RUNS[0]), manager, vectors, force_update=forced, key_encoder="sha256")
        assert (result["num_added"], result["num_updated"]) == ((0, 5) if forced else (5, 0))
    assert vectors.store.count() == 5


async def test_index_may_not_replace_sources_because_it_brings_a_part_of_each(vectors: M3VectorStore) -> None:
    manager = InMemoryRecordManager(namespace="test")
    manager.create_schema()
    vectors.add_documents(as_documents(RUNS[0]))
    asked: dict[str, Any] = {"key_encoder": "sha256", "upsert_kwargs": {"source_key": "source"}}
    with pytest.raises(TypeError, match="index\\(\\) passes only new documents of a source"):
        index(as_documents(RUNS[1]), manager, vectors, **asked)
    with pytest.raises(TypeError, match="index\\(\\) passes only new documents of a source"):
        await aindex(as_documents(RUNS[1]), manager, vectors, **asked)
    assert vectors.store.count() == 5


def test_what_a_later_run_left_out_is_not_found(vectors: M3VectorStore) -> None:
    manager = InMemoryRecordManager(namespace="test")
    manager.create_schema()
    for run in RUNS:
        index(as_documents(run), manager, vectors, cleanup="full", source_id_key="source", key_encoder="sha256")
        for query in ("a two", "c one", "d one"):
            found = {d.page_content for d in vectors.similarity_search(query, 9)}
            assert found == {text for texts in run.values() for text in texts}


# A whole script

SPLITTER = RecursiveCharacterTextSplitter(chunk_size=50, chunk_overlap=0, separators=["\n"], keep_separator=False)


def loaded(folder: Path) -> list[Document]:
    documents = [Document(path.read_text(), metadata={"source": path.name}) for path in sorted(folder.glob("*.txt"))]
    return SPLITTER.split_documents(documents)


def by_index(folder: Path, vectors: M3VectorStore, home: Path) -> None:
    manager = SQLRecordManager("m3", db_url=f"sqlite:///{home / 'records.sql'}")
    manager.create_schema()
    index(loaded(folder), manager, vectors, cleanup="full", source_id_key="source", key_encoder="sha256")
    manager.engine.dispose()


def by_source(folder: Path, vectors: M3VectorStore, home: Path) -> None:
    documents = loaded(folder)
    vectors.add_documents(documents, source_key="source")
    vectors.delete(filter={"source": {"$nin": [document.metadata["source"] for document in documents]}})


def by_retriever(folder: Path, vectors: M3VectorStore, home: Path) -> None:
    retriever = M3HybridRetriever(encoder=vectors.encoder, store=vectors.store)
    documents = loaded(folder)
    retriever.add_documents(documents, source_key="source")
    retriever.delete(filter={"source": {"$nin": [document.metadata["source"] for document in documents]}})


@pytest.mark.parametrize("script", [by_index, by_source, by_retriever])
def test_a_script_over_a_folder_run_three_times(script: Any, small: Path, tmp_path: Path) -> None:
    """Each run opens the store anew, as a process would; a file is changed and one deleted between the last two."""
    texts = tmp_path / "texts"
    texts.mkdir()
    lines = {name: [f"{name} says in line {i} what nobody else does" for i in range(8)] for name in ("x", "y", "z")}
    for name, each in lines.items():
        (texts / f"{name}.txt").write_text("\n".join(each))

    def run() -> tuple[list[str], int]:
        with (
            M3Encoder(small, shared=False, device="cpu") as encoder,
            open_store(tmp_path / "store") as store,
        ):
            script(texts, M3VectorStore(encoder=encoder, store=store), tmp_path)
            return sorted(record.text for record in store.records()), encoder.stats.encoded_texts

    every = sorted(line for each in lines.values() for line in each)
    assert run() == (every, 24)
    assert run() == (every, 0)
    lines["x"][3] = "x says something new in line 3, which nobody knew"
    (texts / "x.txt").write_text("\n".join(lines["x"]))
    (texts / "z.txt").unlink()
    assert run() == (sorted(lines["x"] + lines["y"]), 1)
    with M3Encoder(small, shared=False, device="cpu") as encoder, open_store(tmp_path / "store") as store:
        vectors = M3VectorStore(encoder=encoder, store=store)
        for old in ("x says in line 3 what nobody else does", "z says in line 3 what nobody else does"):
            found = {document.page_content for document in vectors.similarity_search(old, 99)}
            assert found == {*lines["x"], *lines["y"]}
