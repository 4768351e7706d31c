"""What a worker takes from a batch and where it writes, and what is refused first; no cluster runs here."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from m3_integrations import M3Encoder, open_store

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:Using extra keyword arguments")]  # Ray's own


def test_metadata_are_json_or_a_struct_and_may_be_left_out() -> None:
    import pyarrow as pa

    from m3_integrations.ray.places import rows_of
    from m3_integrations.store.values import as_json_values

    columns: dict[str, Any] = {"id": ["a", "b"], "text": ["one", ""]}
    assert rows_of(pa.table(columns)).metadatas == [{}, {}]
    assert rows_of(pa.table(columns | {"metadata": ['{"year": 1.0}', None]})).metadatas == [{"year": 1.0}, {}]
    assert rows_of(pa.table(columns | {"metadata": [{"x": 1}, {"x": None}]})).metadatas == [{"x": 1}, {"x": None}]
    native, exact = as_json_values({"day": date(2024, 5, 1)})
    again = columns | {"metadata": ["{}", str(native)], "exact": [exact, exact]}  # a corpus of our own files
    assert rows_of(pa.table(again)).metadatas == [{"day": date(2024, 5, 1)}] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", None], "text": ["b", "c"]}, "needs an id and a text, got None and 'c'"),
        ({"id": ["a", "b"], "text": [None, "c"]}, "needs an id and a text, got 'a' and None"),
        ({"_id": ["a"], "text": ["b"]}, "needs the columns id and text, got _id, text"),
        ({"id": [1], "text": ["b"]}, "column id must hold strings, it has int64"),
        ({"id": ["a"], "text": ["b"], "metadata": ["{"]}, "metadata of record 'a' must be JSON, got '{'"),
        ({"id": ["a"], "text": ["b"], "metadata": [{"x": b"y"}]}, "record 'a' cannot have .* decode it to a string"),
    ],
)
def test_a_record_that_cannot_be_kept_is_refused_by_its_id(columns: dict[str, Any], message: str) -> None:
    import pyarrow as pa

    from m3_integrations.ray.places import rows_of

    with pytest.raises(ValueError, match=message):
        rows_of(pa.table(columns))


def test_metadata_that_are_no_mapping_are_refused() -> None:
    import pyarrow as pa

    from m3_integrations.ray.places import rows_of

    with pytest.raises(TypeError, match=r"metadata of record 'a' must be a mapping .* got \[3\]"):
        rows_of(pa.table({"id": ["a"], "text": ["b"], "metadata": ["[3]"]}))


def test_a_batch_that_is_done_again_is_known_in_the_same_run_and_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from m3_integrations.parquet import ParquetFolder, Rows, load_parquet
    from m3_integrations.ray.places import FolderPlace

    monkeypatch.setattr(ray, "get", lambda value: value)
    folder = ParquetFolder(tmp_path)
    rows = Rows(["a", "b", "c"], ["one", "two", "three"], [{}, {"x": 1}, {}])
    with M3Encoder("tiny") as encoder:

        def opened() -> FolderPlace:
            return FolderPlace(folder, folder.read_done(), encoder, None)

        place = opened()
        assert place.missing(rows) == [0, 1, 2]
        place.write(rows, encoder.encode(rows.texts, modes=place.modes))
        assert place.missing(rows) == []
        changed = Rows(["a", "b", "c"], ["one", "two", "four"], [{}, {"x": True}, {}])
        assert opened().missing(rows) == []
        assert opened().missing(changed) == [1, 2]
        opened().write(changed.take([1, 2]), encoder.encode(["two", "four"]))
        with open_store() as store:
            load_parquet([tmp_path], store)
            assert {r.id: (r.text, repr(r.metadata)) for r in store.records()} == {
                "a": ("one", "{}"), "b": ("two", "{'x': True}"), "c": ("four", "{}"),
            }  # fmt: skip


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([node(CPU=8.0)], (None, None), (1, 6, 0)),
        ([node(CPU=16.0), node(CPU=8.0)], (None, None), (2, 6, 0)),
        ([node(CPU=16.0, GPU=4.0), node(CPU=16.0, GPU=2.0), node(CPU=4.0)], (None, None), (6, 1, 1)),
        ([node(CPU=16.0, GPU=4.0)], (2, 4), (2, 4, 1)),
        ([node(CPU=2.0)], (None, None), (1, 1, 0)),
    ],
)
def test_workers_are_as_many_as_there_are_devices(
    nodes: list[Any], asked: tuple[int | None, int | None], expected: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import ray

    from m3_integrations.ray.encoding import Workers, plan_workers

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert plan_workers(*asked) == Workers(*expected)


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [([node(CPU=1.0)], (None, None)), ([node(CPU=4.0)], (2, 2)), ([node(CPU=64.0, GPU=2.0)], (3, 1))],
)
def test_a_cluster_that_would_wait_for_ever_is_an_error(
    nodes: list[Any], asked: tuple[int | None, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from m3_integrations.ray.encoding import plan_workers

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(ValueError, match=r"do not fit into a cluster of .* ask for fewer, or raise ray\.init"):
        plan_workers(*asked)


def test_lines_without_an_id_or_a_text_are_refused_by_file_and_line(tmp_path: Path) -> None:
    import pyarrow as pa

    from m3_integrations.parquet import find_files
    from m3_integrations.ray import read_jsonl
    from m3_integrations.ray.reading import parsed

    path = tmp_path / "a.jsonl"
    found = find_files(tmp_path, ".jsonl")
    assert found == []
    first = '{"id": "a", "text": "b\u2028c", "title": "t", "year": 3}'
    path.write_text(f'\ufeff{first}\n\n{{"_id": 7, "text": ""}}\r\n', "utf-8")
    (table,) = parsed(pa.table({"id": [0]}), find_files(tmp_path, ".jsonl"))
    assert table.to_pydict() == {
        "id": ["a", "7"],
        "text": ["t\nb\u2028c", ""],
        "metadata": ['{"id": "a", "title": "t", "year": 3}', '{"_id": 7}'],
    }
    wrong = {'{"text": "b"}': "has no 'id'", '{"id": "a"}': "'text' must be a string", "{": "no JSON"}
    for line, message in wrong.items():
        path.write_text('{"id": "a", "text": "b"}\n' + line)
        with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{message}"):
            list(parsed(pa.table({"id": [0]}), find_files(path, ".jsonl")))
    with pytest.raises(TypeError, match="paths must be a list"):
        read_jsonl(str(path))
    with pytest.raises(ValueError, match="no JSONL file"):
        read_jsonl([])


def test_processes_that_read_a_corpus_load_no_network() -> None:
    code = "import sys, m3_integrations.ray.reading; print({'torch', 'transformers'} & set(sys.modules) or 'none')"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "none"


def test_settings_that_mean_nothing_are_refused() -> None:
    from m3_integrations.ray import serve_encoder

    with pytest.raises(ValueError, match="n_replicas must be at least 1, got 0"):
        serve_encoder("tiny", n_replicas=0)
    with pytest.raises(TypeError, match="api_keys must be a list"):
        serve_encoder("tiny", api_keys="secret")
