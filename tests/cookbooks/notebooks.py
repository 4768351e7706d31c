"""Executes the cookbooks as their readers do, in kernels of their own.

`python -m tests.cookbooks.notebooks [NAME ...]` writes the outputs into the files.

The kernels are real processes, not an interpreter inside the tests: that is how notebooks are run, with top-level
await, display hooks and a module state of their own. They talk to us through Unix sockets (Jupyter's "ipc" transport),
which the suite allows; sockets to anywhere else are off in them as they are in the tests.
"""

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER: Final = Path(__file__).parents[2] / "cookbooks"
NOT_EXECUTED: Final = "skip-execution"
"""Tags a cell that needs a GPU, a cluster, a server or the hub; nbclient passes it over."""

VARIES: Final = "numbers-vary"
"""Tags a cell whose numbers differ from run to run: times, and what a training run comes to."""

_NO_SOCKETS: Final = (
    "import pytest_socket, warnings; pytest_socket.disable_socket(allow_unix_socket=True); "
    # urllib3 opens one while it is imported, to see whether there is IPv6, and takes no for an answer.
    "warnings.filterwarnings('ignore', 'A test tried to use socket')"
)
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")


def notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def execute(notebook: Any) -> list[str]:
    """Run all cells in a new kernel in an empty folder, and put the outputs into the notebook.

    Returns:
        The names of what is in the folder at the end.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        own, temporary = Path(folder, "cookbooks"), Path(folder, "temporary")
        own.mkdir()
        temporary.mkdir()
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            config=Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"}),
            extra_arguments=[f"--IPKernelApp.exec_lines={_NO_SOCKETS}"],
            timeout=300,
            record_timing=False,
            coalesce_streams=True,
        )
        environment = {
            **os.environ,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers draws one when it loads weights
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(temporary),  # deleted with the folder, even if the kernel is killed
            # Sums are rounded alike, and torch's threads do not wait for each other, which is slow on a busy machine.
            "OMP_NUM_THREADS": "1",
        }
        asyncio.run(client.async_execute(env=environment, cwd=str(own)))
        left = sorted(path.name for path in own.iterdir())
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return left


def code_cells(notebook: Any) -> list[Any]:
    """The cells that are executed."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and NOT_EXECUTED not in cell.metadata.get("tags", [])
    ]


def shown(cell: Any) -> list[str]:
    """What a reader sees of a cell's outputs: text, or that there is a picture."""
    parts: list[str] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(f"{output.name}: {output.text}")
        elif output.output_type == "error":
            parts.append(f"error: {output.ename}")
        else:
            parts.append("picture" if "image/png" in output.data else output.data["text/plain"])
    return parts


def differences(committed: Any, fresh: Any) -> list[str]:
    """Return where two runs of a notebook show different things.

    Words must be equal, and so must whole numbers; others to 0.015, since they are printed with two digits or more and
    float32 is rounded differently by other processors. In cells that are tagged so, numbers are not compared.
    """
    found: list[str] = []
    for old, new in zip(code_cells(committed), code_cells(fresh), strict=True):
        before, after = "\n".join(shown(old)), "\n".join(shown(new))
        is_same = _NUMBER.sub("#", before) == _NUMBER.sub("#", after)
        if is_same and VARIES not in old.metadata.get("tags", []):
            is_same = all(map(_agree, _NUMBER.findall(before), _NUMBER.findall(after)))
        if not is_same:
            found.append(f"{old.id} was\n{before}\nand is now\n{after}")
    return found


def _agree(old: str, new: str) -> bool:
    return old == new or ("." in old and "." in new and abs(float(old) - float(new)) < 0.015)


if __name__ == "__main__":
    for path in notebooks():
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            notebook = read(path)
            execute(notebook)
            nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
            print(path.name)  # noqa: T201
