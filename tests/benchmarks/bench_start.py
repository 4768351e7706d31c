"""What each door costs before it does its work: seconds by the clock and of CPU, beside `import torch, transformers`.

    python -m tests.benchmarks.bench_start

Every row is a fresh interpreter, with the files in the system's cache; the median of five rounds, in each of which
every row runs once. The store holds 65 parts of this project's README.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

ROUNDS = 5
BASELINE = "import torch, transformers"
M3 = "from m3_integrations.cli import app; app({})"
README = str(Path(__file__).parents[2] / "README.md")


def doors(store: str) -> dict[str, str]:
    index = ["index", README, "--store", store, "--model", "tiny", "--device", "cpu"]
    encoder = "from m3_integrations import M3Encoder; encoder = M3Encoder('tiny', device='cpu'); encoder.dim"
    return {
        BASELINE: BASELINE,
        "import torch": "import torch",
        "import m3_integrations": "import m3_integrations",
        "import m3_integrations.langchain": "import m3_integrations.langchain",
        "import m3_integrations.llama_index": "import m3_integrations.llama_index",
        'M3Encoder("tiny") ready': encoder,
        "and one text encoded": encoder + "; encoder.encode(['a text'])",
        "m3 --help": M3.format(["--help"]),
        "m3 index, nothing to do": M3.format(index),
        "m3 search": M3.format(["search", store, "what can I rely on", "--model", "tiny", "--device", "cpu"]),
        "m3 demo": M3.format(["demo", "--model", "tiny", "--device", "cpu"]),
    }


def measured(code: str) -> tuple[float, float]:
    """Seconds by the clock and of CPU of one run."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        codes = doors(str(Path(folder, "store")))
        measured(codes["m3 index, nothing to do"])  # makes the store
        rounds = [{name: measured(code) for name, code in codes.items()} for _ in range(ROUNDS)]
    medians = {name: tuple(statistics.median(each[name][i] for each in rounds) for i in (0, 1)) for name in codes}
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}; {platform.machine()}, {os.cpu_count()} cores; median of {ROUNDS}\n")
    print(f"{'door':36}{'wall s':>8}{'CPU s':>8}{'CPU, times the first':>22}")
    for name, (wall, cpu) in medians.items():
        print(f"{name:36}{wall:8.2f}{cpu:8.2f}{cpu / medians[BASELINE][1]:22.2f}")


if __name__ == "__main__":
    main()
