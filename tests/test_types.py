"""The public API as type checkers see it. CI's `mypy` checks the same program, and leaves its cache for this one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = "tests/typing/user_program.py"


WRONG = {
    "assert_type(ids, list[str])": ("assert_type(ids, list[int])", "list[int]"),
    'fusion="rrf"': ('fusion="max"', "Literal['max']"),
    'weights="mldr"': ("wights=1", '"wights"'),
}
"""What the program says, what a wrong copy of it says, and what a checker names."""


def test_mypy_finds_a_users_program_clean_and_notices_wrong_types_in_a_copy(tmp_path: Path) -> None:
    program = wrong = (ROOT / PROGRAM).read_text()
    for right, (replaced, _) in WRONG.items():
        assert program.count(right) == 1
        wrong = wrong.replace(right, replaced)
    copy = tmp_path / "wrong.py"
    copy.write_text(wrong)
    command = [sys.executable, "-m", "mypy", PROGRAM, str(copy)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line for line in result.stdout.splitlines() if " error: " in line]
    assert len(errors) == len(WRONG)
    for right, (_, named) in WRONG.items():
        line = program[: program.index(right)].count("\n") + 1
        # mypy's cache may name the folder of an earlier run.
        assert any(f"{copy.name}:{line}: error: " in error and named in error for error in errors), errors


def test_a_users_program_is_clean_under_pyright() -> None:
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("pyright is not installed")
    if subprocess.run([pyright, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("pyright could not fetch the program that it wraps")
    command = [pyright, "--pythonpath", sys.executable, "tests/typing"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
