"""Real text that is on every machine: Python's documentation topics and the docstrings of its standard library."""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Tests, installed packages, and what Python 3.12 no longer has.
_LEFT_OUT: Final = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "distutils",
        "ensurepip",
        "turtledemo",
        "site-packages",
        "__pycache__",
    }
)
_MIN_LENGTH: Final = 40
"""Characters: shorter docstrings say little more than their name."""

_MAX_LENGTH: Final = 2000
"""Characters of a passage; a longer text is cut into several at blank lines."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of documentation.

    Attributes:
        id: Where it is from, such as "functools.lru_cache" or "topic:with"; further pieces end with "#2", "#3".
        text: Its name in words, and what it says.
        kind: "topic", "module", "class" or "function".
        module: The module, or the topic's name.
    """

    id: str
    text: str
    kind: str
    module: str


def read_collection() -> list[Passage]:
    """Read all passages without importing any module: several thousand, in a fixed order."""
    return [*_topics(), *_docstrings(Path(sysconfig.get_paths()["stdlib"]))]


def _topics() -> Iterator[Passage]:
    from pydoc_data.topics import topics  # noqa: PLC0415 - 700 kB of text, for the demo alone

    for name, text in sorted(topics.items()):
        for id_, piece in _pieces(f"topic:{name}", text):
            yield Passage(id_, piece, "topic", name)


def _docstrings(folder: Path) -> Iterator[Passage]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _LEFT_OUT.intersection(parts) or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # files that show errors on purpose
            continue
        yield from _of_node(tree, module, module, "module")


def _of_node(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, module: str, kind: str
) -> Iterator[Passage]:
    docstring = ast.get_docstring(node)
    if docstring and len(docstring) >= _MIN_LENGTH:
        for id_, piece in _pieces(name, docstring):
            yield Passage(id_, f"{name}: {inspect.cleandoc(piece)}", kind, module)
    if kind == "function":
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            kind_of_child = "class" if isinstance(child, ast.ClassDef) else "function"
            yield from _of_node(child, f"{name}.{child.name}", module, kind_of_child)


def _pieces(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Cut a text at blank lines into pieces of at most `_MAX_LENGTH` characters, a longer paragraph staying whole."""
    piece, number = "", 1
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > _MAX_LENGTH:
            yield (name if number == 1 else f"{name}#{number}"), piece
            piece, number = "", number + 1
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece.strip():
        yield (name if number == 1 else f"{name}#{number}"), piece
