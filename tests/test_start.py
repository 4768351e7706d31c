"""Which heavy modules a door does not import: each takes from a third of a second to three seconds of CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

ENCODE = "from m3_integrations import M3Encoder; M3Encoder('tiny', device='cpu').encode(['a text'])"
HEAVY = ("torch", "torch._dynamo", "transformers", "scipy", "sympy", "huggingface_hub", "ir_measures")


def heavy_modules(code: str) -> set[str]:
    """Those of `HEAVY` that a fresh interpreter holds after this code."""
    report = f"\nimport sys\nprint('held:', *[name for name in {HEAVY!r} if name in sys.modules])"
    output = subprocess.check_output([sys.executable, "-c", code + report], text=True)
    return set(output.rpartition("held:")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import m3_integrations.langchain",
        "import m3_integrations.llama_index",
        "from m3_integrations import open_store; open_store().close()",
        "import m3_integrations.cli",
    ],
)
def test_what_encodes_nothing_imports_no_torch(code: str) -> None:
    assert not heavy_modules(code) & {"torch", "transformers", "scipy", "ir_measures"}


def test_encoding_with_the_bundled_checkpoint_on_a_cpu_imports_of_the_heavy_modules_torch_alone() -> None:
    assert heavy_modules(ENCODE) == {"torch"}


def test_searching_a_folder_imports_of_the_heavy_modules_torch_alone(tmp_path: Path) -> None:
    code = (
        "from m3_integrations import M3Encoder, Searcher, open_store\n"
        f"searcher = Searcher(M3Encoder('tiny', device='cpu'), open_store({str(tmp_path / 'store')!r}))\n"
        "searcher.add(['a text'])\nassert searcher.search('a text')\nsearcher.close()"
    )
    assert heavy_modules(code) == {"torch"}
