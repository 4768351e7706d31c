"""The rooms of the package: who may import whom, and what importing costs."""

import ast
import subprocess
import sys
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
    "bm25",
    "store",
    "search",
    "indexing",
    "langchain",
    "langchain_qdrant",
    "langchain_milvus",
    "llama_index",
    "evaluation",
    "training",
    "cli",
)
ADAPTERS = {"langchain", "langchain_qdrant", "langchain_milvus", "llama_index"}


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


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_before_its_own(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{room} has no place in the layout"
    before = set(ROOMS[: ROOMS.index(room)])
    assert imported_rooms(path) <= before | {room}
    if room in ADAPTERS | {"evaluation", "training"}:
        assert not imported_rooms(path) & (ADAPTERS - {room}), "adapters stand side by side"


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
