"""A checkpoint without heads: every class raises the same error at once; what still works warns once."""

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from m3_integrations import M3Encoder, ModeWeights, Searcher, SearchOptions, langchain, langchain_qdrant, llama_index
from m3_integrations.cli import app
from m3_integrations.evaluation.modes import check_columns
from m3_integrations.store import open_store

LACKS = r"the checkpoint .*plain has no heads for {}, only dense can be computed; BGE-M3's heads are in colbert_linear"


@pytest.fixture(scope="module")
def plain(small: Path, tmp_path_factory: pytest.TempPathFactory) -> M3Encoder:
    """A checkpoint without heads, as after a download of only *.json and *.safetensors."""
    folder = tmp_path_factory.mktemp("heads") / "plain"
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*_linear.pt"))
    return M3Encoder(folder, device="cpu")


DOORS: dict[str, Callable[[M3Encoder], Any]] = {
    "encode": lambda e: e.encode(["a"], modes=("lexical",)),
    "encode_batches": lambda e: e.encode_batches(["a"], modes=("dense", "lexical")),
    "searcher": lambda e: Searcher(e, open_store(), SearchOptions(mode="lexical")),
    "searcher.with_options": lambda e: Searcher(e, open_store(), SearchOptions(mode="dense")).with_options(
        SearchOptions(mode="dense+lexical")
    ),
    "searcher.search": lambda e: Searcher(e, open_store(), SearchOptions(mode="dense")).search("a", mode="lexical"),
    "langchain.retriever": lambda e: langchain.M3HybridRetriever(encoder=e, mode="lexical"),
    "langchain_qdrant": lambda e: langchain_qdrant.M3SparseEmbeddings(encoder=e),
    "llama_index.retriever": lambda e: llama_index.M3HybridRetriever(encoder=e, mode="dense+lexical"),
    "llama_index.sparse": lambda e: llama_index.M3SparseEmbedding(encoder=e),
    "sparse_doc_fn": llama_index.sparse_doc_fn,
    "sparse_query_fn": llama_index.sparse_query_fn,
    "evaluate": lambda e: check_columns(["lexical"], e.modes, e.model),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_an_absent_mode_is_refused_at_once_and_everywhere_alike(plain: M3Encoder, door: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=LACKS.format("lexical")):
        door(plain)


ALL_MODES: dict[str, Callable[[M3Encoder], Any]] = {
    "searcher": lambda e: Searcher(e, open_store()),
    "langchain.retriever": lambda e: langchain.M3HybridRetriever(encoder=e),
    "langchain.rerank": lambda e: langchain.M3Rerank(encoder=e),
    "langchain.cross_encoder": lambda e: langchain.M3CrossEncoder(encoder=e),
    "llama_index.retriever": lambda e: llama_index.M3HybridRetriever(encoder=e),
    "llama_index.rerank": lambda e: llama_index.M3Rerank(encoder=e),
}


@pytest.mark.parametrize("door", ALL_MODES.values(), ids=ALL_MODES)
def test_where_all_modes_become_dense_it_is_said_once_and_at_the_users_line(
    plain: M3Encoder, door: Callable[..., Any]
) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = door(plain)
        for _ in range(2):
            if hasattr(made, "add_texts"):
                made.add_texts(["a text"])
                made.invoke("a")
    (warning,) = said
    assert warning.filename == __file__
    assert str(warning.message).startswith(f"the checkpoint {plain.model} has no heads for lexical, multi_vector")
    assert "mode='all' means dense here" in str(warning.message)


def test_dense_that_is_asked_for_is_silent(plain: M3Encoder) -> None:
    """No warning: pytest turns warnings into errors."""
    for door in (langchain.M3HybridRetriever, llama_index.M3HybridRetriever):
        door(encoder=plain, mode="dense")
    Searcher(plain, open_store(), SearchOptions(mode="dense")).search("a")
    langchain.M3Embeddings(encoder=plain)
    llama_index.M3Embedding(encoder=plain)
    assert plain.encode(["a"]).modes == plain.score("a", ["b"]).modes == ("dense",)


@pytest.mark.parametrize(
    "door",
    [
        lambda e, w: Searcher(e, open_store(), SearchOptions(weights=w, mode="dense")),
        lambda e, w: langchain.M3HybridRetriever(encoder=e, weights=w, mode="dense"),
        lambda e, w: langchain.M3Rerank(encoder=e, weights=w),
        lambda e, w: langchain.M3CrossEncoder(encoder=e, weights=w),
        lambda e, w: llama_index.M3HybridRetriever(encoder=e, weights=w, mode="dense"),
        lambda e, w: llama_index.M3Rerank(encoder=e, weights=w),
        lambda e, w: e.score("a", ["b"], weights=w),
    ],
)
def test_weights_on_absent_modes_alone_are_refused_at_once(plain: M3Encoder, door: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="puts all its weight on absent modes: only dense"):
        door(plain, ModeWeights(0, 1, 1))


def test_the_command_line_says_it_in_one_line(plain: M3Encoder, tmp_path: Path) -> None:
    with open_store(tmp_path / "idx") as store:
        Searcher(plain, store, SearchOptions(mode="dense")).add(["a text"])
    arguments = ["search", str(tmp_path / "idx"), "text", "--model", plain.model, "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--mode", "lexical"])
    assert result.exit_code == 1
    assert re.search(LACKS.format("lexical"), result.stderr)
    with pytest.warns(UserWarning, match="mode='all' means dense here"):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--mode", "dense"]).exit_code == 0


def test_an_index_without_heads_is_announced_before_it_is_made(plain: M3Encoder, small: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("a text")
    arguments = ["index", str(tmp_path / "docs"), "--device", "cpu", "--size", "64", "--store"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "idx"), "--model", plain.model])
    assert result.exit_code == 0
    assert re.search("note: " + LACKS.format("lexical, multi_vector"), result.stderr)
    whole = CliRunner().invoke(app, [*arguments, str(tmp_path / "whole"), "--model", str(small)])
    assert (whole.exit_code, "note:" in whole.stderr) == (0, False)
