"""A small collection that every machine has: docstrings of well-known modules of Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODULES: Final = (
    "argparse", "asyncio.queues", "asyncio.tasks", "asyncio.threads", "asyncio.timeouts", "base64", "bisect",
    "calendar", "collections", "configparser", "contextlib", "copy", "csv", "difflib", "fnmatch", "fractions",
    "functools", "getpass", "glob", "heapq", "html", "http.client", "json", "locale", "logging", "logging.handlers",
    "os", "pprint", "queue", "random", "re", "secrets", "shlex", "shutil", "statistics", "subprocess", "tarfile",
    "tempfile", "textwrap", "threading", "timeit", "traceback", "urllib.parse", "urllib.request", "zipfile",
)  # fmt: skip
"""Modules that are written in Python and have the same path in all versions from 3.11 to 3.14."""

_MIN_LENGTH: Final = 40
"""In characters: a shorter docstring says little more than the name."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A docstring.

    Attributes:
        id: The name of the documented object, such as "functools.lru_cache".
        text: The id and the text of the docstring.
        kind: "module", "class" or "function".
        module: The name of the module, such as "functools".
    """

    id: str
    text: str
    kind: str
    module: str


def read_collection() -> list[Passage]:
    """Return the passages in the order of the modules and of their files. The files are parsed, nothing is imported."""
    library = Path(sysconfig.get_path("stdlib"))
    passages: list[Passage] = []
    for module in MODULES:
        path = library.joinpath(*module.split("."))
        tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_bytes())
        passages.extend(_docstrings(tree, module, "module", module))
    return passages


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, kind: str, module: str
) -> Iterator[Passage]:
    docstring = ast.get_docstring(node)
    if docstring and len(docstring) >= _MIN_LENGTH:
        yield Passage(name, f"{name}: {docstring}", kind, module)
    for child in node.body if kind != "function" else ():
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            child_kind = "class" if isinstance(child, ast.ClassDef) else "function"
            yield from _docstrings(child, f"{name}.{child.name}", child_kind, module)
