"""Torch's threads where a control group allows fewer CPUs than the machine has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.model import limit_threads, threads
from m3_integrations.model.threads import cpu_limit

V2 = "35 24 0:30 {root} {point} ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"
V1 = "31 30 0:26 {root} {point} ro,nosuid master:15 - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    limit_threads.cache_clear()
    yield
    limit_threads.cache_clear()
    torch.set_num_threads(before)


def proc(folder: Path, groups: str, mounts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup").write_text(groups)
    (folder / "mountinfo").write_text(mounts)
    return folder


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")


@pytest.mark.parametrize(("text", "limit"), [("150000 100000", 1.5), ("50000 100000", 0.5), ("max 100000", None)])
def test_version_2_names_quota_and_period(tmp_path: Path, text: str, limit: float | None) -> None:
    group(tmp_path / "fs", cpu_max=text)
    assert cpu_limit(proc(tmp_path / "proc", "0::/\n", V2.format(root="/", point=tmp_path / "fs"))) == limit


def test_the_smallest_limit_of_a_group_and_those_around_it_counts(tmp_path: Path) -> None:
    mounts = V2.format(root="/", point=tmp_path / "fs")
    group(tmp_path / "fs" / "pods", cpu_max="200000 100000")
    group(tmp_path / "fs" / "pods" / "one", cpu_max="max 100000")
    assert cpu_limit(proc(tmp_path / "proc", "0::/pods/one\n", mounts)) == 2
    group(tmp_path / "fs" / "pods" / "one", cpu_max="100000 100000")
    assert cpu_limit(proc(tmp_path / "proc", "0::/pods/one\n", mounts)) == 1
    assert cpu_limit(proc(tmp_path / "proc", "0::/elsewhere\n", mounts)) is None


@pytest.mark.parametrize(("quota", "limit"), [("300000", 3), ("-1", None)])
def test_version_1_has_a_file_for_each(tmp_path: Path, quota: str, limit: float | None) -> None:
    folder = tmp_path / "cpu,cpuacct" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota + "\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    groups = "5:memory:/other\n4:cpu,cpuacct:/job\n0::/system\n"
    mounts = V1.format(root="/", point=tmp_path / "cpu,cpuacct")
    assert cpu_limit(proc(tmp_path / "proc", groups, mounts)) == limit


@pytest.mark.parametrize("root", ["/docker/4f1c", "/"], ids=["the mount is the group", "the path is the host's"])
def test_in_a_container_the_path_may_be_the_hosts(tmp_path: Path, root: str) -> None:
    group(tmp_path / "fs", cpu_max="200000 100000")
    found = proc(tmp_path / "proc", "0::/docker/4f1c\n", V2.format(root=root, point=tmp_path / "fs"))
    assert cpu_limit(found) == 2


def test_a_mount_of_another_group_sets_no_limit(tmp_path: Path) -> None:
    group(tmp_path / "other", cpu_max="100000 100000")
    group(tmp_path / "fs" / "user", cpu_max="max 100000")
    mounts = V2.format(root="/docker/4f1c", point=tmp_path / "other") + V2.format(root="/", point=tmp_path / "fs")
    assert cpu_limit(proc(tmp_path / "proc", "0::/user\n", mounts)) is None


def test_lines_and_files_of_another_form_hide_no_limit(tmp_path: Path) -> None:
    group(tmp_path / "fs", cpu_max="200000 100000")
    group(tmp_path / "fs" / "job", cpu_max="100000 0")
    mounts = "24 30 0:22 / /empty rw -  \n25 30 0:23 / /run rw - tmpfs  rw\n" + V2.format(
        root="/", point=tmp_path / "fs"
    )
    assert cpu_limit(proc(tmp_path / "proc", "0::/job\n", mounts)) == 2


def test_a_system_without_these_files_has_no_limit(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path) is None
    assert cpu_limit(proc(tmp_path / "odd", "no colons\n", "too short\n")) is None


def test_torch_gets_no_more_threads_than_the_limit(
    three_threads: None, monkeypatch: pytest.MonkeyPatch, small: Path
) -> None:
    monkeypatch.setattr(threads, "cpu_limit", lambda: 1.5)
    with M3Encoder(small, shared=False, device="cpu") as encoder:
        encoder.encode(["a"])
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("limit", [None, 3.0, 8.0])
def test_without_a_smaller_limit_nothing_changes(
    three_threads: None, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    monkeypatch.setattr(threads, "cpu_limit", lambda: limit)
    limit_threads()
    assert torch.get_num_threads() == 3


def test_a_part_of_a_cpu_is_one_thread(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cpu_limit", lambda: 0.2)
    limit_threads()
    assert torch.get_num_threads() == 1


def test_a_later_choice_stays(three_threads: None, monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    monkeypatch.setattr(threads, "cpu_limit", lambda: 1.0)
    M3Encoder(small, shared=False, device="cpu").close()
    torch.set_num_threads(2)
    M3Encoder(small, shared=False, device="cpu").close()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_who_has_chosen_keeps_the_choice(three_threads: None, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setattr(threads, "cpu_limit", lambda: 1.0)
    monkeypatch.setenv(variable, "3")
    limit_threads()
    assert torch.get_num_threads() == 3
