"""A store's records encoded by another model: every record once, whatever is killed, while the old store answers."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from m3_integrations import M3Encoder, Searcher, Store, open_store
from m3_integrations.cli import app
from m3_integrations.cli.shared import is_new
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.migrating import migrate_store
from m3_integrations.store.served import ServedStore
from m3_integrations.store.switching import finish_switch, folder_beside, switch_folder
from m3_integrations.vectors import Mode
from tests.evaluation.worlds import write_beir
from tests.fakes import FakeEncoder
from tests.serve.conftest import serving_store
from tests.store.conftest import STORES, OpenStore
from tests.store.migration import Successor


def fill(store: Store, n: int = 150, start: int = 0) -> None:
    rows = range(start, start + n)
    Searcher(FakeEncoder(), store).add(
        [f"text {i}" for i in rows], ids=[f"r{i}" for i in rows], metadatas=[{"row": i} for i in rows]
    )


def check(source: Store, target: Store, modes: Sequence[Mode] = FakeEncoder().modes) -> None:
    """The target has the source's records, each once, with the successor's vectors."""
    records = {record.id: record for record in source.records()}
    ids = [record.id for record in target.records()]
    assert sorted(ids) == sorted(records)
    assert target.count() == len(ids)
    assert (target.fingerprint, target.modes) == (Successor.fingerprint, tuple(modes))
    expected = Successor().encode([records[id_].text for id_ in ids])
    for i, record in enumerate(target.get(ids, with_vectors=True)):
        assert (record.text, record.metadata) == (records[record.id].text, records[record.id].metadata)
        assert record.vectors is not None
        np.testing.assert_allclose(record.vectors.dense[0], expected.dense[i], atol=1e-6)
        if "multi_vector" in modes and not record.is_pooled:
            np.testing.assert_allclose(record.vectors.multi_vector[0], expected.multi_vector[i], atol=1e-3)


def done(source: Store, target: Store) -> tuple[int, int, int, int]:
    report = migrate_store(source, target, Successor())
    assert report.is_in_step
    return report.n_encoded, report.n_updated, report.n_kept, report.n_deleted


@pytest.mark.parametrize("kind", STORES)
def test_every_record_comes_once_and_later_only_what_changed(kind: str, open_kind: OpenStore) -> None:
    source, target = open_kind(kind), open_kind("memory" if kind == "folder" else kind)
    fill(source)
    assert done(source, target) == (150, 0, 0, 0)
    check(source, target)
    assert done(source, target) == (0, 0, 150, 0)
    fill(source, 3, start=150)
    source.delete(["r1", "r2"])
    searcher = Searcher(FakeEncoder(), source)
    searcher.add(["another text", "text 8"], ids=["r7", "r8"], metadatas=[{"row": 7}, {"row": 8, "is_new": True}])
    assert done(source, target) == (4, 1, 146, 2)
    check(source, target)


def test_a_store_without_token_vectors_or_with_pooled_ones_is_kept_so(open_kind: OpenStore) -> None:
    source = open_kind("memory")
    fill(source)
    without = open_kind("folder", multi_vector="none")
    assert done(source, without)[0] == 150
    check(source, without, ("dense", "lexical"))
    pooled = open_kind("folder", token_pooling=2)
    assert done(source, pooled)[0] == 150
    Searcher(FakeEncoder(), source).add(["text 8"], ids=["r8"], metadatas=[{"is_new": True}])
    before = pooled.get(["r8"], with_vectors=True)[0]
    assert done(source, pooled) == (0, 1, 149, 0)
    after = pooled.get(["r8"], with_vectors=True)[0]
    assert (before.is_pooled, after.is_pooled, after.metadata) == (True, True, {"is_new": True})
    assert before.vectors is not None
    assert after.vectors is not None
    np.testing.assert_allclose(before.vectors.multi_vector[0], after.vectors.multi_vector[0], atol=1e-3)


def test_what_fails_ten_times_goes_on_ten_times() -> None:
    source, target = open_store(), open_store()
    fill(source, 700)

    class Failing(Successor):
        calls = 0

        def _vectors(self, texts: Sequence[str], kind: Any) -> Any:
            type(self).calls += 1
            if self.calls % 2 == 0:
                raise RuntimeError("out of memory")
            return super()._vectors(texts, kind)

    failing = Failing()
    for n in range(1, 11):
        with pytest.raises(RuntimeError, match="out of memory"):
            migrate_store(source, target, failing)
        assert target.count() == 64 * n
    assert done(source, target) == (60, 0, 640, 0)
    check(source, target)


def test_a_source_that_goes_on_changing_is_followed_and_told() -> None:
    source, target = open_store(), open_store()
    fill(source, 10)

    class Busy(Successor):
        def _vectors(self, texts: Sequence[str], kind: Any) -> Any:
            fill(source, 1, start=source.count())
            return super()._vectors(texts, kind)

    report = migrate_store(source, target, Busy())
    assert not report.is_in_step
    assert (report.n_encoded, target.count(), source.count()) == (19, 19, 20)  # ten passes, and one more after each
    assert done(source, target) == (1, 0, 19, 0)


def test_what_cannot_be_a_migration_is_refused_and_changes_nothing() -> None:
    source, target = open_store(), open_store()
    fill(source, 3)
    target.bind("a third")
    for one, other, encoder, message in (
        (source, source, Successor(), "are the same store"),
        (source, open_store(), FakeEncoder(), "already has vectors of fake"),
        (source, target, Successor(), "holds vectors of the model a third"),
    ):
        with pytest.raises(ValueError, match=message):
            migrate_store(one, other, encoder)
    assert (source.count(), target.count()) == (3, 0)


@pytest.mark.slow
@pytest.mark.enable_socket
def test_killed_ten_times_every_record_is_there_once_and_searches_are_answered_meanwhile(tmp_path: Path) -> None:
    """The source is behind a server, as a live one is; the migrating process is killed by SIGKILL in mid-work."""
    n, kills, log = 2_000, 10, tmp_path / "log"
    random, answers, is_over = np.random.default_rng(0), list[int](), threading.Event()
    behind = open_store()
    fill(behind, n)
    with serving_store(behind) as url, ServedStore(url) as source:

        def search() -> None:
            with ServedStore(url) as own:
                searcher = Searcher(FakeEncoder(), own)
                while not is_over.is_set():
                    answers.append(len(searcher.search(f"question {len(answers)}")))

        thread = threading.Thread(target=search)
        thread.start()
        try:
            n_before = []
            for kill in range(kills + 1):
                if kill == kills:
                    n_killed = sum(map(int, log.read_text().split()))
                process = start(url, tmp_path / "new", log)
                assert process.stdout is not None
                assert process.stdout.readline() == "open\n"
                if kill < kills:
                    time.sleep(random.uniform(0.02, 0.25))
                    process.kill()
                process.stdout.close()
                assert process.wait(120) == (-signal.SIGKILL if kill < kills else 0)
                n_before.append(len(answers))
                if kill == 4:
                    source.delete(["r3", f"r{n - 1}"])
                    fill(source, 5, start=n)
        finally:
            is_over.set()
            thread.join(60)
        assert answers.count(4) == len(answers) > 0
        assert all(later > earlier for earlier, later in pairwise(n_before))
        with open_store(tmp_path / "new") as target:
            check(source, target)
            assert target.count() == n + 3
    encoded = sum(map(int, log.read_text().split()))
    assert 64 <= n_killed < encoded  # what was killed had begun, and left work
    assert n + 3 <= encoded <= n + 5 + kills * 64


def start(url: str, folder: Path, log: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.migration", url, str(folder), str(log)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def make_folder(folder: Path, encoder: FakeEncoder) -> None:
    with EdgeStore(folder) as store:
        Searcher(encoder, store).add(["one text"], ids=["r1"])


def test_a_switch_gives_the_new_store_the_name_and_a_killed_one_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, old, new = tmp_path / "idx", FakeEncoder.fingerprint, Successor.fingerprint
    make_folder(folder, FakeEncoder())
    with pytest.raises(FileNotFoundError, match=r"no migrated store at .*idx\.5ccc0123$"):
        switch_folder(folder, old, new)
    make_folder(folder_beside(folder, new), Successor())
    rename, steps = Path.rename, list[str]()

    def killed(self: Path, target: Path) -> Path:
        steps.append(self.name)
        if len(steps) == fatal:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    for fatal in (1, 2):
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            switch_folder(folder, old, new)
        assert folder.exists() is (fatal == 1)
        assert finish_switch(folder) is (fatal == 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["idx", "idx.fa4e"]
    for path, fingerprint in ((folder, new), (folder_beside(folder, old), old)):
        with open_store(path) as store:
            assert (store.fingerprint, store.count()) == (fingerprint, 1)
    assert not finish_switch(folder)
    assert switch_folder(folder, new, old) == folder_beside(folder, new)
    make_folder(tmp_path / "idx.fa4e", FakeEncoder())
    with pytest.raises(FileExistsError, match="the old store would be renamed to"):
        switch_folder(folder, old, new)


def test_opening_a_folder_completes_its_killed_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, old, new = tmp_path / "idx", FakeEncoder.fingerprint, Successor.fingerprint
    make_folder(folder, FakeEncoder())
    make_folder(folder_beside(folder, new), Successor())
    with monkeypatch.context() as patch:
        patch.setattr("m3_integrations.store.switching.finish_switch", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            switch_folder(folder, old, new)
    assert not folder.exists()
    mark, beside = tmp_path / "idx.switching", folder_beside(folder, new)
    said = mark.read_text()
    for other in ("", "../x", "idx.gone", f"{beside.name}\nidx.gone", "a note of mine"):  # nothing to complete
        mark.write_text(other)
        assert is_new(str(folder))
    mark.write_text(said)
    assert not is_new(str(folder))
    with open_store(folder) as store:  # not a new, empty store
        assert (store.fingerprint, store.count()) == (new, 1)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["idx", "idx.fa4e"]
    mark.mkdir()
    with open_store(folder) as store:
        assert store.count() == 1
    with open_store(tmp_path / ("long" * 60)) as store:  # its mark would have too long a name
        assert store.count() == 0


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A store of `tiny`'s, and questions beside it."""
    texts = {"a": "Keys are replaced once a year.", "b": "Backups run at night.", "c": "The museum is closed."}
    asked = {"1": "when do backups run?", "2": "is the museum closed?", "3": "how often are keys replaced?"}
    write_beir(tmp_path / "questions", texts, asked, {"1": {"b": 1}, "2": {"c": 1}, "3": {"a": 1}})
    with M3Encoder("tiny", device="cpu") as encoder, open_store(tmp_path / "idx") as store:
        Searcher(encoder, store).add(texts.values(), ids=texts)
    return tmp_path / "idx"


