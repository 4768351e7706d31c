"""In how many processes the suite runs: tests/conftest.py decides, pyproject.toml asks it to."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_xdist_auto_num_workers, pytest_xdist_setupnodes


def asked(*names: str) -> Any:
    return SimpleNamespace(args=names)


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("M3_SLOW", "M3_REQUIRE", "M3_HUB", "QDRANT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)


def test_a_folder_has_a_process_more_than_cpus_and_named_files_have_one_alone() -> None:
    folder, file = str(Path(__file__).parent), __file__
    assert pytest_xdist_auto_num_workers(asked(folder)) == 5
    assert pytest_xdist_auto_num_workers(asked(folder, file)) == 5
    assert pytest_xdist_auto_num_workers(asked(file, f"{file}::test_a[b::c]")) == 0


def test_one_cpu_has_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert pytest_xdist_auto_num_workers(asked("tests")) == 0


@pytest.mark.parametrize("name", ["M3_SLOW", "M3_REQUIRE", "M3_HUB", "QDRANT_URL"])
def test_tests_that_load_a_whole_machine_have_one_process(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert pytest_xdist_auto_num_workers(asked("tests")) == 0


def test_processes_share_the_threads_and_a_number_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "to be restored")
    for given, n_processes, expected in ((None, 3, "2"), (None, 8, "1"), ("5", 3, "5")):
        monkeypatch.delenv("OMP_NUM_THREADS")
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        pytest_xdist_setupnodes([object()] * n_processes)
        assert os.environ["OMP_NUM_THREADS"] == expected
