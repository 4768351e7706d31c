import subprocess
import sys

import pytest

import m3_integrations.langchain
import m3_integrations.langchain_qdrant

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder
class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
try:
    import m3_integrations.{module}
except ImportError as error:
    print(type(error).__name__, error)
"""


def outcome(module: str, absent: str) -> str:
    """What importing one of our modules says where another module is absent."""
    code = WITHOUT.format(module=module, absent=absent)
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_the_public_names_are_these() -> None:
    assert m3_integrations.langchain.__all__ == [
        "M3CrossEncoder",
        "M3Document",
        "M3Embeddings",
        "M3Excerpt",
        "M3HybridRetriever",
        "M3Rerank",
        "M3Translator",
        "M3VectorStore",
    ]
    assert m3_integrations.langchain_qdrant.__all__ == ["M3SparseEmbeddings"]


@pytest.mark.parametrize(
    ("module", "absent", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("langchain.retriever", "langchain_core", "langchain"),
        ("langchain_qdrant", "langchain_qdrant", "langchain-qdrant"),
        ("langchain_milvus", "langchain_milvus", "langchain-milvus"),
    ],
)
def test_a_missing_framework_is_named_with_the_command_that_installs_it(module: str, absent: str, extra: str) -> None:
    assert outcome(module, absent) == (
        f"ImportError m3_integrations.{extra.replace('-', '_')} needs {absent.replace('_', '-')}: "
        f"pip install 'PATH_TO_THE_CLONE[{extra}]'"
    )


@pytest.mark.parametrize(
    ("module", "absent"),
    [("langchain", "langchain_core.retrievers"), ("langchain", "numpy"), ("langchain_qdrant", "qdrant_client")],
)
def test_a_broken_framework_keeps_its_own_error(module: str, absent: str) -> None:
    assert outcome(module, absent) == f"ModuleNotFoundError No module named {absent!r}"


def test_importing_the_module_loads_no_network_library() -> None:
    code = "import sys, m3_integrations.langchain; print({'torch', 'transformers'} & set(sys.modules) or 'none')"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "none"