def migrate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["migrate", *map(str, arguments), "--device", "cpu"])


def test_the_command_migrates_compares_switches_and_goes_back(index: Path, small: Path) -> None:
    with M3Encoder(str(small), shared=False, device="cpu") as encoder:
        beside = folder_beside(index, encoder.fingerprint)
    first = migrate(index, "--model", small, "--questions", index.with_name("questions"))
    assert first.exit_code == 0, first.output  # three questions show nothing
    assert "records: 3 encoded, 0 with new metadata, 0 deleted, 0 were there" in first.stdout
    assert f"{beside} holds 3 records" in first.stdout
    assert "with the old store" in first.stdout
    judged = index.with_name("questions") / "qrels"
    (judged / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n3\ta\t1\n")
    one = migrate(index, "--model", small, "--questions", judged.parent, "--split", "dev")
    assert (one.exit_code, "0 questions won, 1 lost, 0 are as before" in one.stdout) == (0, True), one.output
    refused = migrate(index, "--model", small, "--split", "dev")
    assert (refused.exit_code, "--split dev chooses among the judgements" in refused.stderr) == (1, True)
    switched = migrate(index, "--model", small, "--switch")
    assert switched.exit_code == 0, switched.output
    assert "records: 0 encoded, 0 with new metadata, 0 deleted, 3 were there" in switched.stdout
    assert not beside.exists()
    again = migrate(index, "--model", small, "--switch")
    assert (again.exit_code, "already" in again.stdout) == (0, True)
    found = CliRunner().invoke(app, ["search", str(index), "backups", "--model", str(small), "--device", "cpu"])
    assert found.exit_code == 0, found.output
    back = migrate(index, "--model", "tiny", "--old-model", small, "--switch")
    assert back.exit_code == 0, back.output
    assert "0 encoded" in back.stdout
    assert beside.exists()
    with open_store(index) as store, M3Encoder("tiny", device="cpu") as encoder:
        assert (store.fingerprint, store.count()) == (encoder.fingerprint, 3)


def kept_by(folder: Path) -> tuple[str, int]:
    with open_store(folder) as store:
        assert isinstance(store, EdgeStore)
        return store.format.multi_vector, store.format.token_pooling


def test_the_new_store_keeps_token_vectors_as_the_old_one_unless_told(index: Path, small: Path) -> None:
    plain = migrate(index, "--model", small, "--multi-vector", "turbo8", "--switch")
    assert plain.exit_code == 0, plain.output
    back = migrate(index, "--model", "tiny", "--old-model", small, "--switch")  # the store beside has its own settings
    assert back.exit_code == 0, back.output
    assert kept_by(index) == ("float16", 1)
    smaller, made = index.with_name("smaller"), index.with_name("made")
    settings: dict[str, Any] = {"multi_vector": "turbo4", "token_pooling": 3}
    with M3Encoder("tiny", device="cpu") as encoder, Searcher(encoder, open_store(smaller, **settings)) as searcher:
        searcher.add(["Rotate the keys.", "Backups are kept for ninety days."])
    for arguments in ((smaller, "--model", small, "--to", made), (smaller, "--model", small, "--switch")):
        result = migrate(*arguments)
        assert result.exit_code == 0, result.output
    for place in (made, smaller):
        assert kept_by(place) == ("turbo4", 3)


def test_a_store_that_is_worse_is_not_switched_to(index: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3_integrations.cli.migrate.is_worse", lambda found, _: found.new.mean() < 9)
    refused = migrate(index, "--model", small, "--questions", index.with_name("questions"), "--switch")
    assert refused.exit_code == 3, refused.output
    assert "the new store is worse, so it is not switched to" in refused.stderr
    with open_store(index) as store, M3Encoder("tiny", device="cpu") as encoder:
        assert store.fingerprint == encoder.fingerprint


def test_impossible_migrations_are_one_line(index: Path, small: Path, tmp_path: Path) -> None:
    fill_path = tmp_path / "other"
    make_folder(fill_path, FakeEncoder())
    open_store(tmp_path / "empty").close()
    for arguments, said in (
        ((tmp_path / "absent", "--model", small), "no store at"),
        (
            (index, "--model", small, "--to", tmp_path / "x", "--switch"),
            "--switch is for the new store beside the old one",
        ),
        ((index, "--model", small, "--to", fill_path), "holds vectors of the model fa4e"),
        ((tmp_path / "empty", "--model", small), "is empty and has no model yet"),
        ((index, "--model", small, "--questions", tmp_path / "absent"), "queries.jsonl is not there"),
    ):
        result = migrate(*arguments)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert said in result.stderr
    assert not (tmp_path / "x").exists()


def test_elsewhere_nothing_is_deleted_unless_it_is_asked_for(index: Path, small: Path, tmp_path: Path) -> None:
    first = migrate(index, "--model", small, "--to", tmp_path / "x")
    assert (first.exit_code, "3 encoded" in first.stdout) == (0, True), first.output
    with M3Encoder("tiny", device="cpu") as encoder, open_store(index) as store:
        Searcher(encoder, store).delete(["a"])
    for options, said in (((), "0 deleted, 2 were there"), (("--delete",), "1 deleted, 2 were there")):
        again = migrate(index, "--model", small, "--to", tmp_path / "x", *options)
        assert (again.exit_code, said in again.stdout) == (0, True), again.output
    with open_store(tmp_path / "x") as store:
        assert sorted(record.id for record in store.records()) == ["b", "c"]


@pytest.mark.enable_socket
def test_a_store_without_token_vectors_is_migrated_to_an_m3_serve_with_its_own_settings(
    tmp_path: Path, small: Path
) -> None:
    with M3Encoder("tiny", device="cpu") as encoder, open_store(tmp_path / "old", multi_vector="none") as old:
        Searcher(encoder, old).add(["one", "two"], ids=["1", "2"])
    with open_store() as target, serving_store(target) as url:
        result = CliRunner().invoke(app, ["migrate", str(tmp_path / "old"), "--model", str(small), "--to", url])
        assert result.exit_code == 0, result.output
        assert sorted(record.text for record in target.records()) == ["one", "two"]


def test_the_folder_that_a_user_stands_in_gets_its_new_store_beside_it(
    index: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index / "below").mkdir()
    for here, named in ((index, "."), (index / "below", "..")):
        monkeypatch.chdir(here)
        found = migrate(named, "--model", small)
        assert found.exit_code == 0, found.output
    assert len(list(index.parent.glob(f"{index.name}.*"))) == 1
    assert not list(index.rglob("*.*/m3-store.json"))


def test_a_place_that_is_the_old_one_and_a_copy_by_the_same_model_are_refused(index: Path, small: Path) -> None:
    index.with_name("link").symlink_to(index)
    for place in (index, index.with_name("link"), index / ".." / index.name):
        same = migrate(index, "--model", small, "--to", place)
        assert (same.exit_code, "is STORE itself: name a new place" in same.stderr) == (1, True), same.output
    copy = migrate(index, "--model", "tiny", "--to", index.with_name("new"))
    assert (copy.exit_code, "copy it with copy_store" in copy.stderr) == (1, True), copy.output
    assert not index.with_name("new").exists()
