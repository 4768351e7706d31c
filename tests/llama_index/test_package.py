"""What the package exports, and what it says without LlamaIndex."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore

import m3_integrations.llama_index
from m3_integrations.llama_index import M3Embedding, M3HybridRetriever, M3NodeWithScore, M3Rerank, M3SparseEmbedding

EXPECTED = [
    "M3Embedding",
    "M3Excerpt",
    "M3HybridRetriever",
    "M3NodeWithScore",
    "M3Rerank",
    "M3SparseEmbedding",
    "M3VectorStore",
    "sparse_doc_fn",
    "sparse_query_fn",
]


def test_the_exported_names_are_these() -> None:
    assert m3_integrations.llama_index.__all__ == sorted(EXPECTED)
    assert all(hasattr(m3_integrations.llama_index, name) for name in EXPECTED)


def test_every_class_is_of_the_kind_that_llama_index_expects() -> None:
    for made, base in (
        (M3Embedding, BaseEmbedding),
        (M3SparseEmbedding, BaseSparseEmbedding),
        (M3Rerank, BaseNodePostprocessor),
        (M3HybridRetriever, BaseRetriever),
        (M3NodeWithScore, NodeWithScore),
    ):
        assert issubclass(made, base)


class Missing(MetaPathFinder):
    """Makes a module one that is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.mark.parametrize(
    ("missing", "is_said_so"),
    [
        ("llama_index", True),
        ("llama_index.core", True),
        ("llama_index.core.base.embeddings.base", False),
        ("pydantic", False),
    ],
)
def test_only_a_missing_llama_index_is_answered_with_how_to_install_it(
    missing: str, is_said_so: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if f"{name}.".startswith(("m3_integrations.llama_index.", f"{missing}."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(missing), *sys.meta_path])
    with pytest.raises(ImportError) as raised:
        importlib.import_module("m3_integrations.llama_index")
    assert ("pip install 'PATH_TO_THE_CLONE[llama-index]'" in str(raised.value)) is is_said_so
    if not is_said_so:
        assert raised.value.name == missing
