"""The cookbooks run, and what they show is what they were committed with."""

import ast
import copy
import importlib.util
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cookbooks.notebooks import NOT_EXECUTED, code_cells, differences, execute, notebooks, read, shown

# A folder of somebody's machine in an output would be true for that machine alone.
_PATHS = re.compile(r"/(?:home|root|tmp|usr|work|Users|opt|var)/|[A-Z]:\\\\")


def named(path: Path) -> str:
    return path.stem


def test_all_are_there() -> None:
    assert [path.name[:2] for path in notebooks()] == [f"{number}_" for number in range(1, 9)]


@pytest.mark.parametrize("path", notebooks(), ids=named)
def test_a_cookbook_was_committed_as_it_ran(path: Path) -> None:
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in notebook.cells:
        if NOT_EXECUTED in cell.metadata.get("tags", []):
            assert cell.outputs == []
            assert cell.source.startswith("# Not run here (tagged skip-execution): needs ")
    for cell in cells:
        for part in shown(cell):
            assert not part.startswith(("error:", "stderr:")), f"{cell.id}: {part}"
            assert not _PATHS.search(part), f"{cell.id}: {part}"
            assert "Traceback" not in part
            assert "Warning" not in part
    assert len(path.read_bytes()) < 400_000


@pytest.mark.parametrize("path", notebooks(), ids=named)
def test_a_cookbook_says_what_one_gets_and_what_to_change_for_the_real_model(path: Path) -> None:
    texts = [cell.source for cell in read(path).cells]
    assert "**At the end you have**" in texts[0]
    headings = [line for text in texts for line in text.splitlines() if line.startswith("## ")]
    assert headings[-1] == "## For the real model"
    assert any("BAAI/bge-m3" in text for text in texts)


@pytest.mark.parametrize("path", notebooks(), ids=named)
def test_what_a_cookbook_imports_from_the_package_exists(path: Path) -> None:
    missing = [
        f"{cell.id}: from {module} import {name}"
        for cell in read(path).cells
        if cell.cell_type == "code"
        for module, name in imported(cell.source)
        if module.partition(".")[0] == "m3_integrations" and name not in names_of(module)
    ]
    assert missing == []


def imported(source: str) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of every import in the source of a cell; the name is empty for `import module`."""
    tree = compile(source, "a cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def names_of(module: str) -> set[str]:
    """Return the names that a module has, those of its modules included; the empty name if the module exists.

    The module is read, not imported: the framework of langchain_milvus is not installed here.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # it has no parent either
        return set()
    if spec is None or spec.origin is None:
        return set()
    names = {"", *(each.name for each in pkgutil.iter_modules(spec.submodule_search_locations or []))}
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            assigned = {target.id for target in targets if isinstance(target, ast.Name)}
            names |= assigned
            if "__all__" in assigned and node.value is not None:
                names.update(ast.literal_eval(node.value))
    return names


_COMMITTED_WITH = (3, 11)
_ASKS_THE_STANDARD_LIBRARY = {"5_which_weights"}  # the docstrings of another Python give other numbers
_TAKE_A_MINUTE = {"5_which_weights", "6_fine_tune_on_a_domain", "7_long_documents", "8_production"}
_MARKED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in _TAKE_A_MINUTE else [])
    for path in notebooks()
]


def execute_anew(path: Path) -> tuple[Any, list[str]]:
    """Return the notebook with the outputs of a run, and the names of the files that the run left in its folder."""
    notebook = read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    left = execute(notebook)
    return notebook, left


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[Path, Future[Any]]]:
    """The notebooks that were asked for, two at a time: a kernel computes with one thread.

    Nothing in one of pytest-xdist's processes, which does not know the tests that it will get.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        yield {}
        return
    asked = [item for item in request.session.items if "running" in getattr(item, "fixturenames", ())]
    if not os.environ.get("M3_SLOW"):
        asked = [item for item in asked if not item.get_closest_marker("slow")]
    calls = [getattr(item, "callspec", None) for item in asked]
    pool = ThreadPoolExecutor(max_workers=2)
    # The one that trains takes longest, so it begins.
    paths = sorted((call.params["path"] for call in calls if call), key=lambda path: "fine_tune" not in path.stem)
    yield {path: pool.submit(execute_anew, path) for path in paths}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("path", _MARKED)
def test_a_cookbook_runs_any_number_of_times_and_shows_what_it_was_committed_with(
    path: Path, running: dict[Path, Future[Any]]
) -> None:
    notebook, left = running[path].result() if path in running else execute_anew(path)
    assert left == []  # files of one run change or break the next one in the same folder
    if sys.version_info[:2] == _COMMITTED_WITH or path.stem not in _ASKS_THE_STANDARD_LIBRARY:
        assert differences(read(path), notebook) == []


def test_all_cookbooks_together_are_small() -> None:
    assert sum(len(path.read_bytes()) for path in notebooks()) < 2_000_000


def test_other_words_and_other_numbers_are_noticed() -> None:
    notebook = read(notebooks()[0])
    assert differences(notebook, copy.deepcopy(notebook)) == []
    for old, new, is_noticed in (("0.52", "0.53", False), ("0.52", "0.62", True), ("vault/keys/2", "vault/x/2", True)):
        changed = json.loads(json.dumps(notebook).replace(old, new))
        assert bool(differences(notebook, type(notebook)(_as_nodes(changed)))) is is_noticed


def _as_nodes(notebook: dict[str, object]) -> object:
    from nbformat import from_dict

    return from_dict(notebook)  # type: ignore[no-untyped-call]
