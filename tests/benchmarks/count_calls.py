"""How many calls of our own functions four everyday paths take, and the memory that adding costs.

python -m tests.benchmarks.count_calls

A call counts where a function, a method, a property or a generator of this package is entered, in any thread. Memory is
what tracemalloc sees: all arrays, lists and objects of Python, among them the vectors that are added, but not what the
engine of a folder allocates for itself.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from langchain_core.documents import Document

import m3_integrations
from m3_integrations import M3Vectors, Searcher, open_store
from m3_integrations.langchain import M3HybridRetriever
from m3_integrations.vectors import LexicalRows, Mode, MultiVectorRows, offsets_of
from tests.fakes import FakeEncoder

PACKAGE = str(Path(m3_integrations.__file__).parent)
DOCUMENTS = [Document(id=str(i), page_content=f"Key number {i} of the vault is rotated every year.") for i in range(10)]
QUESTION = "when are the keys of the vault rotated?"
N_TEXTS, N_TOKENS, DIM = 400, 160, 1024


class Count:
    """Counts the calls of this package's functions while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self.functions: Counter[tuple[str, str]] = Counter()
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            name = frame.f_code.co_qualname
            if "<" not in name.rpartition(".")[2]:  # comprehensions and lambdas are part of their function
                self.functions[frame.f_code.co_filename, name] += 1

    def of(self, what: str, work: Callable[[], object]) -> None:
        """Print the counts of one path."""
        self.functions.clear()
        self.is_on = True
        work()
        self.is_on = False
        files = {file for file, _ in self.functions}
        print(f"| {what} | {self.functions.total()} | {len(self.functions)} | {len(files)} |")
        if "--names" in sys.argv:
            for (file, name), n in sorted(self.functions.items()):
                print(f"    {n:4} {file.removeprefix(PACKAGE)} {name}")


class WideEncoder(FakeEncoder):
    """Gives all texts in one batch, with vectors of BGE-M3's width."""

    dim = DIM

    def encode_batches(self, texts: Any, *, modes: Sequence[Mode] | None = None, **_: Any) -> Iterator[M3Vectors]:
        n = len(list(texts))
        rows = MultiVectorRows(offsets_of([N_TOKENS] * n), np.full((n * N_TOKENS, DIM), DIM**-0.5, np.float32))
        lexical = LexicalRows(np.arange(n + 1), np.arange(n, dtype=np.int32), np.ones(n, np.float32))
        yield M3Vectors(dense=np.full((n, DIM), DIM**-0.5, np.float32), lexical=lexical, multi_vector=rows)


def count_calls(folder: Path) -> None:
    """Print the table of calls."""
    count = Count()
    print("| path | calls | functions | files |\n|---|---|---|---|")
    encoder = open_tiny()
    count.of("the first `encode` of one text", lambda: encoder.encode(["Keys are rotated every year."]))
    for name, where in (("memory", None), ("a folder", folder / "calls")):
        retriever = M3HybridRetriever(encoder=encoder, store=open_store(where))
        retriever.add_documents([Document(id="0", page_content="The museum is closed on Mondays.")])
        count.of(f"adding ten documents to {name}", partial(retriever.add_documents, DOCUMENTS))
        count.of(f"`invoke` over {name}", partial(retriever.invoke, f"{QUESTION} {name}"))
        retriever.store.close()
    sys.setprofile(None)
    threading.setprofile(None)


def open_tiny() -> Any:
    """Open a network of its own, whichever constructor the package has."""
    load = getattr(m3_integrations.M3Encoder, "load", None)
    return load("tiny", device="cpu") if load else m3_integrations.M3Encoder("tiny", device="cpu", shared=False)


def measure_memory(folder: Path) -> None:
    """Print how much memory adding takes at its peak."""
    size = N_TEXTS * N_TOKENS * DIM * 4
    print(f"\n{N_TEXTS} texts of {N_TOKENS} token vectors of {DIM}: {size / 2**20:.0f} MB of float32")
    for name, where in (("memory", None), ("a folder", folder / "memory")):
        with open_store(where) as store:
            searcher = Searcher(WideEncoder(), store)
            searcher.add(["first"], ids=["first"])
            tracemalloc.start()
            searcher.add([f"text {i}" for i in range(N_TEXTS)])
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        print(f"adding to {name}: at its peak {peak / size:.2f} times the token vectors")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        count_calls(Path(place))
        measure_memory(Path(place))
