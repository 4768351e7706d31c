"""The public API as type checkers see it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_a_users_program_is_clean_under_mypy_strict() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "tests/typing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_a_users_program_is_clean_under_pyright() -> None:
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("pyright is not installed")
    if subprocess.run([pyright, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("pyright could not fetch the program that it wraps")
    command = [pyright, "--pythonpath", sys.executable, "tests/typing"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_checkers_would_notice_a_wrong_type(tmp_path: Path) -> None:
    program = (ROOT / "tests" / "typing" / "user_program.py").read_text()
    wrong = tmp_path / "wrong.py"
    program = program.replace("assert_type(ids, list[str])", "assert_type(ids, list[int])")
    wrong.write_text(program.replace('fusion="rrf"', 'fusion="max"').replace('weights="mldr"', "wights=1"))
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", str(wrong)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    for noticed in ("list[int]", "Literal['max']", '"wights"'):
        assert noticed in result.stdout
