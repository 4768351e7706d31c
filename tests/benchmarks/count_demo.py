"""How many of the demo's questions have an answer among the first three passages, by checkpoint, set and mode.

    python -m tests.benchmarks.count_demo [MODEL ...]

The sets are tests/demo's: 50 questions in the passages' own words (one has no answer in the collection), and 50
paraphrases that share no content word with the passage that answers. Without a model: `small` and `tiny`.
"""

from __future__ import annotations

import json
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

from m3_integrations import M3Encoder, Searcher, open_store
from m3_integrations.cli.collection import read_collection
from m3_integrations.search import SearchMode

SETS: Final = {
    name: [json.loads(line) for line in (Path(__file__).parents[1] / "demo" / f"{name}.jsonl").read_text().splitlines()]
    for name in ("questions", "paraphrases")
}


def index_collection(model: str) -> Searcher:
    """Open a searcher over the demo's collection in memory."""
    passages = read_collection()
    searcher = Searcher(M3Encoder(model, device="cpu"), open_store())
    searcher.add([passage.text for passage in passages], ids=[passage.id for passage in passages])
    return searcher


def count_found(searcher: Searcher, questions: Sequence[dict[str, Any]], mode: SearchMode, k: int = 3) -> int:
    """Return for how many questions one of the first k passages answers."""
    hits = [searcher.search(question["question"], k=k, mode=mode) for question in questions]
    return sum(
        any(hit.id in question["relevant"] for hit in best) for question, best in zip(questions, hits, strict=True)
    )


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore", ".*longer than")
    modes = get_args(SearchMode)
    print(f"of 50, Python {platform.python_version()}")
    print(f"{'':24}" + "".join(f"{mode:>15}" for mode in modes))
    for model in sys.argv[1:] or ("small", "tiny"):
        with index_collection(model) as searcher:
            for name, questions in SETS.items():
                counts = [count_found(searcher, questions, mode) for mode in modes]
                print(f"{model + ', ' + name:24}" + "".join(f"{n:>15}" for n in counts))


if __name__ == "__main__":
    main()
