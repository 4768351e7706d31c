"""The rooms of the package: who may import whom, and what importing costs."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "m3_integrations"

# From the ground up: a module imports only from rooms that stand before its own.
ROOMS = (
    "vectors",
    "scoring",
    "fusion",
    "tokenizer",
    "checkpoint",
    "fingerprint",
    "model",
    "engine",
    "encoder",
    "remote",
    "bm25",
    "store",
    "parquet",
    "search",
    "indexing",
    "langchain",
    "langchain_qdrant",
    "langchain_milvus",
    "llama_index",
    "evaluation",
    "training",
    "serve",
    "ray",
    "cli",
)
ADAPTERS = {"langchain", "langchain_qdrant", "langchain_milvus", "llama_index"}

LONGEST = 350
"""Lines of a file that does not say why it is longer."""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms imported anywhere in a file, at its top or inside a function."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module or ""] if node.module != "m3_integrations" else [f".{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms.update(name.split(".")[1] for name in names if name.startswith(("m3_integrations.", ".")))
    return rooms


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


NAMES = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]


@cache
def imported_files(name: str) -> frozenset[str]:
    """Files of the package that a file names in an import: at its top, under TYPE_CHECKING or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.ImportFrom):
            # What is imported from a package may be a module of it.
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(file_of(module) or file_of(node.module or "") or "" for module in modules)
        elif isinstance(node, ast.Import):
            found.update(file_of(alias.name) or "" for alias in node.names)
    return frozenset(found - {""})


def file_of(module: str) -> str | None:
    path = PACKAGE.parent.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file() and PACKAGE in candidate.parents:
            return candidate.relative_to(PACKAGE).as_posix()
    return None


def circle_through(name: str) -> list[str]:
    """The shortest way from a file over its imports back to itself; empty if no way leads back."""
    ways: dict[str, list[str]] = {name: [name]}
    waiting = [name]
    for here in waiting:
        for there in sorted(imported_files(here)):
            if there == name:
                return [*ways[here], name]
            if there not in ways:
                ways[there] = [*ways[here], there]
                waiting.append(there)
    return []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_before_its_own(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{room} has no place in the layout"
    before = set(ROOMS[: ROOMS.index(room)])
    assert imported_rooms(path) <= before | {room}
    if room in ADAPTERS | {"evaluation", "training"}:
        assert not imported_rooms(path) & (ADAPTERS - {room}), "adapters stand side by side"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_short_or_says_why_it_is_long(name: str) -> None:
    text = (PACKAGE / name).read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) <= LONGEST or re.search(r"(^|[.!?]\s+|\n\n)Long because ", docstring)


@pytest.mark.parametrize("name", NAMES)
def test_no_chain_of_imports_leads_back_to_its_file(name: str) -> None:
    assert circle_through(name) == []


def test_every_room_of_the_layout_exists() -> None:
    assert {room_of(path) for path in modules()} == set(ROOMS)


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, m3_integrations; print({'torch', 'transformers', 'numpy'} & set(sys.modules) or 'none')"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "none"


def test_every_public_name_is_there() -> None:
    import m3_integrations

    assert [name for name in m3_integrations.__all__ if not hasattr(m3_integrations, name)] == []
    assert sorted(m3_integrations.__all__) == dir(m3_integrations)
    with pytest.raises(AttributeError, match="no attribute 'M3Encodr'"):
        _ = m3_integrations.M3Encodr


def test_the_version_is_the_installed_one() -> None:
    import m3_integrations

    assert m3_integrations.__version__ == version("m3-integrations")


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("langchain", None),
        ("llama_index", None),
        ("langchain_qdrant", None),
        ("langchain_milvus", ["M3SparseEmbeddings"]),
    ],
)
def test_a_class_that_depends_on_the_framework_is_answered_with_its_module(
    module: str, names: list[str] | None
) -> None:
    import m3_integrations

    known = names or import_module(f"m3_integrations.{module}").__all__
    for name in known:
        if name.startswith("M3") and name not in m3_integrations.__all__:
            with pytest.raises(ImportError, match=rf"does not have it: import it from .*m3_integrations\.{module}\b"):
                exec(f"from m3_integrations import {name}")
