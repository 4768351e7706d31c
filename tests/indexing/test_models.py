"""The model of a command whose line names none: the store's if it is in this package, `small` for a new one."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from m3_integrations import M3Encoder, Searcher, open_store
from m3_integrations.cli import app
from m3_integrations.cli.shared import open_model, open_model_of
from m3_integrations.fingerprint import bundled_checkpoint
from tests.fakes import FakeEncoder

TEXTS = {"keys": "Rotate the keys once a year.", "museum": "The museum is closed on Mondays."}


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])


def filled(folder: Path, encoder: Any) -> Path:
    with open_store(folder) as store:
        Searcher(encoder, store).add(TEXTS.values(), ids=TEXTS)
    return folder


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_a_store_is_searched_with_the_checkpoint_that_filled_it(tmp_path: Path, name: str) -> None:
    with M3Encoder(name, device="cpu") as encoder:
        store = filled(tmp_path / "idx", encoder)
        assert bundled_checkpoint(encoder.fingerprint) == name
    found = call("search", store, "when is the museum closed?", "--k", "1")
    assert (found.exit_code, "museum" in found.stdout) == (0, True), found.output
    with open_store(store) as opened:
        assert open_model_of(opened, device="cpu").model == name


def test_more_files_go_into_a_store_with_its_own_checkpoint(tmp_path: Path) -> None:
    with M3Encoder("tiny", device="cpu") as tiny:
        store = filled(tmp_path / "idx", tiny)
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "opera.txt").write_text("The opera begins at eight.")
        done = call("index", tmp_path / "docs", "--store", store)
        assert (done.exit_code, "1 added" in done.stdout) == (0, True), done.output
        with open_store(store) as opened:
            assert (opened.count(), opened.fingerprint) == (3, tiny.fingerprint)


def test_a_new_store_is_of_small(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "keys.txt").write_text(TEXTS["keys"])
    assert call("index", tmp_path / "docs", "--store", tmp_path / "idx").exit_code == 0
    small = open_model(None, device="cpu")
    with open_store(tmp_path / "idx") as opened:
        assert (small.model, opened.fingerprint) == ("small", small.fingerprint)


def test_a_store_of_a_model_from_elsewhere_is_answered_with_what_to_name(tmp_path: Path) -> None:
    store = filled(tmp_path / "idx", FakeEncoder())
    bound = FakeEncoder().fingerprint
    lines: tuple[tuple[str | Path, ...], ...] = (("search", store, "museum"), ("index", tmp_path, "--store", store))
    for line in lines:
        refused = call(*line)
        assert refused.exit_code == 1
        assert f"holds vectors of the model {bound}, which is neither small nor tiny" in (refused.stderr)
        assert refused.stderr.rstrip().endswith("name the model that it was filled with, --model MODEL")


def test_a_mistyped_model_makes_no_store(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "keys.txt").write_text(TEXTS["keys"])
    refused = call("index", tmp_path / "docs", "--store", tmp_path / "idx", "--model", tmp_path / "nowhere")
    assert (refused.exit_code, "no checkpoint folder" in refused.stderr) == (1, True)
    assert not (tmp_path / "idx").exists()
