"""The adapters' docstrings have the sections that each framework's own have, and their examples run."""

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from llama_index.core import Document as NodeDocument
from llama_index.core import Settings
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import BaseRetriever
from qdrant_client import QdrantClient

import m3_integrations.langchain
import m3_integrations.langchain_qdrant
import m3_integrations.llama_index
from m3_integrations import M3Encoder
from m3_integrations.langchain import M3VectorStore
from m3_integrations.llama_index import M3HybridRetriever

PACKAGE = Path(__file__).parent.parent / "m3_integrations"
ADAPTERS = [*PACKAGE.glob("langchain*/*.py"), *PACKAGE.glob("langchain_*.py"), *PACKAGE.glob("llama_index/*.py")]

# An example loads a model of 2 GB and asks a server; here the bundled one and a store in memory do.
STAND_INS = {
    '"BAAI/bge-m3"': '"tiny"',
    '"device": "cuda"': '"device": "cpu"',
    'url="http://localhost:6333"': 'location=":memory:"',
}


def examples() -> Iterator[tuple[str, list[str]]]:
    """Every docstring with examples: its file and owner, and the blocks in their order."""
    for path in sorted(ADAPTERS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if blocks := re.findall(r"^[ ]*```python\n(.*?)^[ ]*```$", text, re.MULTILINE | re.DOTALL):
                    yield f"{path.relative_to(PACKAGE)}:{node.name}", [inspect.cleandoc(b) for b in blocks]


def names_at_hand(framework: str) -> dict[str, Any]:
    """What an example takes for granted: the user's documents, retriever, client and language model."""
    texts = ["Keys are rotated monthly.", "The vault is sealed at night.", "The museum is closed on Mondays."]
    names: dict[str, Any] = {"encoder": M3Encoder("tiny"), "client": QdrantClient(":memory:")}
    if framework == "llama_index":
        documents = [NodeDocument(text=text) for text in texts]
        retriever: BaseRetriever = M3HybridRetriever.from_documents(documents, model="tiny")

        class Pipeline:
            def run(self, documents: list[NodeDocument]) -> list[NodeDocument]:
                return documents

        return names | {"documents": documents, "retriever": retriever, "pipeline": Pipeline()}
    passages = [Document(page_content=text, metadata={"product": "vault", "source": "keys.md"}) for text in texts]
    return names | {
        "documents": passages,
        "vectors": M3VectorStore.from_documents(passages, model="tiny"),
        "metadata_field_info": [],
        "any_retriever": RunnableLambda(lambda _: passages),
        "chat_model": FakeListChatModel(responses=["monthly"]),
    }


@pytest.mark.parametrize(("where", "blocks"), [pytest.param(*each, id=each[0]) for each in examples()])
async def test_an_example_runs(where: str, blocks: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # some open a store in a folder
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", None)
    if where.startswith("langchain_milvus"):
        pytest.importorskip("langchain_milvus", reason="langchain-milvus clashes with LlamaIndex's Milvus package")
    if where.endswith("M3Translator"):
        pytest.importorskip("lark", reason="LangChain parses its query language with lark: it is in the extra dev")
    names = names_at_hand(where.partition("/")[0])
    for block in blocks:
        offline = block
        for real, stand_in in STAND_INS.items():
            offline = offline.replace(real, stand_in)
        code = compile(offline, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        outcome = eval(code, names)
        if asyncio.iscoroutine(outcome):
            await outcome


@pytest.mark.parametrize(
    "module", [m3_integrations.langchain, m3_integrations.langchain_qdrant], ids=lambda module: str(module.__name__)
)
def test_langchains_sections_are_there(module: Any) -> None:
    for name in set(module.__all__) - {"M3Document"}:  # a result
        sections = re.findall(r"^([A-Z][a-z ]+):$", inspect.cleandoc(getattr(module, name).__doc__), re.MULTILINE)
        assert sections[:3] == ["Setup", "Key init args", "Instantiate"], name
        assert {"Usage", "Embed single text"} & set(sections), name


def test_llama_indexs_sections_are_there() -> None:
    for name in m3_integrations.llama_index.__all__:
        documented = getattr(m3_integrations.llama_index, name)
        if name not in {
            "M3NodeWithScore",
            "sparse_doc_fn",
            "sparse_query_fn",
        }:  # a result, and two that name each other
            sections = re.findall(r"^([A-Z][a-z ]+):$", inspect.cleandoc(documented.__doc__), re.MULTILINE)
            assert sections == ["Args", "Raises", "Examples"], name
            assert "pip install 'PATH_TO_THE_CLONE[llama-index]'" in documented.__doc__


def test_examples_were_found() -> None:
    assert len(list(examples())) >= 10
