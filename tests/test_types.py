"""The public API as type checkers see it. CI's own run of mypy checks the same program, and leaves a cache for this."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = "tests/typing/user_program.py"


def test_mypy_finds_a_users_program_clean_and_notices_a_wrong_type_in_a_copy(tmp_path: Path) -> None:
    right, wrong = "assert_type(ids, list[str])", "assert_type(ids, list[int])"
    copy = tmp_path / "wrong.py"
    program = (ROOT / PROGRAM).read_text()
    copy.write_text(program.replace(right, wrong))
    command = [sys.executable, "-m", "mypy", PROGRAM, str(copy)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (error,) = [line for line in result.stdout.splitlines() if " error: " in line]
    line = program[: program.index(right)].count("\n") + 1
    assert error.startswith(f"{copy}:{line}: error: ")
    assert "list[int]" in error


def test_a_users_program_is_clean_under_pyright() -> None:
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("pyright is not installed")
    if subprocess.run([pyright, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("pyright could not fetch the program that it wraps")
    command = [pyright, "--pythonpath", sys.executable, "tests/typing"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
